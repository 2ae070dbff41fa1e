"""Losses of both modes by the formula; what networks do by mode on purpose; buffers that evaluation writes."""

import random
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kit.findings import finding_of, is_quiet
from normscope import checking
from normscope.evidence import Case, examples
from normscope.modules.state import Snapshot


class Factor(nn.Module):
    """Multiplies by a factor in eval mode, or in both modes by what it keeps, to which it adds."""

    def __init__(self, factor=1.0, *, kept=None, step=0.0, by_mode=False):
        super().__init__()
        self.factor, self.step, self.by_mode = factor, step, by_mode
        self.register_buffer("kept", None if kept is None else torch.tensor(kept))

    def forward(self, x):
        if self.kept is not None:
            x = x * self.kept
            if self.step and not (self.by_mode and self.training):
                self.kept += self.step
        return x if self.training else x * self.factor


def square_of(*modules, **options):
    """Three batches whose mean square is 13, through modules."""
    model = nn.Sequential(*modules, nn.Linear(12, 12, bias=False))
    nn.init.eye_(model[-1].weight)
    loader = [examples.two_values(3.0, 2.0)] * 3
    return Case(model.train(), examples.mean_square, loader, **options)


@pytest.mark.parametrize(("factor", "dropout"), [(1.5, 0.0), (-2.0, 0.5), (3.0, 0.1)])
def test_the_losses_of_both_modes_are_those_of_the_formula(factor, dropout):
    case = square_of(nn.Dropout(dropout), Factor(factor))
    finding = finding_of(case, "NS130")
    assert finding.measured == pytest.approx(factor**2, rel=1e-5)
    assert finding.places == ("1",)
    assert "1 module computes something else" in finding.message
    assert f"is 13 in train mode and {13 * factor**2:.4g} in eval mode" in finding.cost
    assert finding.bound == 1.2


@pytest.mark.parametrize("factor", [0.5, 1.05, 0.0])
def test_a_loss_that_is_lower_in_eval_mode_or_as_good_is_no_defect(factor):
    assert is_quiet(square_of(Factor(factor)), "NS130")


def test_known_norms_are_held_fixed_and_not_named():
    norm = nn.BatchNorm1d(12, affine=False)
    assert is_quiet(square_of(norm), "NS130")
    case = square_of(norm, Factor(2.0), nn.LayerNorm(12))
    case.loss_fn = lambda model, batch: model[:2](batch).square().mean()
    finding = finding_of(case, "NS130")
    assert finding.places == ("1",)
    assert finding.measured == pytest.approx(4, rel=1e-5)


def test_an_instance_norm_with_running_statistics_is_named():
    case = square_of(nn.InstanceNorm1d(1, track_running_stats=True, momentum=0.0))
    case.loader = [batch[:, None] * torch.arange(1.0, 13) for batch in case.loader]
    finding = finding_of(case, "NS130")
    assert finding.places == ("0",)
    assert finding.measured == pytest.approx(13 * 650 / 12, rel=1e-4)  # running statistics are 0 and 1 still


def test_buffers_that_nothing_writes_are_named():
    finding = finding_of(square_of(Factor(2.0, kept=1.0)), "NS130")
    assert finding.bound == 1.2
    assert "no training pass writes kept" in finding.message


class Follows(nn.Module):
    """Divides by the deviation of the batch in training, and by a running one in evaluation."""

    def __init__(self, deviation):
        super().__init__()
        self.register_buffer("deviation", torch.tensor(deviation))

    def forward(self, x):
        if self.training:
            self.deviation.lerp_(x.std().detach(), 0.2)
            return x / x.std()
        return x / self.deviation


@pytest.mark.parametrize(("times", "learnt", "found"), [(5.0, True, True), (2.5, True, False), (50.0, False, False)])
def test_statistics_that_lag_are_told_from_code_and_a_new_network_is_left(times, learnt, found):
    """The loss is 0.1, and more by the mean square times (r - 1) ** 2 if the deviation that is kept is 1 / r of it."""
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    r = 1 + (0.1 * (times - 1)) ** 0.5
    case = square_of(Follows(float(x.std()) / r))
    if not learnt:
        nn.init.normal_(case.model[-1].weight, generator=torch.Generator().manual_seed(1))
    weight = case.model[-1].weight.detach().clone()
    rest = 0.1 if learnt else 0.0

    def loss_fn(model, batch):
        return rest + (model(batch) - (batch / x.std() @ weight.T if learnt else 0)).square().mean()

    case.loader, case.loss_fn = [x] * 3, loss_fn
    if not found:
        assert is_quiet(case, "NS130")
        return
    finding = finding_of(case, "NS130")
    assert (finding.bound, finding.places) == (3.0, ("0",))
    assert finding.measured == pytest.approx(1 + (r - 1) ** 2 * float((x / x.std()).square().mean()) / 0.1, rel=1e-4)
    assert "running statistics of 1 module are not those of the data" in finding.message
    assert "after passes that write buffers alone it is 0.1 there" in finding.cost


