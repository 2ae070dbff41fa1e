"""What a chart's description holds."""

from typing import Any


def rows_of(spec: Any) -> list[dict[str, Any]]:
    """Return all rows of all data sets of a chart, in order."""
    if isinstance(spec, list):
        return [row for part in spec for row in rows_of(part)]
    if not isinstance(spec, dict):
        return []
    own = spec["data"].get("values", []) if isinstance(spec.get("data"), dict) else []
    return own + [row for key, part in spec.items() if key != "data" for row in rows_of(part)]
