"""Findings for a program."""

import json
from typing import Any

from normscope.records import Finding
from normscope.records.json import plain
from normscope.report.check.checked import Checked

SCHEMA = "normscope.check"
VERSION = 1


def check_json(checked: Checked) -> str:
    """Return the result of a check as one JSON document.

    Args:
        checked: The result.

    Returns:
        An object with ``schema`` and ``version``, which rises when a key is taken away or changes its meaning; keys may
        be added without. A place ``""`` is the whole model. NaN and infinities are the words ``"nan"``, ``"inf"`` and
        ``"-inf"``, as JSON has no numbers for them.
    """
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "target": checked.target,
        "file": checked.file or None,
        "line": checked.line or None,
        "seconds": checked.seconds,
        "summary": {severity.value: count for severity, count in checked.counts().items()},
        "findings": [finding.to_json() for finding in checked.findings],
        "ignored": [_short(finding) | {"reason": reason} for finding, reason in checked.ignored],
        "gap": None,
        "fixes": [
            _short(fixed.finding)
            | {
                "done": fixed.done or None,
                "why_not": fixed.why_not or None,
                "state_dict_tensors": fixed.tensors,
                "beyond_state_dict": list(fixed.beyond),
                "losses": [{"of": loss.of, "before": loss.before, "after": loss.after} for loss in fixed.losses],
            }
            for fixed in checked.fixes
        ],
        "saved": list(checked.saved),
        "rules": [rule.code for rule in checked.rules],
        "failed": [{"code": code, "why": why} for code, why in checked.failed],
        "notes": list(checked.notes),
        "settings": checked.settings or None,
    }
    if checked.gap is not None:
        document["gap"] = {
            "train": checked.gap.train,
            "eval": checked.gap.eval,
            "batches": checked.gap.batches,
            "shares": [
                {"cause": cause, "loss": loss, "explanation": explanation, "error": error or None}
                for cause, loss, explanation, error in checked.gap.rows()
            ],
        }
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def _short(finding: Finding) -> dict[str, Any]:
    return {"code": finding.code, "slug": finding.slug, "places": list(finding.places)}
