"""What a verification shows: text, a card for notebooks, values for JSON."""

import json
import math

import numpy as np
import pytest

import normscope as ns

X = np.random.default_rng(0).normal(size=(5, 4))
W = np.random.default_rng(1).normal(size=4)


def found(backward):
    return ns.verify(lambda x, w: x * w, backward, X, W)


def test_a_verdict_is_true_or_false_and_has_its_parts():
    right = found(lambda g, x, w: (g * w, (g * x).sum(0)))
    assert right
    assert (
        str(right).splitlines()[0]
        == "The gradient is right for x and w, compared with differences of forward in float64"
    )
    wrong = found(lambda g, x, w: (2 * g * w, g * x))
    assert not wrong
    assert wrong["x"].error == pytest.approx(1.0)
    assert wrong["x"].explanation == "the result is doubled"
    assert len(wrong["x"].where) == 2
    assert (wrong["w"].shape, wrong["w"].expected) == ((5, 4), (4,))
    assert math.isnan(wrong["w"].error)
    assert str(wrong).startswith("The gradient is wrong for x and w,")
    assert str(found(lambda g, x, w: (g * w, g * x))).startswith("1 of 2 gradients is wrong")
    with pytest.raises(KeyError):
        wrong["y"]


def test_json_is_strict():
    document = found(lambda g, x, w: {"x": g * w, "w": g * x}).to_json()
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["checked"][1]["shape"] == [5, 4]
    assert document["checked"][1]["error"] is None


def test_the_card_escapes_names():
    html = found(lambda g, x, w: (-g * w, None))._repr_html_()
    assert "wrong sign" in html
    assert "not checked" in html
    assert html.count("<li>") == 2
    assert "error</b>" not in html


def test_the_error_is_exact():
    """The relative error of a formula that is off by a known factor, and the entry that is off."""
    for factor in (1 + 1e-6, 0.9, -1.0):
        verdict = found(lambda g, x, w, factor=factor: (factor * g * w, None))["x"]
        assert verdict.error == pytest.approx(abs(factor - 1), rel=1e-6)

    def one_entry(g, x, w):
        result = g * w
        result[2, 3] += 1.0
        return result, None

    verdict = found(one_entry)["x"]
    assert verdict.where == (2, 3)
    assert not verdict.known
    assert "no known term" in verdict.explanation


def test_the_seed_decides_all():
    one, two, three = (ns.verify(np.tanh, lambda g, x: g * (1 - np.tanh(x)), X, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one["x"].error != three["x"].error
