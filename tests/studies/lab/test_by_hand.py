"""The gradient written out, against autograd."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normscope import layers
from normscope.records import Cell
from normscope.studies.lab import by_hand, full_batch, norms
from normscope.studies.lab.by_hand import gradient_by_hand
from normscope.studies.lab.models import deep_linear, mlp
from normscope.studies.lab.train import half_squares

X = torch.randn(40, 1, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(40) % 5
TARGETS = torch.randn(40, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense(norm, **options):
    model = mlp(3, 7, inputs=12, classes=5, norm=norm, seed=2, **{"activation": "tanh", **options}).double().train()
    with torch.no_grad():  # gains and shifts that are not one and zero
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)).double())
    return model


MODELS = {
    "no norm": (lambda: dense(norms.none()), X, Y, cross_entropy),
    "batch norm": (lambda: dense(norms.batch()), X, Y, cross_entropy),
    "no biases": (lambda: dense(norms.batch(), bias=False), X, Y, cross_entropy),
    "no activation": (lambda: dense(norms.batch(), activation="linear"), X, Y, cross_entropy),
    "deep linear": (
        lambda: deep_linear(norm=norms.batch(), seed=0, depth=4, last=True).double().train(),
        X.flatten(1)[:, :10],
        TARGETS,
        half_squares,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_autograds(name):
    make, x, targets, objective = MODELS[name]
    model = make()
    compute = gradient_by_hand(model, x, targets, objective)
    for _ in range(2):  # at the parameters as they are when it is called
        value, found = compute()
        loss = objective(model(x), targets)
        expected = torch.autograd.grad(loss, list(model.parameters()))
        torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            for parameter, part in zip(model.parameters(), expected, strict=True):
                parameter.sub_(part, alpha=0.01)


def frozen_gain():
    model = dense(norms.batch())
    model.blocks[0].norm.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: dense(norms.batch(), activation="relu"),
        lambda: dense(norms.lp(1.0)),
        lambda: dense(lambda place: layers.BatchNorm1d(place.features, activation="relu")),
        lambda: dense(lambda place: layers.BatchNorm1d(place.features, statistics="ghost", group_size=8)),
        lambda: dense(norms.batch()).eval(),
        frozen_gain,
        lambda: nn.Linear(12, 5).double(),
    ],
)
def test_what_is_not_known_is_left_to_autograd(make):
    assert gradient_by_hand(make(), X, Y, cross_entropy) is None


def descent(model):
    cell = Cell("demo", "a", 0)
    made = {"lr": 0.3, "steps": 20, "every": 4, "relative": [0.5, 2.0], "absolute": [0.2]}
    return list(full_batch.descend(model, X, Y, cross_entropy, cell=cell, **made))


@pytest.mark.parametrize("norm", [norms.none(), norms.batch()])
def test_a_descent_is_the_one_by_autograd(monkeypatch, norm):
    found = descent(dense(norm))
    monkeypatch.setattr(full_batch, "gradient_by_hand", lambda *_: None)
    expected = descent(dense(norm))
    assert [(r.step, r.name) for r in found] == [(r.step, r.name) for r in expected]
    assert [r.value for r in found] == pytest.approx([r.value for r in expected], rel=1e-9)


def test_a_wrong_sign_is_found_out(monkeypatch):
    right = by_hand._backward  # white box: a planted fault

    def wrong(*arguments):
        return {parameter: -part for parameter, part in right(*arguments).items()}

    monkeypatch.setattr(by_hand, "_backward", wrong)
    with pytest.raises(AssertionError):
        test_loss_and_gradient_are_autograds("batch norm")
