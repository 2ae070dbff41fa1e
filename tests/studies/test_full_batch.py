"""Gradient descent on the whole set: its curvature against an explicit Hessian, its edge against two over eta."""

import pytest
import torch
from torch import nn

from normscope.records import Cell
from normscope.studies.lab.full_batch import descend

CELL = Cell(study="x", arm="a", seed=0, point={}, settings={})


def read(records, name):
    return [record.value for record in records if record.name == name]


def quadratic(outputs, targets):
    return 0.5 * (outputs - targets).square().sum()


def run(lr, **options):
    """Descend on a quadratic of curvatures 1 and 9."""
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    x = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    made = {"steps": 4, "every": 2, "relative": [0.5, 2.0], "absolute": [0.3], **options}
    return list(descend(model, x, torch.zeros(2, 1).double(), quadratic, cell=CELL, lr=lr, **made)), model


def test_curvature_along_the_gradient_is_that_of_the_explicit_hessian():
    records, _ = run(0.01, steps=0)
    g, h = torch.tensor([1.0, 18.0]), torch.tensor([1.0, 9.0])  # H diagonal; g = H w
    assert read(records, "sharpness") == pytest.approx([float((g * h * g).sum() / (g * g).sum())])
    # On a quadratic the gradient changes by s H g over a step s g, whatever s is.
    beta = float((h * g).norm() / g.norm())
    assert read(records, "beta_relative") == pytest.approx([beta])
    assert read(records, "beta_absolute") == pytest.approx([beta])
    assert read(records, "gradient") == pytest.approx([float(g.norm())])


def test_it_takes_plain_steps_and_readings_move_nothing():
    _, model = run(0.01)
    expected = torch.tensor([1.0, 2.0]).double() * (1 - 0.01 * torch.tensor([1.0, 9.0]).double()) ** 4
    torch.testing.assert_close(model.weight.detach()[0], expected)


def test_beyond_two_over_the_curvature_it_diverges_and_below_not():
    assert read(run(2.2 / 9, steps=20_000, every=10_000)[0], "diverged") == [1.0]
    assert read(run(1.9 / 9, steps=200, every=100)[0], "diverged") == [0.0]
