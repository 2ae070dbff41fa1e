"""A study as the template shows it: its answer first, one picture, and all the rest to unfold."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from normscope import plots
from normscope.plots import Figure, Table
from normscope.records import Verdict, standing, tried
from normscope.records.answers import also_tried, differing, headline
from normscope.report._sections import Section, cell
from normscope.report._words import (
    DESCRIBED,
    amount_of,
    colour_class,
    counted,
    described_amount,
    is_described,
    is_identity,
    kind_of,
    margin_of,
    p_words,
    sign_of,
    tally,
)

#: Replaces the text's title where a study judges a claim that no text makes.
EXTENSION = "None of them: an extension"
_LEFT_OUT = re.compile(r"Left out: [\d,]+ \w+ not finite\.")  # of a caption: a reader must not miss it
_DESCRIBED = {"word": DESCRIBED, "sign": "·", "class": DESCRIBED}  # in place of a word with its sign and colour
_MOST_ROWS = 24  # contrasts that a picture has room for

Shown = dict[str, Any]  # a study, a figure, a contrast or a table, as the template shows it
Charts = dict[str, Any]  # what the page's script draws, by key


def study(section: Section, anchor: str, charts: Charts) -> Shown:
    """Return a section as the template shows it, and add its figures to the charts.

    Args:
        section: The section.
        anchor: Its address on the page.
        charts: The page's charts.
    """
    verdict = section.verdicts[0] if section.verdicts else None
    figures = [*section.figures]
    if verdict and not figures and not section.described:
        figures += _picture(verdict)
    shown = [figure(each, f"{anchor}-{i}", charts) for i, each in enumerate(figures, start=1)]
    open_figures = 1 if verdict else len(shown)
    return {
        "anchor": anchor,
        "slug": section.slug,
        "title": section.title,
        "topic": section.topic,
        "texts": section.texts or (EXTENSION,),
        "kind": section.kind,
        "claim": verdict.claim if verdict else section.claim,
        "verdict": verdict,
        "answer": _answer(verdict, section.described) if verdict else None,
        "facts": _facts(verdict) if verdict else [],
        "contrasts": _contrasts(section.verdicts, section.described),
        "notes": section.notes,
        "figures": shown[:open_figures],
        "more_figures": shown[open_figures:],
        "tables": [_table(table) for table in section.tables],
        "page": {head: text for head, text in section.page.items() if text.strip()},
        "command": section.command,
        "address": section.address,
    }


def figure(drawn: Figure, key: str, charts: Charts) -> Shown:
    """Add a figure's spec to the page's charts and return the rest."""
    charts[key] = {"spec": drawn.spec, "alt": drawn.alt, "name": drawn.slug}
    return {
        "key": key,
        "slug": drawn.slug,
        "title": drawn.title,
        "caption": _LEFT_OUT.sub("", drawn.caption).strip(),
        "left_out": " ".join(_LEFT_OUT.findall(drawn.caption)),
        "alt": drawn.alt,
    }


def _answer(verdict: Verdict, described: bool) -> Shown:
    """Return the answer of a study: over all conditions of its claim."""
    identity = is_identity(verdict)
    found = {
        "claim": verdict.claim,
        "word": standing(verdict),
        "sign": sign_of(verdict),
        "kind": kind_of(verdict),
        "class": colour_class(kind_of(verdict)),
        "amount": amount_of(verdict),
        "sentence": headline(replace(verdict, here="")),
        "whole": headline(verdict),
        "also": also_tried(verdict),
        "identity": identity,
        "premises": _premises(verdict),
        "margin": margin_of(verdict),
    }
    if described and is_described(verdict):
        found |= _DESCRIBED | {"kind": DESCRIBED, "amount": described_amount(verdict), "also": "", "premises": []}
        found |= dict.fromkeys(("sentence", "whole"), verdict.finding)
    return found


def _premises(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the premises, with what was seen; a premise that is not met is why there is no word, which is said."""
    rest = [premise for premise in verdict.premises if premise.words not in verdict.why]
    return [("met" if premise.met else "not met", premise.words) for premise in rest]


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    """Return how the headline was measured, as (what, value)."""
    what, p = p_words(verdict)
    effect = verdict.effect
    sure = "" if is_identity(verdict) or not effect.n else f"{effect.level * 100:.3g} %, {effect.method}"
    facts = [
        ("measured", verdict.endpoint),
        ("numbers", verdict.reason),
        ("seeds", str(effect.n)),
        ("interval", sure),
        (what, p),
        ("source", "; ".join(verdict.sources)),
    ]
    return [(name, value) for name, value in facts if name and value]


