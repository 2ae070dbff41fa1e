"""Normalization in neural networks: build with it, watch it, check it, compare with and without it, study it.

The public names are imported where they are used first, so that ``import normscope`` itself stays fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_PUBLIC = {
    "Scope": ("normscope.watching", "Scope"),
    "watch": ("normscope.watching", "watch"),
    "study": ("normscope.studies", "get"),
    "Case": ("normscope.evidence", "Case"),
    "ignore": ("normscope.evidence", "ignore"),
    "compare": ("normscope.comparing", "compare"),
    "Comparison": ("normscope.comparing", "Comparison"),
    "check": ("normscope.checking", "check"),
    "verify": ("normscope.verifying", "verify"),
    "fix": ("normscope.checking", "fix"),
    "NormscopeError": ("normscope._errors", "NormscopeError"),
    "NonFiniteError": ("normscope._errors", "NonFiniteError"),
    "UsageError": ("normscope._errors", "UsageError"),
    "UnitError": ("normscope._errors", "UnitError"),
    "DataError": ("normscope._errors", "DataError"),
    "StoreError": ("normscope._errors", "StoreError"),
    "ShapeError": ("normscope.ops", "ShapeError"),
    "IncompleteRunError": ("normscope.running", "IncompleteRunError"),
    "ComparisonWarning": ("normscope.comparing", "ComparisonWarning"),
    "FindingWarning": ("normscope.checking", "FindingWarning"),
    "RuleWarning": ("normscope.checking", "RuleWarning"),
    "TraceWarning": ("normscope.evidence", "TraceWarning"),
    "ProbeWarning": ("normscope.probes", "ProbeWarning"),
    "WiringWarning": ("normscope.probes", "WiringWarning"),
    "SinkWarning": ("normscope.probes", "SinkWarning"),
    "allocator": ("normscope.allocator", None),
    "builders": ("normscope.builders", None),
    "checking": ("normscope.checking", None),
    "comparing": ("normscope.comparing", None),
    "evidence": ("normscope.evidence", None),
    "layers": ("normscope.layers", None),
    "ops": ("normscope.ops", None),
    "probes": ("normscope.probes", None),
    "records": ("normscope.records", None),
    "rules": ("normscope.rules", None),
    "stats": ("normscope.stats", None),
    "plots": ("normscope.plots", None),
    "studies": ("normscope.studies", None),
    "surgery": ("normscope.surgery", None),
    "verifying": ("normscope.verifying", None),
}

if TYPE_CHECKING:
    from normscope import (
        allocator,
        builders,
        checking,
        comparing,
        evidence,
        layers,
        ops,
        plots,
        probes,
        records,
        rules,
        stats,
        studies,
        surgery,
        verifying,
    )
    from normscope._errors import DataError, NonFiniteError, NormscopeError, StoreError, UnitError, UsageError
    from normscope.checking import FindingWarning, RuleWarning, check, fix
    from normscope.comparing import Comparison, ComparisonWarning, compare
    from normscope.evidence import Case, TraceWarning, ignore
    from normscope.ops import ShapeError
    from normscope.probes import ProbeWarning, SinkWarning, WiringWarning
    from normscope.running import IncompleteRunError
    from normscope.studies import get as study
    from normscope.verifying import verify
    from normscope.watching import Scope, watch

__all__ = [
    "Case",
    "Comparison",
    "ComparisonWarning",
    "DataError",
    "FindingWarning",
    "IncompleteRunError",
    "NonFiniteError",
    "NormscopeError",
    "ProbeWarning",
    "RuleWarning",
    "Scope",
    "ShapeError",
    "SinkWarning",
    "StoreError",
    "TraceWarning",
    "UnitError",
    "UsageError",
    "WiringWarning",
    "__version__",
    "allocator",
    "builders",
    "check",
    "checking",
    "compare",
    "comparing",
    "evidence",
    "fix",
    "ignore",
    "layers",
    "ops",
    "plots",
    "probes",
    "records",
    "rules",
    "stats",
    "studies",
    "study",
    "surgery",
    "verify",
    "verifying",
    "watch",
]


if not TYPE_CHECKING:  # a type checker takes the names above, and refuses others

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use."""
        if name not in _PUBLIC:
            raise AttributeError(f"module 'normscope' has no attribute {name!r}")
        module, attribute = _PUBLIC[name]
        found = importlib.import_module(module)
        value = getattr(found, attribute) if attribute else found
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
