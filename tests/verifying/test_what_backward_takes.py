"""What a backward function may take and return: inputs, output, cache; tuples, lists, dicts, None."""

import numpy as np
import pytest
import torch

import normscope as ns

X = np.random.default_rng(0).normal(size=(5, 4))
W = np.random.default_rng(1).normal(size=4)


def forward(x, w):
    return np.tanh(x * w)


def with_cache(x, w):
    y = np.tanh(x * w)
    return y, (x, w, y)


def gradients(g, x, w, y):
    inner = g * (1 - y**2)
    return inner * w, (inner * x).sum(0)


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (forward, lambda g, x, w: gradients(g, x, w, np.tanh(x * w))),
        (forward, lambda g, x, w: list(gradients(g, x, w, np.tanh(x * w)))),
        (forward, lambda g, x, w: dict(zip("wx", gradients(g, x, w, np.tanh(x * w))[::-1], strict=True))),
        (forward, lambda g, *inputs: gradients(g, *inputs, np.tanh(inputs[0] * inputs[1]))),
        (forward, lambda g, x, w, output: gradients(g, x, w, output)),
        (forward, lambda g, x, w, *, output: gradients(g, x, w, output)),
        (with_cache, lambda g, cache: gradients(g, *cache)),
        (with_cache, lambda g, x, w, cache: gradients(g, x, w, cache[2])),
        (with_cache, lambda g, x, w, output, cache: gradients(g, x, w, output)),
    ],
)
def test_a_right_formula_is_right_however_it_is_written(forward, backward):
    found = ns.verify(forward, backward, X, W)
    assert [each.ok for each in found.checked] == [True, True]


@pytest.mark.parametrize("result", [lambda one: (one, None), lambda one: {"x": one}, lambda one: [one, None]])
def test_an_argument_can_be_left_out(result):
    def backward(g, x, w):
        return result(gradients(g, x, w, np.tanh(x * w))[0])

    found = ns.verify(forward, backward, X, W)
    assert (found["x"].ok, found["w"].ok) == (True, None)
    assert found.ok
    assert "no gradient" in found["w"].explanation


def test_one_argument_needs_no_tuple():
    for result in (lambda one: one, lambda one: (one,), lambda one: [one], lambda one: {"x": one}):
        assert ns.verify(lambda x: x**3, lambda g, x, result=result: result(3 * g * x**2), X).ok


@pytest.mark.parametrize("eps", [1e-3, torch.tensor(1), None])
def test_constants_may_be_left_out_of_the_tuple(eps):
    def forward(x, eps, w):
        return x * w * (1.0 if eps is None else float(eps))

    def backward(g, x, eps, w):
        factor = 1.0 if eps is None else float(eps)
        return g * w * factor, (g * x).sum(0) * factor

    x, w = torch.tensor(X), torch.tensor(W)
    assert ns.verify(forward, backward, x, eps, w).ok
    assert ns.verify(forward, lambda *args: (backward(*args)[0], None, backward(*args)[1]), x, eps, w).ok


def test_arguments_without_names_are_numbered():
    found = ns.verify(lambda *inputs: inputs[0] * inputs[1], lambda g, x, w: (g * w, (g * x).sum(0)), X, W)
    assert [each.name for each in found.checked] == ["argument 0", "argument 1"]


def test_tensors_and_arrays_may_be_mixed_in_results():
    x, w = torch.tensor(X), torch.tensor(W)

    def backward(g, x, w):
        return (g * w).numpy(), (g * x).sum(0).float()

    found = ns.verify(lambda x, w: x * w, backward, x, w)
    assert found.ok
    assert found["w"].tolerance > found["x"].tolerance
    assert found.notes == ("w: the formula gives float32, so errors up to 1e-05 count as rounding",)


@pytest.mark.parametrize("value", [torch.tensor(3.0), np.array(3.0), np.float64(3.0)])
def test_a_scalar_input_has_a_scalar_gradient(value):
    assert ns.verify(lambda x: x**2, lambda g, x: 2 * g * x, value).ok
    assert ns.verify(lambda x: x**2, lambda g, x: g * x, value)["x"].explanation == "the result is halved"


def test_a_scalar_output_has_a_scalar_gradient():
    def backward(g, x):
        assert g.shape == ()
        return g * 2 * x

    assert ns.verify(lambda x: (x**2).sum(), backward, X).ok
    assert ns.verify(lambda x: (x**2).sum(), backward, torch.tensor(X)).ok
