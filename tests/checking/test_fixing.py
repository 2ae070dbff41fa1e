"""What ``ns.fix`` does to a set-up: the losses before and after, and the way back from what harms or fails."""

import re
import time

import pytest
import torch
from check_setups import other_means
from torch import nn
from torch.utils.data import DataLoader

import normscope as ns
from normscope import checking, rules
from normscope._errors import UsageError
from normscope.checking import repair
from normscope.evidence import examples
from normscope.modules.state import Snapshot

RECALIBRATION = "NS102"


def stale():
    return rules.get(RECALIBRATION).finding("stale", ["0"])


def planted(monkeypatch, mend, code=RECALIBRATION):
    monkeypatch.setattr(type(rules.get(code)), "repair", lambda self, case, finding: mend(case))


def test_losses_are_part_of_the_result_and_harm_is_taken_back():
    case = other_means()
    before, loaders = Snapshot(case.model), (case.loader, case.eval_loader)
    (made,) = ns.fix(case, [stale()], unsafe=True)
    assert made.done == ""
    assert made.why_not.startswith("recalibrated 1 norm on the training data, and took it back: the loss of evaluation")
    assert before.differences() == []
    assert (case.loader, case.eval_loader) == loaders
    assert [loss.of for loss in made.losses] == ["training", "evaluation"]
    assert made.losses[1].before == pytest.approx(1.0, abs=0.01)
    assert made.losses[1].after > 1.2
    helped = other_means(eval_loader=None)
    (made,) = ns.fix(helped, [stale()], unsafe=True)
    assert made.done == "recalibrated 1 norm on the training data"
    assert made.losses[1].before > 10
    assert made.losses[1].after == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("options", [{}, {"eval_loader": None}])
def test_the_command_does_the_same_by_the_same_code(options):
    (made,) = ns.fix(other_means(**options), [stale()], unsafe=True)
    (note,) = repair.repair(other_means(**options), [stale()], unsafe=True)
    assert (note.done, note.why_not, note.losses) == (made.done, made.why_not, made.losses)


def test_without_measuring_a_fix_that_harms_stands():
    case = other_means()
    (made,) = ns.fix(case, stale(), unsafe=True, measure=False)
    assert made.done
    assert made.losses == ()
    assert float(case.model[0].running_mean.mean()) == pytest.approx(3.0)


def test_the_losses_of_a_network_as_it_was_made_decide_nothing():
    case = rules.get("NS126").SICK[0]()
    (made,) = ns.fix(case, ns.check(case, ["NS126"]), unsafe=True)
    assert made.done
    assert made.losses[1].after > 1.1 * made.losses[1].before
    case = rules.get("NS126").SICK[0]()
    for batch in case.loader:
        case.loss_fn(case.model, batch)  # norms that have seen data are not as made
    (made,) = ns.fix(case, ns.check(case, ["NS126"]), unsafe=True)
    assert "took it back" in made.why_not


@pytest.mark.parametrize(
    ("weight", "why"), [(torch.ones(3), "can no longer be taken"), (torch.full((6,), torch.nan), "is no longer finite")]
)
@pytest.mark.parametrize("count", [0, 1000])
def test_a_fix_after_which_no_loss_can_be_had_is_taken_back(monkeypatch, weight, why, count):
    def mend(case):
        case.model[0].weight = nn.Parameter(weight)
        return "gave it other gains"

    planted(monkeypatch, mend)
    case = other_means()
    case.model[0].num_batches_tracked.fill_(count)
    before = Snapshot(case.model)
    (made,) = ns.fix(case, [stale()], unsafe=True)
    assert why in made.why_not
    assert before.differences() == []


def test_a_fix_that_fails_leaves_nothing_and_is_warned_of(monkeypatch):
    def mend(case):
        case.model[0].running_mean.fill_(7)
        case.model[0].other = "attribute"
        case.loader = []
        raise KeyError("planted")

    planted(monkeypatch, mend)
    case = other_means()
    loader, before = case.loader, Snapshot(case.model)
    with pytest.warns(checking.RuleWarning, match="NS102 could not be repaired"):
        (made,) = ns.fix(case, [stale()], unsafe=True)
    assert re.match(r"the fix failed: KeyError: 'planted' \(test_fixing.py:\d+\)", made.why_not)
    assert before.differences() == []
    assert case.loader is loader
    with pytest.raises(checking.RuleWarning) as warned:
        ns.fix(case, [stale()], unsafe=True)
    assert isinstance(warned.value.__cause__, KeyError)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, GeneratorExit])