def _contrasts(verdicts: Sequence[Verdict], described: bool) -> list[Shown]:
    """Return the tables of contrasts: what was also tried, other claims of the study, identities."""
    if not verdicts:
        return []
    head = verdicts[0]
    others = [each for each in (*head.parts, *_flat(verdicts[1:])) if each.claim != head.claim]
    same = [*tried(head), *(each for each in _flat(verdicts[1:]) if each.claim == head.claim)]
    groups = []
    if len(same) > 1:
        rows = [_row(each, _condition(head, each), described) for each in same]
        rows[0]["condition"] = f"Headline: {rows[0]['condition']}"
        groups.append({"title": "Also tried", "tally": counted(len(same) - 1, "other condition"), "rows": rows})
    for title, chosen in (
        ("Other claims", [each for each in others if not is_identity(each)]),
        ("Identities", [each for each in others if is_identity(each)]),
    ):
        if chosen:
            rows = [_row(each, _condition(each, each), described) for each in chosen]
            rows = [row | {"claim": each.claim or each.endpoint} for row, each in zip(rows, chosen, strict=True)]
            groups.append({"title": title, "tally": counted(len(chosen), "contrast"), "rows": rows})
    return groups


def _flat(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [each for verdict in verdicts for each in ((verdict, *verdict.parts) if verdict.primary else (verdict,))]


def _condition(head: Verdict, verdict: Verdict) -> str:
    """Return the conditions of a contrast: all of a headline, of another contrast those in which it differs."""
    if verdict is not head:
        return differing(head, verdict)
    listed = [condition.value for condition in verdict.conditions if condition.name != "arms"]
    return ", ".join(listed) or next((condition.value for condition in verdict.conditions), verdict.endpoint)


def _row(verdict: Verdict, condition: str, described: bool) -> Shown:
    """Return a contrast of a table."""
    row = {
        "claim": "",
        "condition": condition,
        "amount": amount_of(verdict) or "–",
        "word": verdict.outcome.value,
        "sign": plots.outcome_icon(verdict.outcome),
        "class": colour_class(verdict.outcome.value),
        "why": verdict.why,
        "premises": [f"Premise, {met}: {words}" for met, words in _premises(verdict)],
    }
    if described and is_described(verdict):
        row |= _DESCRIBED | {"amount": described_amount(verdict), "why": "", "premises": []}
    return row


def _picture(verdict: Verdict) -> list[Figure]:
    """Draw the contrasts of a claim, where there is no figure from records."""
    rows = [each for each in tried(verdict) if not is_identity(each) and each.effect.n][:_MOST_ROWS]
    if not rows:
        return []
    labels = [_condition(verdict, each) for each in rows]
    return [plots.forest(rows, labels=labels, title="The effect under each condition", slug=f"{verdict.study}-effects")]


def _table(table: Table) -> Shown:
    """Return a table in words, with the columns that hold numbers marked."""
    numeric = [
        bool(table.rows) and all(_is_number(row[i]) or row[i] in (None, "") for row in table.rows)
        for i in range(len(table.columns))
    ]
    rows = [[cell(value) for value in row] for row in table.rows]
    return {"title": table.title, "columns": table.columns, "rows": rows, "caption": table.caption, "numeric": numeric}


def _is_number(value: Any) -> bool:
    """Return whether a cell holds a number, also as text ("−1.2e−4")."""
    if isinstance(value, int | float):
        return True
    try:
        float(str(value).replace("−", "-").removesuffix("%"))
    except ValueError:
        return False
    return True


def overview(studies: Sequence[Mapping[str, Any]], charts: Charts) -> Shown:
    """Return the top of the page: tiles of experiments and of identities, their number, and the effects in a chart.

    Args:
        studies: From `study`, in order.
        charts: The page's charts.
    """
    judged = [each for each in studies if each["verdict"]]
    experiments = [each for each in judged if not each["answer"]["identity"]]
    verdicts = [each["verdict"] for each in experiments]
    drawn = None
    if len(verdicts) > 1:
        drawn = figure(plots.forest(verdicts, title="All effects"), "overview", charts)
    return {
        "judged": len(judged),
        "experiments": experiments,
        "identities": [each for each in judged if each["answer"]["identity"]],
        "tally": tally([each["verdict"] for each in judged]),
        "forest": drawn,
    }
