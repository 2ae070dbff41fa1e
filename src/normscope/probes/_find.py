"""Find probes by code, class, or the question that they answer: every probe is a file of this folder."""

import sys
from collections.abc import Iterable
from typing import Any

from normscope._errors import UsageError
from normscope._unit import discover, near
from normscope.probes._probe import AbstractProbe

Wanted = str | AbstractProbe | type[AbstractProbe] | Iterable[str | AbstractProbe | type[AbstractProbe]]
"""Probes in any form in which a user may name them: see ``chosen_probes``."""


def all() -> list[type[AbstractProbe]]:
    """Return every probe, in the order of file names."""
    return list(discover(sys.modules[__package__], AbstractProbe))  # type: ignore[type-abstract]


def presets() -> dict[str, list[type[AbstractProbe]]]:
    """Return the probes by the question that they help to answer."""
    found: dict[str, list[type[AbstractProbe]]] = {}
    for probe in all():
        found.setdefault(probe.QUESTION, []).append(probe)
    return {question: found[question] for question in sorted(found) if question}


def get(code: str) -> type[AbstractProbe]:
    """Return the probe with the given code; case does not matter, and ``-`` stands for ``_``.

    Raises:
        UsageError: There is none; the message names the nearest codes.
    """
    known = {probe.CODE: probe for probe in all()}
    found = known.get(_code(code))
    if found is None:
        raise UsageError(f"no probe {code!r}; did you mean {near(_code(code), known)}?")
    return found


def chosen_probes(wanted: Wanted) -> list[AbstractProbe]:
    """Make the probes that a user names.

    Args:
        wanted: ``"all"``; a question (``"gradient"``, ``"smoothness"``, ``"shift"``, ``"statistics"``,
            ``"sharpness"``); a code (``"gradient_flow"``, ``"gradient-flow"``); a probe; a class of probes; or several
            of these. A probe that is named twice by its code, question or class is made once.

    Raises:
        UsageError: A name fits nothing; the message has the nearest names.
    """
    if isinstance(wanted, (str, AbstractProbe, type)) or not isinstance(wanted, Iterable):
        wanted = [wanted]
    found: list[AbstractProbe] = []
    made: set[type] = set()
    for item in wanted:
        if isinstance(item, AbstractProbe):
            found.append(item)
            continue
        for kind in _kinds(item):
            if kind not in made:
                made.add(kind)
                found.append(kind())
    return found


def default_probes() -> list[AbstractProbe]:
    """Make the probes that a scope reads if none are named: cheap, and without a loss function.

    They answer how gradients fare on their way through the layers, how large the updates are, how outputs are
    distributed and saturate, and how far running statistics are from those of the batch.
    """
    return [probe for kind in all() if (probe := kind.by_default()) is not None]


def _kinds(item: Any) -> list[type[AbstractProbe]]:
    if isinstance(item, type) and issubclass(item, AbstractProbe):
        return [item]
    if not isinstance(item, str):
        raise UsageError(f"a probe, its code or its class was expected, not {item!r}")
    if _code(item) == "all":
        return all()
    questions = presets()
    if _code(item) in questions:
        return questions[_code(item)]
    try:
        return [get(item)]
    except UsageError:
        known = [*(probe.CODE for probe in all()), *questions, "all"]
        raise UsageError(f"no probe {item!r}; did you mean {near(_code(item), known)}?") from None


def _code(name: str) -> str:
    return name.strip().lower().replace("-", "_")