def test_an_interrupt_takes_back_and_goes_on(monkeypatch, raised):
    def mend(case):
        case.model[0].running_mean.fill_(7)
        raise raised

    planted(monkeypatch, mend)
    case = other_means()
    before = Snapshot(case.model)
    with pytest.raises(raised):
        ns.fix(case, [stale()], unsafe=True)
    assert before.differences() == []


def test_a_fix_that_takes_too_long_is_taken_back(monkeypatch):
    def mend(case):
        case.model[0].running_mean.fill_(7)
        time.sleep(20)

    planted(monkeypatch, mend)
    case = other_means()
    before = Snapshot(case.model)
    (made,) = ns.fix(case, [stale()], unsafe=True, measure=False, timeout=0.3)
    assert made.why_not.startswith("the fix took longer than the limit of 0.3 s (test_fixing.py:")
    assert made.why_not.endswith(", and was taken back")
    assert before.differences() == []


@pytest.mark.parametrize("stream", [None, torch.Generator])
def test_losses_are_of_the_same_batches_where_a_loader_shuffles(stream):
    """The loss of training does not depend on running statistics: only other batches could change it."""
    case = rules.get(RECALIBRATION).SICK[0]()
    pairs = [(x, y) for batch in case.loader for x, y in zip(*batch, strict=True)]
    case.loader = DataLoader(pairs, batch_size=16, shuffle=True, generator=None if stream is None else stream())
    case.eval_loader = case.loader
    (made,) = ns.fix(case, ns.check(case, [RECALIBRATION]), unsafe=True)
    training, evaluation = made.losses
    assert training.before == training.after
    assert evaluation.after < evaluation.before


def test_a_later_fix_is_measured_on_the_batches_of_the_first_where_a_loader_was_replaced(monkeypatch):
    def other_loader(case):
        case.loader = [examples.two_values(30.0, 2.0, 64, 6)] * 3
        return "put another loader in its place"

    planted(monkeypatch, other_loader, "NS104")
    case = other_means(eval_loader=None)
    first = rules.get("NS104").finding("last batch", ["0"])
    one, two = ns.fix(case, [first, rules.get("NS108").finding("momentum", ["0"])], unsafe=True)
    assert one.losses[1].before == one.losses[1].after
    assert not two.losses or two.losses[1].before == one.losses[1].after


def test_it_says_what_it_takes():
    case = other_means()
    with pytest.raises(UsageError, match=r"fix takes the ns.Case that was checked, not an object of type Sequential"):
        ns.fix(case.model, [stale()])
    with pytest.raises(UsageError, match="fix takes findings, as check returns them, not 'N'"):
        ns.fix(case, "NS102")
    assert ns.fix(case, ()) == []


def test_its_result_prints_as_a_line():
    (made,) = ns.fix(other_means(eval_loader=None), stale(), unsafe=True)
    assert re.fullmatch(
        r"fixed NS102 \(`0`\): recalibrated 1 norm on the training data; "
        r"loss of training \S+ before, \S+ after; of evaluation \S+ before, \S+ after",
        str(made),
    )
    (made,) = ns.fix(other_means(), stale())
    assert str(made).startswith("not fixed NS102 (`0`): the fix is unsafe")


def with_second_model(step, width=6):
    """A model with biases before its norms, and a target of the same form whose values follow it in the step."""
    torch.manual_seed(0)
    model, target = (
        nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 6)) for _ in range(2)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def training_step(model, batch):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
        step(target, model)

    def loss_fn(model, batch):
        return (model(batch) - batch).square().mean()

    return ns.Case(model, loss_fn, [torch.randn(32, 6) for _ in range(6)], optimizer, step=training_step), target


def copied_by_name(target, model):
    target.load_state_dict(model.state_dict())


