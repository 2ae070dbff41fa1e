"""Updates a step under checkpointing, counted by hand; what the fix leaves of them."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kit.findings import finding_of, is_quiet, repaired
from normscope import layers
from normscope.evidence import examples
from normscope.records.numbers import counted


def checkpointed(first, last, *, reentrant=False, depth=3):
    """Run the layers from ``first`` to ``last`` of a dense network under a checkpoint."""
    case = examples.healthy(examples.mlp, depth=depth, trained=0)
    model = case.model

    def forward(x):
        x = model[:first](x)
        if not torch.is_grad_enabled():
            return model[first:](x)
        x = x if x.requires_grad else x.detach().requires_grad_()
        return model[last:](checkpoint(model[first:last], x, use_reentrant=reentrant))

    model.forward = forward
    return case


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("first", "last", "places"), [(0, 3, ["1"]), (3, 9, ["4", "7"]), (0, 9, ["1", "4", "7"])])
def test_only_norms_in_the_checkpoint_are_named(first, last, places, reentrant):
    case = checkpointed(first, last, reentrant=reentrant)
    finding = finding_of(case, "NS110")
    assert list(finding.places) == places
    assert finding.message.startswith(counted(len(places), "checkpointed norm"))
    repaired(case, "NS110")
    modules = dict(case.model.named_modules())
    assert [path for path, module in modules.items() if isinstance(module, layers.BatchNorm1d)] == places
    assert is_quiet(case, "NS110")


def test_a_checkpoint_of_all_norms_updates_each_twice():
    finding = finding_of(checkpointed(0, 9), "NS110")
    assert (finding.measured, finding.bound) == (2.0, 1.0)
    assert "2 times a step" in finding.message


def test_updates_are_those_of_the_norms_in_the_checkpoint():
    finding = finding_of(checkpointed(3, 6), "NS110")
    assert (finding.places, finding.measured) == (("4",), 2.0)
    assert "2 times a step" in finding.message


@pytest.mark.parametrize("inside", [1, 2])
def test_updates_are_counted_for_each_place(inside):
    """A norm is called twice in a pass, once or twice of it in the checkpoint."""
    case = examples.healthy(examples.mlp, trained=0)
    model = case.model

    def forward(x):
        x = model[1](model[0](x)) if inside == 1 else model[0](x)
        part = torch.nn.Sequential(*[model[1]] * inside, torch.nn.Tanh())  # what is computed again stops at the end
        x = part(x) if not torch.is_grad_enabled() else checkpoint(part, x, use_reentrant=False)
        return model[2:](x)

    model.forward = forward
    finding = finding_of(case, "NS110")
    assert finding.measured == 1 + inside / 2
    assert f"{finding.measured:.2g} times a call" in finding.message


def test_a_norm_that_one_pass_calls_twice_is_no_checkpoint():
    case = examples.healthy(examples.mlp, trained=0)
    model = case.model
    model.forward = lambda x: model[2:](model[1](model[1](model[0](x))))
    assert is_quiet(case, "NS110")


def test_a_norm_that_only_the_backward_pass_calls_updates_once():
    case = examples.healthy(examples.mlp, trained=0)
    model = case.model
    model.watcher = examples.batch_norm(16)

    def forward(x):
        hidden = model[0](x)
        hidden.register_hook(lambda gradient: model.watcher(gradient.detach()) * 0 + gradient)
        return model[1:9](hidden) @ torch.ones(16, 4)

    model.forward = forward
    assert is_quiet(case, "NS110")
