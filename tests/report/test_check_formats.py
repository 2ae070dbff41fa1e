"""Findings as text, JSON and SARIF: nothing is lost, nothing that a user named breaks a format."""

import json
import math
import os
from pathlib import Path

import jsonschema
import pytest

from normscope.records import Finding, Severity
from normscope.report import Checked, FixNote, GapNote, LossNote, RuleNote, check_json, check_sarif, check_text

HOSTILE = "a[red]b\x1b[31m\n</x>\"'{{1}}\u2028\U0001f600"

WORST = Finding(
    "NS102",
    "train-eval-gap",
    Severity.ERROR,
    "running statistics are not those of the data",
    tuple(f"layers.{i}.norm" for i in range(40)),
    quantity="loss in eval mode over that with pooled statistics",
    measured=3.14159,
    bound=1.2,
    cost="the loss in eval mode is 3.1",
    fix="recalibrate them",
    fixable=True,
    details={"shift": math.inf, "off": math.nan},
)
SAFE = Finding(
    "NS110", "double-update", Severity.WARNING, "twice a step", ("a.b",), fix="convert", safe=True, fixable=True
)
BY_HAND = Finding("NS122", "redundant-bias", Severity.INFO, f"a bias {HOSTILE}", (HOSTILE,), measured=math.nan, fix="x")
WHOLE = Finding("NS113", "gradient-accumulation", Severity.WARNING, "it is the whole", fix="")
RULES = tuple(
    RuleNote(
        one.code, one.slug, f"About {one.slug}.", one.severity, one.safe, (("Finds", "What\nit finds."), ("Fix", "x"))
    )
    for one in (WORST, SAFE, WHOLE, BY_HAND)
)
FULL = Checked(
    "net.py:make",
    (WORST, SAFE, WHOLE, BY_HAND),
    ignored=((SAFE, "on purpose"),),
    rules=RULES,
    gap=GapNote(1.0, math.inf, 4, (("running statistics", math.inf, "recalibrate"), ("dropout", -0.5, "none"))),
    failed=(("NS110", "KeyError: 'x'"), ("NS113", "KeyError: 'x'")),
    fixes=(
        FixNote(WORST, "recalibrated", "", 3, ("momentum of 1 module",), (LossNote("evaluation", 2.5, math.nan),)),
        FixNote(SAFE, why_not="unsafe"),
    ),
    saved=("x.pt: 3 tensors",),
    notes=("a note",),
    file="net.py",
    line=7,
    seconds=1.25,
)
EMPTY = Checked("m:f")


def _sections(text):
    return text.split("\n\n")


def test_text_says_code_place_number_bound_cost_fix_and_page():
    parts = {part.partition(":")[0]: part for part in _sections(check_text(FULL))}
    worst = parts["error[NS102] train-eval-gap"]
    assert "at         layers.0.norm, layers.1.norm, layers.2.norm and 37 more" in worst
    assert "layers.3.norm" not in worst
    assert "measured   loss in eval mode over that with pooled statistics: 3.142 (bound: 1.2)" in worst
    assert "costs      the loss in eval mode is 3.1" in worst
    assert "--unsafe-fixes applies it]" in " ".join(worst.split())
    assert "normscope check --explain NS102" in worst
    assert "[safe: --fix applies it]" in parts["warning[NS110] double-update"]
    assert "at         the whole model" in parts["warning[NS113] gradient-accumulation"]
    assert "[by hand]" in parts["info[NS122] redundant-bias"]


def test_text_tells_fixes_failures_notes_and_counts():
    text = check_text(FULL)
    assert "(changed 3 tensors of the state dict and, which no" in text
    assert "not fixed  NS110 double-update at a.b: unsafe" in text
    assert "of evaluation 2.5 before, nan after" in text
    assert "saved      x.pt: 3 tensors" in text
    assert "not judged NS110, NS113: KeyError: 'x'" in text
    assert "ignored    NS110 double-update at a.b: on purpose" in text
    assert "The loss is 1 in training and inf in evaluation" in text
    last = text.splitlines()[-1]
    assert last.startswith("1 error, 2 warnings, 1 info: 4 rules looked at net.py:make in 1.2 s")
    assert last.endswith("1 fixable with --fix; 1 more with --unsafe-fixes")
    assert check_text(EMPTY) == "nothing found: 0 rules looked at m:f\n"