def test_the_loss_itself_may_be_what_depends_on_the_mode():
    case = square_of()
    case.loss_fn = lambda model, batch: model(batch).square().mean() * (1 if model.training else 3)
    finding = finding_of(case, "NS130")
    assert finding.places == ("",)
    assert "the loss or code that no module holds" in finding.message


class Heads(nn.Module):
    """Returns a second output in training alone, as GoogLeNet does, or a list of boxes in evaluation."""

    def __init__(self, *, boxes=False):
        super().__init__()
        self.body, self.head, self.aux, self.boxes = nn.Linear(12, 8), nn.Linear(8, 4), nn.Linear(8, 4), boxes

    def forward(self, x):
        h = torch.relu(self.body(x))
        if self.boxes and not self.training:
            return [{"boxes": row} for row in self.head(h)]
        return (self.head(h), self.aux(h)) if self.training else self.head(h)


def test_auxiliary_heads_end_with_training_and_that_is_no_defect():
    def loss_fn(model, batch):
        out = model(batch[0])
        main, *aux = out if isinstance(out, tuple) else (out,)
        return F.cross_entropy(main, batch[1]) + sum(0.3 * F.cross_entropy(one, batch[1]) for one in aux)

    case = examples.healthy(examples.mlp, trained=0)
    case.model, case.loss_fn = examples.seeded(Heads).train(), loss_fn
    assert is_quiet(case, "NS130")


def test_a_detector_with_a_loss_of_evaluation_has_nothing_to_compare_and_without_one_says_why():
    case = examples.healthy(examples.mlp, trained=0)
    case.model, case.loss_fn = Heads(boxes=True).train(), lambda model, batch: model(batch[0])[0].square().mean() + 1
    found = checking.check(case, ["NS130"], gap=False)
    assert "eval_loss_fn" in dict(found.unmeasured)["NS130"]

    def eval_loss_fn(model, batch):
        return 100 + torch.stack([one["boxes"] for one in model(batch[0])]).square().mean()

    case.eval_loss_fn = eval_loss_fn
    found = checking.check(case, ["NS130"], gap=False)
    assert (list(found), found.unmeasured) == ([], ())


class Depth(nn.Module):
    """Stochastic depth, by any of the random streams."""

    def __init__(self, draw):
        super().__init__()
        self.linear, self.draw = nn.Linear(12, 12), draw

    def forward(self, x):
        if not self.training:
            return x + 0.5 * self.linear(x)
        return x + self.linear(x) if self.draw() < 0.5 else x


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random])
def test_stochastic_depth_is_noise(draw):
    case = examples.healthy(lambda: nn.Sequential(Depth(draw), Depth(draw), nn.Linear(12, 4)), shape=(12,))
    found = checking.check(case, ["NS130"])
    assert list(found) == []
    assert found.gap.of("other code that depends on the mode") == 0
    assert found.gap.of("dropout and other noise") != 0


def test_spectral_norm_iterates_in_training_alone_and_that_is_no_defect():
    def net():
        parts = [nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12)), nn.ReLU()]
        return nn.Sequential(*parts, nn.utils.spectral_norm(nn.Linear(12, 4)))

    assert is_quiet(examples.healthy(net, shape=(12,)), "NS130")


@pytest.mark.parametrize("step", [0.01, 0.2])
def test_what_evaluation_writes_is_told_by_what_it_changes(step):
    """One step to make caches, and three when the batches are evaluated; of each loss one step is its own."""
    case = square_of(Factor(kept=1.0, step=step, by_mode=True))
    finding = finding_of(case, "NS130")
    before, after = 13 * (1 + step) ** 2, 13 * (1 + 4 * step) ** 2
    assert finding.measured == pytest.approx(after / before - 1, rel=1e-4)
    assert "evaluation writes kept of 1 module" in finding.message
    assert f"is {before:.6g} before and {after:.6g} after" in finding.cost


class Cached(nn.Module):
    """Makes a table at first use and keeps it; counts calls; sums what it has seen, and does not use the sum."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(12))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("total", torch.zeros(12))

    def forward(self, x):
        if not self.table.any():
            self.table += 2.0
        self.calls += 1
        self.total += x.detach().sum(0)
        return x * self.table


class Carried(nn.Module):
    """Carries its last state on to the next batch, in a buffer and beside it."""

    def __init__(self):
        super().__init__()
        self.cell, self.state = nn.GRUCell(12, 12), None
        self.register_buffer("last", torch.zeros(12))

    def forward(self, x):
        self.state = self.cell(x, None if self.state is None else self.state.detach())
        self.last.copy_(self.state[-1].detach())
        return self.state + self.last


@pytest.mark.parametrize("module", [Cached(), Carried()])
def test_caches_counters_and_carried_states_are_left(module):
    case = square_of(module)
    before = Snapshot(case.model)
    assert is_quiet(case, "NS130")
    assert before.differences() == []


def test_observers_of_quantization_are_an_information():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fake = torch.ao.quantization.FakeQuantize()
        case = square_of(fake)
        case.loader = [examples.two_values(3.0, 2.0 * (1 + index)) for index in range(3)]
        fake(case.loader[0])
        finding = finding_of(case, "NS130")
    assert finding.severity.value == "info"
    assert "disable_observer" in finding.fix
