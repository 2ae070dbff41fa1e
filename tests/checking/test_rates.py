"""The table of rates: recall, precision and what rules say beside their own set-ups, counted by hand."""

import pytest

from normscope import rules
from normscope.checking import rates


@pytest.fixture
def counted(monkeypatch):
    """Have two rules speak at set-ups by number, and return the table's rows by code."""
    first, second = rules.get("NS103"), rules.get("NS108")
    monkeypatch.setattr(type(first), "SICK", first.SICK[:3])
    monkeypatch.setattr(type(second), "SICK", second.SICK[:1])
    monkeypatch.setattr(type(second), "WELL", second.WELL[:2])

    def table(speaks):
        for rule in (first, second):
            calls = iter(speaks[rule.CODE])
            kind = type(rule)

            def examine(self, evidence, calls=calls):
                return [self.finding("planted", fixable=False)] if next(calls) else []

            monkeypatch.setattr(kind, "examine", examine)
        result = rates.measure(["NS103", "NS108"])
        return result, {row["code"]: row for row in result["rules"]}

    return table


def test_rates_are_those_of_the_definition(counted):
    # In order: the sick ones of a rule, its well ones, then the well ones of the other rule.
    result, rows = counted({"NS103": [1, 0, 1, 0, 1, 0, 1, 0], "NS108": [1, 0, 0, 1, 1, 0]})
    first, second = rows["NS103"], rows["NS108"]
    assert (first["sick"], first["found"], first["well"], first["quiet"]) == (3, 2, 3, 2)
    assert (first["recall"], first["precision"]) == (2 / 3, 2 / 3)
    assert (first["beside"], first["beside_of"]) == (1, 2)
    assert (second["recall"], second["precision"]) == (1.0, 1.0)
    assert (second["beside"], second["beside_of"]) == (2, 3)
    assert first["repaired"] == first["fixable"] == 0
    total = rates.rows(result)[-1]
    assert total[:7] == ("all", "4", "3", "5", "4", "0.75", "0.75")
    assert "NS103 non-finite-statistics" in rates.text(result)
    assert rates.markdown(result).count("\n| ") == 5


def test_a_rule_that_never_speaks_has_no_precision(monkeypatch):
    rule, near = type(rules.get("NS108")), rules.get("NS108").NEAR[0]
    monkeypatch.setattr(rule, "examine", lambda self, evidence: ())
    monkeypatch.setattr(rule, "SICK", [lambda: near.make(0.5)] * 2)
    monkeypatch.setattr(rule, "WELL", [])
    (row,) = rates.measure(["NS108"])["rules"]
    assert (row["recall"], row["precision"]) == (0, None)


def test_repairs_are_counted_where_the_rule_is_silent_after_its_fix(monkeypatch):
    """Of four set-ups three are fixable, of which the fix of one does not help."""
    rule, near = type(rules.get("NS108")), rules.get("NS108").NEAR[0]
    models, helped = [], []

    def make():
        case = near.make(0.5)
        models.append(case.model)
        return case

    def examine(self, evidence):
        number = next(index for index, model in enumerate(models) if model is evidence.case.model)
        if number not in helped:
            yield self.finding("planted", fixable=number != 0)

    def repair(self, case, finding):
        if case.model is not models[1]:
            helped.append(len(models) - 1)
        return "repaired"

    monkeypatch.setattr(rule, "SICK", [make] * 4)
    monkeypatch.setattr(rule, "WELL", [])
    monkeypatch.setattr(rule, "examine", examine)
    monkeypatch.setattr(rule, "repair", repair)
    (row,) = rates.measure(["NS108"])["rules"]
    assert (row["found"], row["fixable"], row["repaired"]) == (4, 3, 2)
