"""What is measured of the backward pass over features: theory, gains, and a formula that is wrong."""

import math

import pytest
import torch
from torch import nn

from normscope import ops
from normscope.studies.lab.feature_terms import arriving, errors_of_tokens, random_tokens

EPS = 1e-12


@pytest.mark.parametrize(("norm", "taken"), [("layer", 2), ("rms", 1)])
@pytest.mark.parametrize("width", [6, 40])
def test_a_random_gradient_loses_its_share_of_directions(norm, taken, width):
    found = errors_of_tokens(*random_tokens(3, 20000, width), EPS, norm)
    assert found["error"] == pytest.approx(math.sqrt(taken / (width - taken)), rel=0.04)
    # The terms are a projection: what they remove, the mean's part and the variance's, is what the rescaling has more.
    shares = found["mean_share"] + found["variance_share"]
    assert found["error"] ** 2 == pytest.approx(shares / (1 - shares), rel=1e-6)
    assert found["cosine"] == pytest.approx(math.sqrt(1 - shares), rel=1e-6)
    assert (found["mean_share"] == 0) == (norm == "rms")


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_right_formulas_are_at_rounding_and_wrong_formulas_are_not(norm, eps):
    found = errors_of_tokens(*random_tokens(1, 300, 12), eps, norm)
    assert max(found["full_error"], found["gamma_error"], found.get("beta_error", 0.0)) < 1e-12
    assert found["difference_error"] < 1e-7
    assert min(found["error"], found["outer_error"]) > 0.03
    assert ("beta_error" in found) == (norm == "layer")


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_with_equal_gains_the_gain_may_stand_in_front(norm):
    x, upstream, _, bias = random_tokens(2, 100, 9)
    found = errors_of_tokens(x, upstream, torch.full((9,), 1.7, dtype=torch.float64), bias, EPS, norm)
    assert found["outer_error"] < 1e-12


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_term_with_a_wrong_sign_is_caught(norm, monkeypatch):
    right = getattr(ops, f"{norm}_norm_backward_terms")

    def wrong(*args):
        terms = right(*args)
        return terms._replace(variance_coupling=-terms.variance_coupling)

    monkeypatch.setattr(ops, f"{norm}_norm_backward_terms", wrong)
    assert errors_of_tokens(*random_tokens(1, 50, 12), EPS, norm)["full_error"] > 1e-2


def test_gradients_that_arrive_are_those_of_autograd_and_the_network_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 1)).double()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ((given, gradient),) = arriving(model, lambda net: net(x).square().sum(), ["1"]).values()
    hidden = model[0](x)
    output = model[1](hidden).detach().requires_grad_()
    (wanted,) = torch.autograd.grad(model[3](model[2](output)).square().sum(), output)
    torch.testing.assert_close(given, hidden.reshape(12, 7).detach())
    torch.testing.assert_close(gradient, wanted.reshape(12, 7))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
