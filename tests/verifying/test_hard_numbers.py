"""Numbers that are hard for differences: large offsets, tiny and huge scales, constants, steep functions."""

import numpy as np
import pytest
import torch

import normscope as ns
from kit.gradient_formulas import RIGHT
from normscope.verifying.differences import along

WAYS = {
    "offset": lambda x: x + 1e6 if x.ndim > 1 else x,
    "tiny": lambda x: 1e-6 * x,
    "huge": lambda x: 1e6 * x,
    "constant": lambda x: np.where(np.arange(x.shape[-1]) == 0, 0.3, x),
    "rows of two": lambda x: x[:2] if x.ndim == 2 else x,
}


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["batch norm", "l2 normalize", "unbiased batch norm"])
def test_a_right_formula_stays_right(name, way, kind):
    formula, random = RIGHT[name], np.random.default_rng(3)
    inputs = [kind(WAYS[way](random.normal(size=shape))) for shape in formula.shapes]
    found = ns.verify(formula.forward, formula.backward, *inputs)
    assert found.ok, str(found)
    assert max(each.tolerance for each in found.checked) < 1e-4


def np_var(z):
    """NumPy's variance of complex numbers is real, so complex steps do not work here."""
    return (z - z.mean(0)) / np.sqrt(np.var(z, axis=0) + 1e-5)


def right(g, z):
    s = np.sqrt(z.var(0) + 1e-5)
    h = (z - z.mean(0)) / s
    return (g - g.mean(0) - h * (h * g).mean(0)) / s


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e4])
def test_a_wrong_eps_is_seen_without_complex_steps(offset):
    z = offset + np.random.default_rng(0).normal(size=(6, 3))
    assert ns.verify(np_var, right, z).ok

    def without_eps(g, z):
        s = z.std(0)
        h = (z - z.mean(0)) / s
        return (g - g.mean(0) - h * (h * g).mean(0)) / s

    found = ns.verify(np_var, without_eps, z)["z"]
    assert found.ok is False
    assert "leaves out eps" in found.explanation or offset == 1e4


@pytest.mark.parametrize(
    ("function", "at", "derivative"),
    [
        (np.exp, 1.0, np.e),
        (np.sin, 1e3, np.cos(1e3)),
        (lambda x: 1 / x, 1e-3, -1e6),
        (np.tanh, 0.5, 1 - np.tanh(0.5) ** 2),
    ],
)
def test_the_error_of_a_derivative_is_no_larger_than_its_estimate(function, at, derivative):
    noise = np.array([abs(function(at)) + abs(at * derivative)]) * 2.0**-52
    made = along(lambda step: np.array([function(at + step)]), min(abs(at), 1.0), noise)
    assert abs(made.value[0] - derivative) <= 3 * made.error[0]
    assert made.error[0] <= 1e-8 * abs(derivative)
    assert not made.kink


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_a_kink_is_seen_only_where_there_is_one(slope):
    made = along(lambda step: np.array([step if step > 0 else slope * step]), 1.0, np.zeros(1))
    assert made.kink == (slope < 1)
    assert made.value[0] == pytest.approx((1 + slope) / 2)


def test_entries_without_a_gradient_of_autograd_are_left_out():
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    found = ns.verify(
        lambda x: x.std(1), lambda g, x: g[:, None] * (x - x.mean(1, keepdim=True)) / 2 / x.std(1, keepdim=True), x
    )
    assert found.ok
    assert any("in 3 entries" in note for note in found.notes)


def test_a_gradient_that_is_zero_is_compared_by_its_natural_size():
    """The gradient of the bias in front of a batch norm is zero, in numbers a few roundings."""
    z = np.random.default_rng(0).normal(size=(6, 3))

    def forward(b):
        return np_var(z + b)

    assert ns.verify(forward, lambda g, b: 0 * b, np.ones(3)).ok
    assert ns.verify(forward, lambda g, b: 1e-16 * g.sum(0), np.ones(3)).ok
    assert not ns.verify(forward, lambda g, b: g.sum(0), np.ones(3)).ok
    assert not ns.verify(forward, lambda g, b: 1e-5 * g.sum(0), np.ones(3)).ok
