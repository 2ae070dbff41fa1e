"""What cannot be verified is named in a line that says what to do; what is odd but can be, in a note."""

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns

X = np.random.default_rng(0).normal(size=(5, 4))
W = np.random.default_rng(1).normal(size=4)


def double(x):
    return x * 2.0


def double_gradient(g, x):
    return g * 2.0


def scaled(x, w):
    return x * w


def scaled_gradient(g, x, w):
    return g * w, (g * x).sum(0)


def noisy(x):
    return x + np.random.default_rng().normal(size=x.shape)


def in_place(x):
    x *= 2.0
    return x


def spoils_input(g, x):
    x *= 0.0
    return g * 2.0


def spoils_gradient(g, x):
    g *= 2.0
    return g


def raises(g, x):
    return g[7]


def draws(g, x):
    return g * np.random.default_rng().normal()


class Affine(nn.Module):
    """A module with parameters in float32."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("forward", "backward", "inputs", "said"),
    [
        (3, double_gradient, [X], "forward is 3: give a function"),
        (double, None, [X], "backward is None: give a function"),
        (double, double_gradient, [], "there are no inputs"),
        (double, double_gradient, [X, X], r"forward takes 1 arguments \(x\), and 2 inputs were given"),
        (scaled, scaled_gradient, [X, torch.ones(4)], "give all as one kind"),
        (double, double_gradient, [X.astype(int)], "no input is an array of floats"),
        (double, double_gradient, [X + 1j], "x holds complex numbers"),
        (double, double_gradient, [np.array([1.0, np.nan])], r"x holds a value that is not finite, first at \[1\]"),
        (double, double_gradient, [np.zeros((0, 3))], "x has the shape .* so it is empty|no input"),
        (noisy, double_gradient, [X], "another output when it is called again.*dropout"),
        (np.log, lambda g, x: g / x, [X], "not finite, first at"),
        (lambda x: [x, x, x], double_gradient, [X], "forward returned an object of type list"),
        (lambda x: x.astype(np.float32), double_gradient, [X], "forward returned float32"),
        (lambda x: x[7], double_gradient, [X], r"forward\(x\) raised IndexError.*test_bad_input.py:\d+"),
        (double, raises, [X], r"backward\(g, ...\) raised IndexError.*test_bad_input.py:\d+"),
        (double, spoils_input, [X], "backward changes its input x in place"),
        (double, spoils_gradient, [X], "backward changes g, the incoming gradient, in place"),
        (double, draws, [X], "backward gives another result when it is called again"),
        (double, lambda g, x: None, [X], "returned None for every argument"),
        (scaled, double_gradient, [X, W], r"takes 2 positional arguments but 3 were given"),
        (scaled, lambda g, x, w: g, [X, W], "returned one array for the arguments x, w: return a tuple"),
        (scaled, lambda g, x, w: (g, g, g), [X, W], "returned 3 results for the 2 arguments x, w"),
        (scaled, lambda g, x, w: {"x": g, "weight": w}, [X, W], "'weight': forward has no such argument"),
        (double, lambda g, x: g > 0, [X], "returned bool for x: a gradient is an array of floats"),
        (double, lambda g, x: np.ones(x.shape, int), [X], "returned integers"),
        (double, lambda g, x: "none", [X], "returned"),
        (double, lambda g, x, cache: g, [X], "backward wants a cache, but forward returns the output alone"),
        (lambda x: x[x > 0], double_gradient, [X], "its shape must not depend on them"),
        (double, double_gradient, [3.0], r"plain numbers are constants; give an array"),
        (double, double_gradient, [np.zeros((101, 100))], "10,100 entries.*10,000 entries at most"),
    ],
)
def test_a_mistake_is_one_line(forward, backward, inputs, said):
    with pytest.raises(ns.UsageError, match=said) as caught:
        ns.verify(forward, backward, *inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("forward", "backward", "inputs", "said"),
    [
        (lambda x: x.detach(), double_gradient, [torch.ones(3)], "does not depend on its inputs for torch's autograd"),
        (lambda x: Affine()(x), double_gradient, [torch.ones(2, 4)], "mixes precisions"),
        (nn.Dropout(), double_gradient, [torch.ones(9, 9)], "another output when it is called again"),
        (lambda x: x.numpy(), double_gradient, [torch.ones(3)], "forward"),
    ],
)
def test_a_mistake_with_tensors_is_one_line(forward, backward, inputs, said):
    with pytest.raises(ns.UsageError, match=said) as caught:
        ns.verify(forward, backward, *inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "a"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ns.UsageError, match="seed is"):
        ns.verify(double, double_gradient, X, seed=seed)


def test_the_inputs_stay_as_they_were():
    x = X.copy()
    with pytest.raises(ns.UsageError, match="forward changes its input x in place"):
        ns.verify(in_place, double_gradient, x)
    assert np.array_equal(x, X)
    tensor = torch.tensor(X, requires_grad=True)
    with pytest.raises(ns.UsageError, match="forward changes its input x in place"):
        ns.verify(lambda x: x.mul_(2.0), double_gradient, tensor)
    assert ns.verify(double, double_gradient, tensor).ok
    assert tensor.grad is None
    assert torch.equal(tensor.detach(), torch.tensor(X))


def test_parameters_and_low_precision_are_taken_and_said():
    linear = nn.Linear(4, 3)
    x = torch.randn(5, 4)

    def backward(g, x, w):
        return g @ w, g.T @ x

    found = ns.verify(lambda x, w: x @ w.T, backward, x, linear.weight)
    assert found.ok
    assert any("float64" in note and "float32" in note for note in found.notes)
    assert linear.weight.grad is None


def test_an_argument_that_forward_reads_elsewhere_is_noted():
    linear = nn.Linear(4, 3).double()
    found = ns.verify(
        lambda x, weight: linear(x), lambda g, x, weight: (None, g.T @ x), torch.randn(5, 4), linear.weight
    )
    assert found["weight"].ok is False
    assert any("weight" in note and "does not depend on it" in note for note in found.notes)


def test_a_module_computes_in_float64_and_stays_as_it_was():
    norm = nn.BatchNorm1d(4)
    before = {name: value.clone() for name, value in norm.state_dict().items()}

    def backward(g, input):
        return ns.ops.batch_norm_backward_terms(g, input).total()

    assert ns.verify(norm, backward, torch.randn(6, 4)).ok
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    assert norm.weight.dtype is torch.float32


def test_integers_are_constants_and_said():
    labels = np.array([0, 2, 1, 1, 0])

    def forward(x, labels):
        return x[np.arange(len(x)), labels]

    def backward(g, x, labels):
        found = np.zeros_like(x)
        found[np.arange(len(x)), labels] = g
        return found

    found = ns.verify(forward, backward, X, labels)
    assert found.ok
    assert found["labels"].ok is None
    assert "int64" in found["labels"].explanation


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_entries_at_a_kink_are_left_out_and_said(kind):
    x = X.copy()
    x[1, 2] = x[3, 0] = 0.0
    found = ns.verify(lambda x: x * (x > 0), lambda g, x: g * (x > 0), kind(x))
    assert found.ok
    (note,) = [note for note in found.notes if "not smooth" in note]
    assert "2 entries ([1, 2], [3, 0])" in note
    wrong = ns.verify(lambda x: x * (x > 0), lambda g, x: g * (x > 0.5), kind(x))
    assert not wrong.ok


def test_a_detached_value_is_said():
    def forward(x):
        return x * x.detach()

    found = ns.verify(forward, lambda g, x: g * x, torch.tensor(X))
    assert found.ok
    assert any("detaches a value" in note for note in found.notes)


def test_results_that_are_not_finite_are_wrong_and_say_where():
    found = ns.verify(double, lambda g, x: np.where(x == x[1, 2], np.inf, 2 * g), X)
    assert found["x"].ok is False
    assert found["x"].where == (1, 2)
    assert "not finite" in found["x"].explanation


def test_a_right_formula_at_a_gain_of_one_is_not_enough():
    """The trap of tests of gradients: at weight 1 and bias 0 half of the terms vanish."""
    found = ns.verify(scaled, lambda g, x, w: (g, (g * x).sum(0)), X, np.ones(4))
    assert found["x"].ok is False
    assert "right at the given inputs only" in found["x"].explanation
    assert "factor w" in found["x"].explanation


def test_masks_and_shares_keep_their_property_beside_the_inputs():
    mask = (np.random.default_rng(0).random(X.shape) > 0.5).astype(float)
    assert ns.verify(lambda x, mask: x * mask**2, lambda g, x, mask: (g * mask, None), X, mask).ok
    shares = np.exp(X) / np.exp(X).sum(1, keepdims=True)

    def loss(x, t):
        return -(t * (x - np.log(np.exp(x).sum(1, keepdims=True)))).sum()

    def gradient(g, x, t):
        return g * (np.exp(x) / np.exp(x).sum(1, keepdims=True) - t), None

    assert ns.verify(loss, gradient, X, shares).ok


def test_a_formula_that_is_not_linear_in_the_gradient_is_said():
    found = ns.verify(double, lambda g, x: 2 * g * np.abs(g), X)
    assert not found.ok
    assert any("not linear in the incoming gradient" in note for note in found.notes)
