"""``normscope verify``: a file in, verdicts and an exit code out."""

import json

import pytest

NOTE = """
import numpy as np

def forward(x, w):
    print("forward runs")
    return x * w

def backward(g, x, w):
    return g * w, (g * x).sum(0)

def wrong(g, x, w):
    return g, (g * x).sum(0)

def inputs():
    return np.arange(1.0, 7.0).reshape(3, 2), np.array([2.0, 3.0])

def make():
    return forward, wrong, inputs

def alone():
    return (lambda x: 2 * x), (lambda g, x: 2 * g), np.ones(3)

def pair():
    return forward, backward

def breaks():
    return 1 / 0

def bad_inputs():
    return forward, backward, 7
"""


@pytest.fixture
def note(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.py").write_text(NOTE, encoding="utf-8")


def test_a_right_formula_ends_with_0(run, note):
    done = run("verify", "note.py")
    assert done.stdout.startswith("The gradient is right for x and w")
    assert "forward runs" not in done.stdout
    assert run("verify", "note.py:alone").stdout.startswith("The gradient is right for x,")


def test_a_wrong_formula_ends_with_1(run, note):
    text = run("verify", "note.py:make", code=1).stdout
    assert "x: wrong" in text
    assert "lacks a factor w" in text
    assert "w: right" in text


def test_json_has_what_the_text_has(run, note):
    document = json.loads(run("verify", "note.py:make", "--json", code=1).stdout)
    assert document["ok"] is False
    assert {each["name"]: each["ok"] for each in document["checked"]} == {"x": False, "w": True}
    assert "factor w" in document["checked"][0]["explanation"]
    assert json.loads(run("verify", "note.py", "--json").stdout)["ok"] is True


def test_the_example_is_a_file_that_can_be_verified(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.py").write_text(run("verify", "--example").stdout, encoding="utf-8")
    lines = run("verify", "note.py", code=1).stdout.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("gamma: right")
    assert lines[3] == "beta: wrong: the result lacks the sum over axis 0, the batch"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--example > note.py"),
        (["note.py", "--example"], "give no file with it"),
        (["other.py"], "there is no file other.py"),
        (["."], "is a folder"),
        (["note.py:mak"], "did you mean make"),
        (["note.py:np"], "must be a function"),
        (["note.py:pair"], "must return three things"),
        (["note.py:breaks"], "breaks() raised ZeroDivisionError: division by zero (note.py:27)"),
        (["note.py:bad_inputs"], "inputs is 7"),
        (["empty.py"], "has no 'forward'"),
    ],
)
def test_a_mistake_is_one_line(refuse, note, tmp_path, words, said):
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    assert said in refuse("verify", *words)
