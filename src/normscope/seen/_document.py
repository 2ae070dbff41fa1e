"""What a scope saw, for a program."""

from typing import Any

from normscope.records.json import plain
from normscope.seen._facts import Seen
from normscope.seen._sentences import all_readings, quiet, stands_out
from normscope.seen._words import not_read_of

SCHEMA = "normscope.scope"
VERSION = 1


def document(seen: Seen) -> dict[str, Any]:
    """Return sentences, findings and the numbers behind each probe's picture as JSON values.

    Args:
        seen: Records and facts.

    Returns:
        An object with ``schema`` and ``version``, which rises when a key is taken away or changes its meaning; keys may
        be added without. NaN and infinities are the words ``"nan"``, ``"inf"`` and ``"-inf"``.
    """
    said = stands_out(seen)
    shown = []
    for cell, probe, readings in all_readings(seen):
        name = readings.telling(probe.SHOWS)
        shown.append(
            {
                "cell": cell.cell,
                "probe": probe.CODE,
                "name": name,
                "first": readings.first(name),
                "late": readings.late(name),
                "steps": [readings.first_step, readings.last_step],
            }
        )
    found = {
        "schema": SCHEMA,
        "version": VERSION,
        "cells": [
            {"cell": cell.cell, "model": cell.model, "steps": cell.steps, "rules": cell.rules} for cell in seen.cells
        ],
        "wiring": [{"cell": cell.cell, "why": why} for cell in seen.cells for why in cell.wiring],
        "damaged": seen.damaged,
        "records": seen.frame.height,
        "stands_out": [
            {
                "says": each.remark.says,
                "urgency": each.word,
                "probe": each.probe,
                "cell": each.cell,
                "also": each.also,
                "sites": each.remark.sites,
                "name": each.remark.name,
            }
            for each in said
        ],
        "nothing_stands_out": quiet(seen, said),
        "findings": [{"cell": cell.cell} | finding.to_json() for cell in seen.cells for finding in cell.findings],
        "not_read": dict(not_read_of(seen.cells)),
        "pictures": shown,
    }
    document: dict[str, Any] = plain(found)
    return document
