"""Pages of the public names: each module's functions, classes and their methods, with signatures."""

import importlib
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

import normscope
from sitemaker.markup import markdown

_INTEGRATIONS = ("lightning", "transformers", "tensorboard", "wandb", "mlflow")


def modules() -> tuple[str, ...]:
    """Return the names of the public modules below ``normscope``."""
    return tuple(name for name in sorted(normscope.__all__) if isinstance(getattr(normscope, name), types.ModuleType))


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path of each page below the site's root, and its Markdown."""
    top = [name for name in sorted(normscope.__all__) if name not in modules() and not name.startswith("_")]
    yield "reference/api/index.md", _index(top)
    for name in modules():
        module = importlib.import_module(f"normscope.{name}")
        yield f"reference/api/{name}.md", _module(module)


def _index(top: list[str]) -> str:
    parts = [
        "# Python API",
        "The names of `import normscope as ns`. Modules have pages of their own; layers, probes, rules and studies are "
        "in the lists of the reference.",
        "## Modules",
        "\n".join(f"- [ns.{name}]({name}.md): {_first(getattr(normscope, name))}" for name in modules()),
    ]
    for name in top:
        parts += _member(f"ns.{name}", getattr(normscope, name), 2)
    listed = "\n".join(modules())
    return "\n\n".join(parts) + f"\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def _module(module: types.ModuleType) -> str:
    short = module.__name__.replace("normscope", "ns", 1)
    parts = [f"# {short}", markdown(module.__doc__ or "")]
    for name, member in public(module):
        parts += _member(f"{short}.{name}", member, 2)
    return "\n\n".join(parts) + "\n"


def public(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the functions and classes of the package that a module offers, by name."""
    for name, member in sorted(vars(module).items()):
        own = getattr(member, "__module__", "") or ""
        kind = inspect.isclass(member) or inspect.isfunction(member)
        if kind and not name.startswith("_") and own.split(".")[0] == "normscope":
            yield name, member


def _member(name: str, member: Any, level: int) -> list[str]:
    parts = [f"{'#' * level} {name}"]
    if inspect.isclass(member):
        if (called := signature(name, member)) and not issubclass(member, BaseException):
            parts.append(called)
        parts.append(_doc(member, level))
        for method, function in _methods(member):
            parts += _member(f"{name}.{method}", function, level + 1)
        return parts
    if isinstance(member, property):
        return [*parts, _doc(member, level)]
    return [*parts, signature(name, member), _doc(member, level)]


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that the package itself wrote for a class, by name."""
    seen = {}
    for base in reversed(kind.__mro__):
        if (base.__module__ or "").split(".")[0] == "normscope":
            seen |= vars(base)
    for name, member in sorted(seen.items()):
        plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        shown = inspect.isfunction(plain) or isinstance(plain, property)
        if shown and not name.startswith("_") and inspect.getdoc(plain):
            yield name, plain


def _doc(member: Any, level: int) -> str:
    text = markdown(member.__doc__ or "", level + 1)
    own = [f"**{head.strip('# ')}**" if head.startswith("#") else head for head in text.split("\n")]
    return "\n".join(own)


def signature(name: str, member: Any) -> str:
    """Return how a function or class is called, as a block; empty where Python does not know it.

    Args:
        name: As users write it.
        member: The function or class.
    """
    try:
        found = inspect.signature(member)
    except (TypeError, ValueError):
        return ""
    parameters = [each for each in found.parameters.values() if each.name not in {"self", "cls"}]
    returns = ""
    if not inspect.isclass(member) and found.return_annotation is not inspect.Signature.empty:
        returns = f" -> {inspect.formatannotation(found.return_annotation)}"
    marks = _marks(parameters)
    flat = f"{name}({', '.join(marks)}){returns}"
    if len(flat) > 100:
        flat = f"{name}(\n" + "".join(f"    {mark},\n" for mark in marks) + f"){returns}"
    return f"```text\n{_short(flat)}\n```"


def _marks(parameters: list[inspect.Parameter]) -> list[str]:
    """Return parameters as they stand in a signature, with the star before those that go by keyword alone."""
    marks: list[str] = []
    starred = False
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            starred = True
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            marks.append("*")
            starred = True
        marks.append(str(parameter))
    return marks


def _short(text: str) -> str:
    """Shorten the dotted names of types, and defaults that show an address in memory."""
    text = re.sub(
        r"\b(?:collections\.abc|typing|pathlib|normscope(?:\.\w+)*|torch\.nn\.modules\.module)\.(?=[A-Z])", "", text
    )
    text = re.sub(r"(: |-> )'([^'\n]+)'", r"\1\2", text.replace("<factory>", "..."))
    return re.sub(r"<(?:function |class )?'?([\w.]+)'?(?: at 0x[0-9a-f]+)?>", r"\1", text)


def _first(member: Any) -> str:
    return markdown((member.__doc__ or "").partition("\n")[0])
