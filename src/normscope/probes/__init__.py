"""Probes, one a file: instruments that attach to a training loop and leave no trace."""

import sys

from normscope._errors import UsageError
from normscope._unit import discover, near
from normscope.modules.rng import RngState as RngState
from normscope.modules.state import Snapshot as Snapshot
from normscope.probes._probe import AbstractProbe as AbstractProbe, Step as Step
from normscope.probes._replay import Evaluation as Evaluation, Replay as Replay
from normscope.probes._scope import ProbeWarning as ProbeWarning, Scope as Scope


def all() -> list[type[AbstractProbe]]:
    """Return every probe, in the order of file names."""
    return list(discover(sys.modules[__name__], AbstractProbe))  # type: ignore[type-abstract]


def get(code: str) -> type[AbstractProbe]:
    """Return the probe with the given code.

    Raises:
        UsageError: There is none; the message names the nearest codes.
    """
    known = {probe.CODE: probe for probe in all()}
    if code not in known:
        raise UsageError(f"no probe {code!r}; did you mean {near(code, known)}?")
    return known[code]


def __getattr__(name: str) -> type[AbstractProbe]:
    """Find a probe by its class name: a new file needs no line here."""
    for probe in all():
        if probe.__name__ == name:
            return probe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