def test_four_places_are_shown_whole_and_five_are_not():
    four = Finding("NS1", "x", Severity.INFO, "m", tuple("abcd"))
    five = Finding("NS1", "x", Severity.INFO, "m", tuple("abcde"))
    assert "a, b, c, d\n" in check_text(Checked("t", (four,)))
    assert "a, b, c and 2 more\n" in check_text(Checked("t", (five,)))


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_text_keeps_to_the_width_and_obeys_no_control_character(width):
    text = check_text(FULL, width=width)
    assert "\x1b" not in text
    assert "a[red]b\\x1b[31m" in text.replace("\n", "").replace(" ", "") or width < 100
    body = text.splitlines()[:-1]
    assert max(map(len, body)) <= width
    words = " ".join(text.split())
    assert "running statistics are not those of the data" in words


@pytest.mark.parametrize("name", ["Schicht-ß", "層", "a\tb", "a\x1b[31mb", "a\u202eb"])
def test_names_are_shown_as_they_are_and_control_characters_by_their_code(name):
    text = check_text(Checked("t", (Finding("NS1", "x", Severity.INFO, "m", (name,)),)))
    shown = name if name.isprintable() else repr(name)[1:-1]
    assert f"{shown}\n" in text


def test_a_word_longer_than_the_line_is_not_cut():
    place = "a" * 70
    text = check_text(
        Checked("t", (Finding("NS1", "x", Severity.INFO, "two words and more " * 4, (place,)),)), width=40
    )
    assert place in "".join(text.split())


def test_color_changes_no_word():
    import re

    colored = check_text(FULL, color=True)
    assert "\x1b[" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored).split() == check_text(FULL).split()


def test_json_holds_everything_and_is_strict():
    document = json.loads(check_json(FULL), parse_constant=lambda word: pytest.fail(word))
    assert (document["schema"], document["version"]) == ("normscope.check", 1)
    assert document["summary"] == {"error": 1, "warning": 2, "info": 1}
    worst = document["findings"][0]
    assert len(worst["places"]) == 40
    assert worst["measured"] == 3.14159
    assert worst["details"] == {"shift": "inf", "off": "nan"}
    assert document["findings"][3]["places"] == [HOSTILE]
    assert document["ignored"] == [
        {"code": "NS110", "slug": "double-update", "places": ["a.b"], "reason": "on purpose"}
    ]
    share = {"cause": "running statistics", "loss": "inf", "explanation": "recalibrate", "error": None}
    assert document["gap"]["shares"][0] == share
    assert document["fixes"][0]["beyond_state_dict"] == ["momentum of 1 module"]
    assert document["fixes"][0]["losses"] == [{"of": "evaluation", "before": 2.5, "after": "nan"}]
    assert (document["fixes"][1]["why_not"], document["fixes"][1]["losses"]) == ("unsafe", [])
    assert document["rules"] == ["NS102", "NS110", "NS113", "NS122"]
    assert document["failed"][0] == {"code": "NS110", "why": "KeyError: 'x'"}
    assert json.loads(check_json(EMPTY))["gap"] is None


def test_the_error_of_a_share_stands_beside_it_where_it_is_known():
    shares = (("dropout", -0.5, "none"), ("other data", 0.25, "b"))
    checked = Checked("t", gap=GapNote(1.0, 0.75, 4, shares, (0.125, 0.0)))
    lines = [line.split() for line in check_text(checked).splitlines()]
    assert ["-0.5", "±", "0.12", "dropout", "none"] in lines
    assert ["+0.25", "other", "data", "b"] in lines
    assert [share["error"] for share in json.loads(check_json(checked))["gap"]["shares"]] == [0.125, None]


def test_the_keys_of_json_are_those_of_its_version():
    """A key that goes or changes its meaning needs another version: programs read this."""
    document = json.loads(check_json(FULL))
    assert set(document) == set(json.loads(check_json(EMPTY)))
    assert set(document) == {
        *("schema", "version", "target", "file", "line", "seconds", "summary", "findings", "ignored", "gap"),
        *("fixes", "saved", "rules", "failed", "notes", "settings"),
    }
    assert set(document["findings"][0]) == {
        *("code", "slug", "severity", "message", "places", "quantity", "measured", "bound"),
        *("cost", "fix", "safe", "fixable", "details"),
    }


