"""Find probes by their code: every probe is a file of this folder."""

import sys

from normscope._errors import UsageError
from normscope._unit import discover, near
from normscope.probes._probe import AbstractProbe


def all() -> list[type[AbstractProbe]]:
    """Return every probe, in the order of file names."""
    return list(discover(sys.modules[__package__], AbstractProbe))  # type: ignore[type-abstract]


def get(code: str) -> type[AbstractProbe]:
    """Return the probe with the given code.

    Raises:
        UsageError: There is none; the message names the nearest codes.
    """
    known = {probe.CODE: probe for probe in all()}
    if code not in known:
        raise UsageError(f"no probe {code!r}; did you mean {near(code, known)}?")
    return known[code]
