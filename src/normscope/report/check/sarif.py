"""Findings for code review tools: SARIF 2.1.0 (OASIS standard, 2020)."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from normscope._unit import web_page
from normscope.records import Finding, Severity
from normscope.records.json import plain
from normscope.report._text import terminal
from normscope.report.check.checked import Checked, RuleNote, place_words

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def check_sarif(checked: Checked, *, version: str) -> str:
    """Return the result of a check as a SARIF 2.1.0 log of one run.

    Args:
        checked: The result.
        version: Of this library.

    Returns:
        A result for each finding: its layers are logical locations; the file in which the set-up is made, if it is
        known, is the physical location. A finding that is ignored on purpose is a result with a suppression. Numbers
        are in ``properties``.
    """
    order = {rule.code: index for index, rule in enumerate(checked.rules)}
    results = [_result(checked, finding, order) for finding in checked.findings]
    for finding, reason in checked.ignored:
        suppression = {"kind": "inSource", "status": "accepted", "justification": reason}
        results.append(_result(checked, finding, order) | {"suppressions": [suppression]})
    invocation: dict[str, Any] = {"executionSuccessful": not checked.failed}
    if checked.failed:
        invocation["toolExecutionNotifications"] = [
            {"level": "error", "message": {"text": why}, "associatedRule": _reference(code, order)}
            for code, why in checked.failed
        ]
    driver = {
        "name": "normscope",
        "version": version,
        "semanticVersion": version,
        "rules": [_rule(rule) for rule in checked.rules],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(plain(log), indent=2, allow_nan=False) + "\n"


def _rule(rule: RuleNote) -> dict[str, Any]:
    page = dict(rule.page)
    described = {
        "id": rule.code,
        "name": "".join(part.capitalize() for part in rule.slug.split("-")),
        "shortDescription": {"text": rule.title},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        "properties": {"tags": ["normalization"], "slug": rule.slug, "safeFix": rule.safe},
    }
    if address := web_page("rules", rule.code):
        described["helpUri"] = address
    if page:
        described["fullDescription"] = {"text": _words(next(iter(page.values())))}
        described["help"] = {
            "text": "\n\n".join(f"{heading}: {_words(text)}" for heading, text in page.items()),
            "markdown": "\n\n".join(f"## {heading}\n{text}" for heading, text in page.items()),
        }
    return described


def _result(checked: Checked, finding: Finding, order: dict[str, int]) -> dict[str, Any]:
    lines = [finding.message]
    if finding.measured is not None:
        bound = "" if finding.bound is None else f", bound {finding.bound:.4g}"
        lines.append(f"Measured {finding.quantity or 'value'}: {finding.measured:.4g}{bound}.")
    lines += [f"{label}: {text}" for label, text in (("Costs", finding.cost), ("Fix", finding.fix)) if text]
    location: dict[str, Any] = {
        "logicalLocations": [
            {"fullyQualifiedName": place_words(place), "name": place.rpartition(".")[2] or "model", "kind": "object"}
            for place in finding.places
        ]
    }
    if checked.file:
        location["physicalLocation"] = {"artifactLocation": {"uri": _uri(checked.file)}}
        if checked.line > 0:
            location["physicalLocation"]["region"] = {"startLine": checked.line}
    identity = "\n".join([finding.code, checked.target, *finding.places])
    return _reference(finding.code, order, key="ruleId", index="ruleIndex") | {
        "level": _LEVELS[finding.severity],
        "message": {"text": "\n".join(lines)},
        "locations": [location],
        "partialFingerprints": {"codeAndPlaces/v1": hashlib.sha256(identity.encode()).hexdigest()},
        "properties": {
            "slug": finding.slug,
            "quantity": finding.quantity,
            "measured": finding.measured,
            "bound": finding.bound,
            "fixable": finding.fixable,
            "safeFix": finding.safe,
            "details": dict(finding.details),
        },
    }


def _reference(code: str, order: dict[str, int], *, key: str = "id", index: str = "index") -> dict[str, Any]:
    return {key: code} | ({index: order[code]} if code in order else {})


def _uri(file: str) -> str:
    """Return a URI reference: relative to where the command was given if the file lies below, else absolute."""
    path = Path(file).resolve()
    try:
        return quote(path.relative_to(Path.cwd()).as_posix())
    except ValueError:
        return path.as_uri()


def _words(text: str) -> str:
    """Return the text of a docstring on one line, without markup."""
    return re.sub(r"\s+", " ", terminal(text)).strip()