# What SARIF 2.1.0 requires of the objects that are written, and the values that it allows them.
_MESSAGE = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
_LEVEL = {"enum": ["none", "note", "warning", "error"]}
_RULE = {
    "type": "object",
    "required": ["id"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string"},
        "name": {"type": "string", "pattern": "^[A-Z][A-Za-z0-9]*$"},
        "shortDescription": _MESSAGE,
        "fullDescription": _MESSAGE,
        "help": _MESSAGE,
        "defaultConfiguration": {"type": "object", "properties": {"level": _LEVEL}, "additionalProperties": False},
        "properties": {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}},
    },
}
_REGION = {"type": "object", "required": ["startLine"], "properties": {"startLine": {"type": "integer", "minimum": 1}}}
_LOCATION = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation"],
            "additionalProperties": False,
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "required": ["uri"],
                    "properties": {"uri": {"type": "string", "pattern": "^[^ \\\\]+$"}},
                },
                "region": _REGION,
            },
        },
        "logicalLocations": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {key: {"type": "string"} for key in ("name", "fullyQualifiedName", "kind")},
            },
        },
    },
}
_RESULT = {
    "type": "object",
    "required": ["message", "ruleId", "ruleIndex", "level"],
    "additionalProperties": False,
    "properties": {
        "ruleId": {"type": "string"},
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": _LEVEL,
        "message": _MESSAGE,
        "locations": {"type": "array", "items": _LOCATION},
        "partialFingerprints": {"type": "object", "additionalProperties": {"type": "string"}},
        "suppressions": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["kind"],
                "properties": {
                    "kind": {"enum": ["inSource", "external"]},
                    "status": {"enum": ["accepted", "underReview", "rejected"]},
                },
            },
        },
        "properties": {"type": "object"},
    },
}
_SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "additionalProperties": False,
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "semanticVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+"},
                                    "rules": {"type": "array", "uniqueItems": True, "items": _RULE},
                                },
                            }
                        },
                    },
                    "invocations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["executionSuccessful"],
                            "properties": {"executionSuccessful": {"type": "boolean"}},
                        },
                    },
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "results": {"type": "array", "items": _RESULT},
                },
            },
        },
    },
}


@pytest.mark.parametrize("checked", [FULL, EMPTY])
def test_sarif_has_what_the_standard_requires(checked):
    text = check_sarif(checked, version="0.1.0")
    log = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    jsonschema.Draft7Validator(_SARIF).validate(log)
    run = log["runs"][0]
    described = run["tool"]["driver"]["rules"]
    assert len(run["results"]) == len(checked.findings) + len(checked.ignored)
    for result in run["results"]:
        assert described[result["ruleIndex"]]["id"] == result["ruleId"]


@pytest.mark.extras
@pytest.mark.parametrize("checked", [FULL, EMPTY])
def test_sarif_fits_the_schema_of_the_standard_where_that_is_at_hand(checked):
    path = os.environ.get("SARIF_SCHEMA")
    if path is None:
        pytest.skip("SARIF_SCHEMA names no sarif-schema-2.1.0.json; npm's @microsoft/jest-sarif brings one along")
    schema = json.loads(Path(path).read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)
    log = json.loads(check_sarif(checked, version="0.1.0"))
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(log)
    log["runs"][0]["tool"]["driver"]["name"] = 3
    with pytest.raises(jsonschema.ValidationError):
        validator(schema).validate(log)


def test_sarif_is_refused_by_the_test_where_it_is_broken():
    log = json.loads(check_sarif(FULL, version="0.1.0"))
    log["runs"][0]["results"][0]["level"] = "info"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(_SARIF).validate(log)


def test_sarif_says_where_and_what_is_suppressed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = json.loads(check_sarif(FULL, version="0.1.0"))["runs"][0]
    worst, *_, ignored = log["results"]
    location = worst["locations"][0]
    assert location["physicalLocation"] == {"artifactLocation": {"uri": "net.py"}, "region": {"startLine": 7}}
    assert len(location["logicalLocations"]) == 40
    assert location["logicalLocations"][3]["fullyQualifiedName"] == "layers.3.norm"
    assert "Measured loss in eval mode over that with pooled statistics: 3.142, bound 1.2." in worst["message"]["text"]
    assert ignored["suppressions"][0]["justification"] == "on purpose"
    assert [result["level"] for result in log["results"]] == ["error", "warning", "warning", "note", "warning"]
    assert log["invocations"][0]["executionSuccessful"] is False
    prints = [result["partialFingerprints"]["codeAndPlaces/v1"] for result in log["results"]]
    assert len(set(prints)) == 4  # the suppressed one is the same finding
    far = Checked("t", (SAFE,), rules=RULES, file="/elsewhere/a file.py")
    uri = json.loads(check_sarif(far, version="0.1.0"))["runs"][0]["results"][0]["locations"][0]
    assert uri["physicalLocation"] == {"artifactLocation": {"uri": "file:///elsewhere/a%20file.py"}}


@pytest.mark.parametrize("line", [0, 1, 7])
def test_sarif_names_the_line_that_is_known(line):
    run = json.loads(check_sarif(Checked("t", (WORST,), file="net.py", line=line), version="1"))["runs"][0]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place.get("region") == ({"startLine": line} if line else None)
