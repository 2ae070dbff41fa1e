"""Second models whose statistics belong to other weights: what they cost, by hand, and which are judged."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking
from normscope.evidence import Case, examples


def followed(factor, *, follow=None, mode=None, change=None, batches=10):
    """A norm of data with deviation 2 whose copy has ``factor`` of the variance, reached by the step as ``twin``.

    Its loss, the mean square of its output, is ``1 / factor`` where it would be 1.
    """
    pooled = 4.0 * 32 * batches / (32 * batches - 1)
    case = examples.alone(examples.batch_norm(variance=pooled), [examples.two_values(0.0, 2.0)] * batches)
    twin = copy.deepcopy(case.model).requires_grad_(False).eval()
    twin[0].running_var.mul_(factor)
    if change is not None:
        change(twin)
    optimizer = case.optimizer

    def step(model, batch):
        optimizer.zero_grad()
        examples.mean_square(model, batch).backward()
        optimizer.step()
        if mode is not None:
            with torch.no_grad():
                twin.train(mode)(batch)
        if follow is not None:
            follow(twin, model)

    case.step = step
    return case, twin


@pytest.mark.parametrize("factor", [0.5, 0.25, 0.8])
def test_the_loss_with_its_own_statistics_over_that_with_those_of_the_data(factor):
    case, twin = followed(factor)
    finding = finding_of(case, "NS131")
    assert finding.measured == pytest.approx(1 / factor, rel=1e-3)
    assert finding.places == ("twin.0",)
    assert f"falls to 1/{finding.measured:.3g}" in finding.message
    assert (
        repaired(case, "NS131") == "recalibrated 1 norm of the companion on the training data: save it with the model"
    )
    torch.testing.assert_close(twin[0].running_var, torch.full((12,), 4.0 * 320 / 319), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(case.model[0].running_var, torch.full((12,), 4.0 * 320 / 319), rtol=1e-5, atol=1e-5)
    assert is_quiet(case, "NS131")


def test_statistics_that_help_or_fit_are_no_finding():
    assert is_quiet(followed(2.0)[0], "NS131")
    assert is_quiet(followed(1.0)[0], "NS131")
    assert is_quiet(followed(0.5, batches=1)[0], "NS131")  # one batch shows no noise


def test_what_the_model_loses_by_its_own_statistics_is_no_defect_of_its_companion():
    """Half of the variance in both: NS102 speaks of the model, and a recalibration would help both alike."""
    case, _ = followed(0.5)
    case.model[0].running_var.div_(2)
    assert is_quiet(case, "NS131")
    case, _ = followed(0.25)
    case.model[0].running_var.div_(2)  # twice the loss, but its companion's is four times
    assert finding_of(case, "NS131").measured == pytest.approx(4.0, rel=1e-3)


def test_a_module_that_does_not_follow_the_model_is_another_network():
    """A teacher with weights of its own, which no step moves, may well have statistics of other data."""
    unlike = partial(nn.init.constant_, val=0.9)
    case, _ = followed(0.5, change=lambda twin: unlike(twin[0].weight))
    assert is_quiet(case, "NS131")

    @torch.no_grad()
    def follow(twin, model):
        twin[0].weight.lerp_(model[0].weight, 0.5)

    case, _ = followed(0.5, change=lambda twin: unlike(twin[0].weight), follow=follow)
    assert finding_of(case, "NS131").measured == pytest.approx(2.0, rel=1e-3)


def test_a_companion_that_normalizes_by_the_batch_does_not_use_its_statistics():
    assert is_quiet(followed(0.5, mode=True)[0], "NS131")
    assert finding_of(followed(0.5, mode=False)[0], "NS131").places == ("twin.0",)


def test_averaged_weights_are_spoken_of_once():
    case, twin = followed(0.5)
    case.averaged = twin
    found = checking.check(case, ["NS107", "NS131"], gap=False)
    assert [finding.code for finding in found] == ["NS107"]


class Pair(nn.Module):
    """A part and its target in one model, the part followed by a layer of its own."""

    def __init__(self):
        super().__init__()
        self.online = examples.mlp(depth=2)
        self.head = nn.Linear(4, 4)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x):
        return self.head(self.online(x))


def test_a_target_inside_the_model_is_judged_in_the_place_of_its_part():
    model = examples.seeded(Pair)
    optimizer = torch.optim.SGD([*model.online.parameters(), *model.head.parameters()], 0.1)

    def step(model, batch):
        optimizer.zero_grad()
        examples.loss_fn(model, batch).backward()
        optimizer.step()
        with torch.no_grad():
            model.target.eval()(batch[0])
            for mine, theirs in zip(model.target.parameters(), model.online.parameters(), strict=True):
                mine.copy_(theirs)

    case = Case(model.train(), examples.loss_fn, examples.data((12,)), optimizer, step=step)
    for batch in case.loader * 4:
        step(model, batch)
    optimizer.zero_grad()
    for norm in examples.norms(model.target):
        norm.running_mean += 3 * norm.running_var.sqrt()
    found = checking.check(case, ["NS131"], gap=False)
    assert [finding.places for finding in found] == [("target.1", "target.4")]
    assert "target is built as online of the model" in found[0].message
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    checking.fix(case, found, unsafe=True)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, kept[key])}
    assert {key.rpartition(".")[0] for key in moved} == {"target.1", "target.4"}
    assert is_quiet(case, "NS131")
