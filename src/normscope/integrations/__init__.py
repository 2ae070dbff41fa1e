"""Where people train and look: callbacks for trainers, and sinks that carry a scope's records on to loggers.

A module of this package needs the package it is named after: ``pip install "normscope[lightning]"``. A sink is given
to ``normscope.watch(..., sinks=[...])`` and has three methods: ``append(records)`` takes what the probes have read,
``finding(finding)`` a defect as a rule finds it, and ``close(report)`` the scope's page, or None if none was written.
"""

import re
from contextlib import suppress
from importlib import import_module
from typing import Any

from normscope._errors import UsageError
from normscope.records import Finding, Record

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_./:-]")
_DEFAULT_CELL = "scope"


def missing(package: str) -> UsageError:
    """Return the error that says how to install a package that an integration needs."""
    return UsageError(
        f'normscope.integrations.{package} needs a package that is not installed: pip install "normscope[{package}]"'
    )


def installed(package: str, *names: str) -> Any:
    """Return the first module of these names that is installed, by which an integration reaches its package.

    Raises:
        UsageError: None is; the message says how to install the package.
    """
    for name in names:
        with suppress(ModuleNotFoundError):
            return import_module(name)
    raise missing(package)


def allowed(name: str) -> str:
    """Return a name in the characters that all loggers take, ``[A-Za-z0-9_./:-]``: ``@`` as ``:``, others as ``_``."""
    return _FORBIDDEN.sub("_", name.replace("@", ":"))


def scalar_name(record: Record) -> str:
    """Return the name under which a logger draws a record: ``probe/quantity/site``.

    A cell that is not the default cell, such as that of another process, comes before it.
    """
    parts = (record.cell if record.cell != _DEFAULT_CELL else "", record.probe, record.name, record.site)
    return "/".join(allowed(part) for part in parts if part)


def sentences(finding: Finding) -> str:
    """Return what is wrong, where, and what to do, as one text."""
    places = ", ".join(place or "the whole model" for place in finding.places)
    return " ".join(part for part in (f"{finding.message} [{places}]", finding.cost, finding.fix) if part)
