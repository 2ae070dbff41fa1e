"""The stale gradient: counted by hand, wrong against float64 before the fix and right after it."""

import copy

import pytest
import torch

from kit.findings import finding_of, is_quiet, repaired
from normscope.evidence import examples
from normscope.records.numbers import counted


def two_modes(*, early=False, only=None):
    """A step whose eval-mode loss has its backward pass after (or before) a train-mode pass."""

    def losses(model, batch):
        model.eval()
        first = examples.loss_fn(model, batch)
        model.train()
        if early:
            yield first
        if only is not None:
            model.eval()
            model[only].train()
        second = examples.loss_fn(model, batch)
        yield second if early else first + second

    return examples.stepped(examples.healthy(examples.mlp, trained=0), losses)


@pytest.mark.parametrize(("only", "places"), [(None, ["1", "4", "7"]), (4, ["4"]), (7, ["7"])])
def test_the_norms_whose_statistics_changed_in_between_are_named(only, places):
    case = two_modes(only=only)
    finding = finding_of(case, "NS111")
    assert list(finding.places) == places
    assert finding.measured == 4 * len(places)
    assert finding.message.startswith(f"{counted(len(places), 'norm was', 'norms were')} called in eval mode")
    assert f"at {4 * len(places)} calls" in finding.message
    assert is_quiet(two_modes(early=True), "NS111")


def test_the_gradient_of_the_fixed_model_is_that_of_the_loss():
    case = two_modes()
    for norm in examples.norms(case.model):
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
        torch.nn.init.normal_(norm.bias)
    x, y = case.loader[0]

    def gradient(model, *, late):
        model = copy.deepcopy(model)
        model.eval()
        loss = examples.loss_fn(model, (x.to(next(model.parameters())), y))
        if late:
            model.train()
            model(x.to(next(model.parameters())))
        return torch.autograd.grad(loss, list(model.parameters()))

    exact = gradient(copy.deepcopy(case.model).double(), late=False)

    def error(gradients):
        return max(float((a - b).norm() / b.norm()) for a, b in zip(gradients, exact, strict=True) if float(b.norm()))

    assert error(gradient(case.model, late=True)) > 0.05
    repaired(case, "NS111")
    assert error(gradient(case.model, late=True)) < 1e-4
