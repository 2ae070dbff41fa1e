"""``normscope rules``, ``normscope probes``, ``normscope layers``: what there is."""

from collections.abc import Sequence

from normscope.cli._print import print_json, print_tables
from normscope.cli._words import Json


def rules(as_json: Json = False) -> None:
    """List the rules of `normscope check`: what each finds, how severe it is, and whether it can be fixed."""
    from normscope import rules as room

    def fix(rule: room.AbstractRule) -> str:
        return ("safe" if rule.SAFE else "unsafe") if rule.fixable() else "none"

    heads = ("Code", "Name", "Severity", "Fix", "What it finds")
    rows = [(each.CODE, each.SLUG, each.SEVERITY.value, fix(each), each.title()) for each in room.all()]
    _print(heads, rows, as_json)


def probes(as_json: Json = False) -> None:
    """List the probes: the question that each helps to answer, and what it reads."""
    from normscope import probes as room

    heads = ("Probe", "Question", "What it reads")
    _print(heads, [(probe.CODE, probe.QUESTION, probe.title()) for probe in room.all()], as_json)


def layers(as_json: Json = False) -> None:
    """List the layers: the name under which each is imported, and what it is."""
    from normscope import layers as room
    from normscope._unit import discover

    found = discover(room, room.AbstractLayer)
    _print(("Layer", "What it is"), [(layer.__name__, layer.title()) for layer in found], as_json)


def _print(heads: Sequence[str], rows: Sequence[tuple[str, ...]], as_json: bool) -> None:
    if as_json:
        print_json([dict(zip([head.lower().replace(" ", "_") for head in heads], row, strict=True)) for row in rows])
        return
    print_tables([(heads, rows)], "`normscope explain NAME` has the page of each.")
