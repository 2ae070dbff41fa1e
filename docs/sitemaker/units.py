"""Pages of the units: layers, probes, rules, studies and questions of a comparison, from their docstrings."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from normscope import comparing, layers, probes, rules, studies
from normscope._unit import Unit, discover
from sitemaker import atlas
from sitemaker.api import signature
from sitemaker.evidence import answer_of
from sitemaker.markup import markdown, prose, sources


@dataclass(frozen=True)
class Kind:
    """A kind of unit, with a folder of pages.

    Attributes:
        folder: Below ``reference``.
        title: Of the list of its units.
        about: What such a unit is.
        units: All of them.
    """

    folder: str
    title: str
    about: str
    units: tuple[Any, ...]


def kinds() -> tuple[Kind, ...]:
    """Return all kinds of units, in the order of the reference."""
    return (
        Kind("layers", "Layers", "Normalization layers, each beside the layer of torch that it stands in for. "
             "[The guide](../../layers.md) says which options there are and when to use them.",
             tuple(discover(layers, layers.AbstractLayer))),
        Kind("probes", "Probes", "A probe reads one thing of a training run and leaves no trace in it. "
             "[The guide](../../watching.md) says how a scope attaches them.", tuple(probes.all())),
        Kind("rules", "Rules", "A rule finds one defect of normalization and proves it by a number. "
             "[The guide](../../checking.md) says how they are run.", tuple(rules.all())),
        Kind("studies", "Studies", "A study tests one claim about batch normalization, by a rule that stands in its "
             "code before the run. [How verdicts are made](../../verdicts.md) says what the words mean.",
             tuple(studies.all())),
        Kind("questions", "Questions of a comparison", "What `normscope compare` asks of your network with its norms "
             "and without. [The guide](../../comparing.md) says how the network is given.",
             tuple(comparing.all_questions())),
    )  # fmt: skip


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path of each page below the site's root, and its Markdown; the lists of units first."""
    for kind in kinds():
        yield f"reference/{kind.folder}/index.md", _list(kind)
        for unit in kind.units:
            yield address(kind, unit), page(kind, unit)


def address(kind: Kind, unit: Any) -> str:
    """Return the path of a unit's page below the site's root."""
    return f"reference/{kind.folder}/{unit.CODE}.md"


def summary(unit: Any) -> str:
    """Return the first line of a unit's docstring as Markdown."""
    return prose(unit.title())


def _name(kind: Kind, unit: Any) -> str:
    """Return the name of a unit that its users type."""
    if kind.folder == "layers":
        return f"{unit.__name__}"
    return f"{unit.CODE} {unit.SLUG}" if kind.folder == "rules" else unit.CODE


def _list(kind: Kind) -> str:
    rows = [f"- [{_name(kind, unit)}]({unit.CODE}.md): {summary(unit)}" for unit in kind.units]
    listed = "\n".join(unit.CODE for unit in kind.units)
    return f"# {kind.title}\n\n{kind.about}\n\n" + "\n".join(rows) + f"\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def page(kind: Kind, unit: Any) -> str:
    """Return the page of a unit as Markdown."""
    doc = inspect.cleandoc(unit.__doc__ or "")
    _, _, body = doc.partition("\n")
    parts = [f"# {_name(kind, unit)}", f"*{summary(unit)}*", *_FACTS[kind.folder](unit)]
    if kind.folder == "studies":
        parts += answer_of(unit.CODE)
    parts.append(markdown(body))
    if unit.SOURCES:
        parts += ["## Sources", sources(unit.SOURCES)]
    parts.append(f"In a terminal: `normscope explain {_typed(kind, unit)}`.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _typed(kind: Kind, unit: type[Unit]) -> str:
    """Return the code of a unit for ``normscope explain``, with its kind where another unit shares it."""
    shared = [other for each in kinds() for other in each.units if other.CODE.replace("_", "-") == unit.CODE]
    return f"{kind.folder.removesuffix('s')}:{unit.CODE}" if len(shared) > 1 else unit.CODE


def _layer(unit: Any) -> list[str]:
    return [signature(f"ns.layers.{unit.__name__}", unit)]


def _probe(unit: Any) -> list[str]:
    use = f'scope = ns.watch(model, optimizer, probes=["{unit.CODE}"])'
    about = f"It belongs to the question `{unit.QUESTION}`."
    if unit.REPLAYS:
        use = f'scope = ns.Scope(model, loss_fn, optimizer, probes=["{unit.CODE}"])'
        about += " It evaluates the loss again, so the scope is given the loss."
    return [
        about,
        f"```python\nimport normscope as ns\n\n{use}\n```",
        "With options it is given as an object:",
        signature(f"ns.probes.{unit.__name__}", unit),
    ]


def _rule(unit: Any) -> list[str]:
    fix = "There is no mechanical fix."
    if unit.fixable():
        fix = "Its fix is safe: `--fix` makes it." if unit.SAFE else "Its fix is unsafe: `--unsafe-fixes` makes it."
    return [
        f"Severity: **{unit.SEVERITY.value}**. {fix}",
        f"```sh\nnormscope check train.py:make_case --select {unit.CODE}\n```",
    ]


def _study(unit: Any) -> list[str]:
    return [f"**The claim.** {prose(unit.CLAIM)}"]


def _question(unit: Any) -> list[str]:
    command = f"```sh\nnormscope compare train.py:make_case --questions {unit.CODE}\n```"
    return [command, *atlas.answer_of(unit.CODE)]


_FACTS = {"layers": _layer, "probes": _probe, "rules": _rule, "studies": _study, "questions": _question}
