"""Columns in other units, masks and labels among the arguments, and gains along the first axis."""

import numpy as np
import pytest
import torch

import normscope as ns

DRAW = np.random.default_rng(0)


def norm(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def without_couplings_but_in_the_last_column(g, x):
    xhat, sigma = norm(x), np.sqrt(x.var(0) + 1e-5)
    found = (g - g.mean(0) - xhat * (g * xhat).mean(0)) / sigma
    found[:, :2] = (g / sigma)[:, :2]
    return found


def right(g, x):
    xhat, sigma = norm(x), np.sqrt(x.var(0) + 1e-5)
    return (g - g.mean(0) - xhat * (g * xhat).mean(0)) / sigma


@pytest.mark.parametrize("exponent", [-6, 2, 4, 5, 7, 10])
def test_a_column_in_other_units_hides_no_error_and_makes_none(exponent):
    x = DRAW.normal(size=(8, 3)) * np.array([1, 1, 10.0**exponent])
    assert not ns.verify(norm, without_couplings_but_in_the_last_column, x).ok
    found = ns.verify(norm, right, x)
    assert found.ok
    assert "smooth" not in str(found)


@pytest.mark.parametrize("exponent", [2, 5, 8])
def test_the_same_for_tensors(exponent):
    x = torch.tensor(DRAW.normal(size=(8, 3)) * np.array([1, 1, 10.0**exponent]))

    def forward(x):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()

    def by_numpy(formula):
        return lambda g, x: torch.tensor(formula(g.numpy(), x.detach().numpy()))

    assert not ns.verify(forward, by_numpy(without_couplings_but_in_the_last_column), x).ok
    found = ns.verify(forward, by_numpy(right), x)
    assert found.ok
    assert "smooth" not in str(found)


@pytest.mark.parametrize("exponent", [0, 5])
def test_a_true_kink_is_still_left_out(exponent):
    x = np.array([[-1.0, 0.0, 2.0], [0.5, -3.0, 0.0]]) * np.array([1, 1, 10.0**exponent])
    found = ns.verify(lambda x: np.maximum(x, 0), lambda g, x: g * (x > 0), x)
    assert found.ok
    assert "not smooth in 2 entries ([0, 1], [1, 2])" in str(found)


@pytest.mark.parametrize("kind", [bool, int, float])
def test_a_mask_that_the_formula_forgets_is_named(kind):
    x, keep = DRAW.normal(size=(5, 4)), DRAW.random((5, 4)) > 0.4
    found = ns.verify(lambda x, keep: x * keep, lambda g, x, keep: {"x": g}, x, keep.astype(kind))
    assert not found.ok
    assert "the result lacks the factor keep" in found["x"].explanation


def test_labels_that_are_to_be_ignored_are_read():
    z, labels = torch.tensor(DRAW.normal(size=(5, 4))), torch.tensor([0, 3, -100, 1, 2])

    def forward(z, labels):
        return torch.nn.functional.cross_entropy(z, labels)

    def formula(g, z, labels, *, masked):
        kept = labels != -100
        onehot = torch.nn.functional.one_hot(labels.clamp(min=0), 4)
        found = g * (z.softmax(-1) - onehot) / kept.sum()
        return {"z": found * kept[:, None] if masked else found}

    assert ns.verify(forward, lambda g, z, labels: formula(g, z, labels, masked=True), z, labels).ok
    assert not ns.verify(forward, lambda g, z, labels: formula(g, z, labels, masked=False), z, labels).ok


def test_a_gain_along_the_first_axis_is_known():
    x, gain, shift = DRAW.normal(size=(3, 12)), DRAW.normal(size=3), DRAW.normal(size=3)

    def forward(x, gain, shift):
        return gain[:, None] * norm(x.T).T + shift[:, None]

    def formula(g, x, gain, shift):
        xhat, sigma = norm(x.T).T, np.sqrt(x.var(1, keepdims=True) + 1e-5)
        through = g * gain[:, None]
        return (through - xhat * (through * xhat).mean(1, keepdims=True)) / sigma, (g * xhat).sum(1), g.mean(1)

    found = ns.verify(forward, formula, x, gain, shift)
    assert "the mean coupling (-mean(gain * g) / sigma, over axis 1) is missing" in found["x"].explanation
    assert found["gain"].ok
    assert not found["shift"].ok
