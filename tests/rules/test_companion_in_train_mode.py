"""Teachers and targets in train mode: which, how often, and whom the rule leaves alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking, surgery
from normscope.evidence import Case, examples
from normscope.records import Severity


def distilled(teacher, *, grad=False, step=True, loss_fn=None):
    """A student of a teacher."""
    case = examples.healthy(examples.mlp, trained=0)
    optimizer = case.optimizer

    def loss(model, batch):
        with torch.set_grad_enabled(grad):
            target = teacher(batch[0]).detach()
        return examples.loss_fn(model, batch) + F.mse_loss(model(batch[0]), target)

    def one_step(model, batch):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()

    return Case(case.model, loss, case.loader, optimizer, step=one_step if step else None)


def other(**options):
    return examples.mlp(depth=2, width=10, **options)


@pytest.mark.parametrize("depth", [1, 3])
def test_each_norm_of_the_teacher_counts_each_of_its_calls(depth):
    case = distilled(examples.mlp(depth=depth, width=9))
    finding = finding_of(case, "NS132")
    assert list(finding.places) == [f"teacher.{1 + 3 * index}" for index in range(depth)]
    assert finding.measured == 4 * depth
    assert finding.message.startswith("teacher is in train mode, and nothing is trained through it")
    assert f"changed at {4 * depth} calls of 4 training steps" in finding.message


def test_the_text_says_that_some_methods_want_it():
    finding = finding_of(distilled(other()), "NS132")
    assert "unless the method wants statistics of the batch there" in finding.fix
    assert finding.severity.name == "WARNING"


def test_the_fix_freezes_the_teacher_and_not_the_student():
    teacher = other()
    case = distilled(teacher)
    assert repaired(case, "NS132") == "froze 2 norms"
    kept = copy.deepcopy(teacher.state_dict())
    teacher.train()
    case.step(case.model, case.loader[0])
    assert all(torch.equal(value, kept[key]) for key, value in teacher.state_dict().items())
    assert not any(map(surgery.is_frozen, case.model.modules()))


def test_a_teacher_in_eval_mode_and_passes_with_gradients_are_left_alone():
    assert is_quiet(distilled(other().eval()), "NS132")
    assert is_quiet(distilled(other(), grad=True), "NS132")


def test_a_network_that_may_be_trained_elsewhere_is_left_alone():
    """A generator that a discriminator's loss calls: without the step its own optimizer is not seen."""
    assert is_quiet(distilled(other(), step=False), "NS132")
    assert finding_of(distilled(other().requires_grad_(False), step=False), "NS132").places
    assert finding_of(distilled(examples.mlp(), step=False), "NS132").places  # built as the model is


def test_a_network_with_an_optimizer_of_its_own_is_left_alone():
    case = distilled(teacher := other())
    others, plain = torch.optim.SGD(teacher.parameters(), 0.1), case.step

    def step(model, batch):
        plain(model, batch)
        others.zero_grad()

    case.step = step
    assert is_quiet(case, "NS132")


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = examples.mlp(depth=2), nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            hidden = self.body(x)
        return self.head(hidden)


def test_a_part_that_an_optimizer_holds_and_never_had_a_gradient_for():
    model = Whole()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    case = Case(model.train(), examples.loss_fn, examples.data((12,)), optimizer)
    assert is_quiet(case, "NS132")  # nothing was trained yet: it may be its turn later
    examples.loss_fn(model, case.loader[0]).backward()
    optimizer.step()
    assert finding_of(case, "NS132").places == ("body.1", "body.4")
    model.body.requires_grad_(False)
    found = checking.check(case, ["NS101", "NS106", "NS132"], gap=False)
    assert [finding.code for finding in found] == ["NS101"]  # one cause, one finding


def test_a_target_in_the_model_itself_is_one_finding_and_its_copy_is_not_frozen():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.online = examples.mlp(depth=2)
            self.target = copy.deepcopy(self.online).requires_grad_(False)

        def forward(self, x):
            with torch.no_grad():
                wanted = self.target(x)
            return self.online(x) + 0 * wanted

    model = Pair().train()
    case = Case(model, examples.loss_fn, examples.data((12,)), torch.optim.SGD(model.online.parameters(), 0.1))
    found = checking.check(case, ["NS101", "NS106", "NS132"], gap=False)
    assert [(finding.code, finding.places) for finding in found] == [("NS132", ("target.1", "target.4"))]
    checking.fix(case, found, unsafe=True)
    assert {path for path, module in model.named_modules() if surgery.is_frozen(module)} == {"target.1", "target.4"}


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_an_average_of_the_model_in_train_mode_is_no_more_than_an_information(beside, rate):
    """As published for Mean Teacher, MoCo and BYOL; a teacher that stands still is meant to be a fixed function."""
    model = nn.ModuleDict({"online": examples.mlp(depth=2)}).train()
    target = examples.mlp(depth=2).requires_grad_(False)  # other weights: else there were nothing to learn
    if not beside:
        model["target"] = target
    optimizer = torch.optim.SGD(model["online"].parameters(), 0.1)

    def loss_fn(model, batch):
        with torch.no_grad():
            wanted = target(batch[0])
        return F.mse_loss(model["online"](batch[0]), wanted)

    def step(model, batch):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(target.parameters(), model["online"].parameters(), strict=True):
                old.lerp_(new, rate)

    finding = finding_of(Case(model, loss_fn, examples.data((12,)), optimizer, step=step), "NS132")
    assert finding.severity is (Severity.INFO if rate else Severity.WARNING)