@torch.no_grad()
def averaged_in_order(target, model):
    for old, new in zip(target.parameters(), model.parameters(), strict=False):
        if old.shape == new.shape:
            old.lerp_(new, 0.1)


@pytest.mark.parametrize("step", [copied_by_name, averaged_in_order])
def test_a_fix_that_would_part_a_model_from_its_target_is_taken_back(step):
    case, target = with_second_model(step)
    before = Snapshot(case.model, target, optimizers=[case.optimizer])
    found = list(ns.check(case, ["NS122"]))
    assert len(found) == 1
    (made,) = ns.fix(case, found, unsafe=True)
    assert "and took it back: the model has other parameters or buffers now than target" in made.why_not
    assert before.differences() == []


def test_a_second_model_of_other_parameters_is_no_hindrance():
    case, target = with_second_model(lambda target, model: target(torch.zeros(2, 6)))
    target[0].bias = None
    (made,) = ns.fix(case, ns.check(case, ["NS122"]), unsafe=True)
    assert made.done.startswith("dropped 1 bias")


def test_a_fix_after_which_the_step_raises_is_taken_back(monkeypatch):
    """The step names a parameter that the fix drops, and no second model tells."""
    case, target = with_second_model(lambda target, model: model[0].bias.detach())
    target[3] = nn.Identity()
    before = Snapshot(case.model)

    def mend(case):
        case.model[0].bias = None
        return "dropped a bias"

    planted(monkeypatch, mend)
    (made,) = ns.fix(case, [stale()], unsafe=True)
    assert "dropped a bias, and took it back: a training step no longer runs: " in made.why_not
    assert before.differences() == []


class Guess(nn.Module):
    """A number, and how far each batch is from it."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return (x - self.value).square()


@pytest.mark.parametrize("wrapped", [list, lambda batches: DataLoader(batches, batch_size=None)])
def test_losses_are_taken_from_all_along_data_that_lie_in_order(monkeypatch, wrapped):
    """A fix that harms the first kind of data and helps the other nine tenths of them stands."""
    data = [torch.zeros(4)] * 4 + [torch.ones(4)] * 36

    def mend(case):
        with torch.no_grad():
            case.model.value.fill_(1.0)
        return "guessed again"

    planted(monkeypatch, mend)
    case = ns.Case(Guess(), lambda model, x: model(x).mean(), wrapped(data), eval_loader=wrapped(data))
    (made,) = ns.fix(case, [stale()], unsafe=True)
    assert made.done == "guessed again"
    assert [(loss.of, loss.before > 0.5 > loss.after) for loss in made.losses] == [
        ("training", True),
        ("evaluation", True),
    ]


def test_statistics_are_taken_anew_before_norms_are_frozen():
    """The other way round the frozen statistics could no longer be taken anew."""
    first, last = rules.get("NS102").finding("stale", ["1"]), rules.get("NS101").finding("drifting", ["1"])
    case = examples.healthy(examples.mlp, change=lambda model: model[1].running_mean.add_(5.0))
    made = ns.fix(case, [last, first], unsafe=True)
    assert [each.finding for each in made] == [last, first]
    assert all(each.done for each in made)
    assert float(case.model[1].running_mean.abs().max()) < 3


def test_a_finding_that_is_given_twice_is_repaired_once():
    case, _ = with_second_model(lambda target, model: None)
    (found,) = ns.check(case, ["NS122"])
    made = ns.fix(case, [found, found], unsafe=True, measure=False)
    assert [each.done for each in made] == [made[0].done] * 2
    assert made[0].done.startswith("dropped 1 bias")


@pytest.mark.parametrize("given", [None, 3])
def test_what_are_no_findings_is_refused(given):
    with pytest.raises(UsageError, match="fix takes findings, as check returns them"):
        ns.fix(other_means(), given)


def test_a_norm_of_another_kind_than_in_the_target_is_taken_back():
    case, _ = with_second_model(averaged_in_order, width=32)
    finding = rules.get("NS105").finding("few values", ["1"])
    (made,) = ns.fix(case, [finding], unsafe=True)
    assert "and took it back: the model has other parameters or buffers now than target" in made.why_not
    assert isinstance(case.model[1], nn.BatchNorm1d)
