"""The gap between training and evaluation, taken apart, against losses that the test computes by itself."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from normscope import checking, surgery
from normscope.evidence import Case, Evidence, examples
from normscope.evidence.gap import measure_gap

EPS = 1e-5


def stale(momentum):
    """Return a case of one batch norm and two batches whose running statistics are far off; the loss is a square."""
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(40, 3, generator=generator) * 2 + 1 for _ in range(2)]
    norm = nn.BatchNorm1d(3, momentum=momentum, affine=False)
    norm.running_mean.copy_(torch.tensor([4.0, -2.0, 0.5]))
    norm.running_var.copy_(torch.tensor([9.0, 0.25, 1.5]))
    return Case(norm, lambda model, batch: (model(batch) + 0.3).square().mean(), batches, eval_loader=batches)


def loss_of_running(norm, batches):
    """Return the mean loss by the running statistics, in float64, from their values now."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    ys = [(batch.double() - mean) / (var + EPS).sqrt() for batch in batches]
    return float(torch.stack([(y + 0.3).square().mean() for y in ys]).mean())


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_the_share_of_running_statistics_is_that_of_the_buffers_as_they_were(momentum):
    case = stale(momentum)
    running = loss_of_running(case.model, case.loader)
    buffers = [buffer.clone() for buffer in case.model.buffers()]
    gap = measure_gap(case, 2)
    assert gap.eval == pytest.approx(running, rel=1e-5)
    assert sum(share.loss for share in gap.shares) == pytest.approx(gap.eval - gap.train, rel=1e-6)
    assert gap.of("running statistics") == pytest.approx(running - loss_by_pooled(case.loader), rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(buffers, case.model.buffers(), strict=True))


def loss_by_pooled(batches):
    """Return the mean loss by the mean and the unbiased variance of all batches together, in float64."""
    whole = torch.cat(batches).double()
    ys = [(batch.double() - whole.mean(0)) / (whole.var(0) + EPS).sqrt() for batch in batches]
    return float(torch.stack([(y + 0.3).square().mean() for y in ys]).mean())


class ByMode(nn.Module):
    """Scales by 2 in training and by 3 in eval mode, and is no norm and no dropout."""

    def forward(self, x):
        return x * (2.0 if self.training else 3.0)


class OfTheBatch(nn.Module):
    """Takes off the mean of the batch in every mode."""

    def forward(self, x):
        return x - x.mean(0)


class OwnDropout(nn.Module):
    """Dropout as a function, as networks write it in their forward."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


def square(model, x):
    return model(x).square().mean()


def gap_of(model, loader, eval_loader, *, loss_fn=square, **options):
    gap = measure_gap(Case(model.train(), loss_fn, loader, eval_loader=eval_loader, **options), 3)
    assert sum(share.loss for share in gap.shares) == pytest.approx(gap.total, abs=1e-6)
    return gap


def normal(mean=0.0, *, batches=3, size=16):
    stream = torch.Generator().manual_seed(1)
    return [torch.randn(size, 4, generator=stream) + mean for _ in range(batches)]


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d(4)])
def test_code_that_depends_on_the_mode_has_a_share_of_its_own(norm):
    model = nn.Sequential(*([norm] if norm else []), ByMode())
    data = normal()
    gap = gap_of(model, data, data)
    assert gap.of("dropout and other noise") == 0.0
    by_pooled = loss_by_pooled_square(data) if norm else loss_of(data)
    assert gap.of("other code that depends on the mode") == pytest.approx(5 * by_pooled, rel=1e-4)  # 9 - 4


def loss_of(batches):
    return float(torch.stack([batch.double().square().mean() for batch in batches]).mean())


def loss_by_pooled_square(batches):
    whole = torch.cat(batches).double()
    return loss_of([(batch - whole.mean(0)) / (whole.var(0) + EPS).sqrt() for batch in batches])


def test_noise_is_what_draws_random_numbers_whatever_its_class():
    data = normal(size=4000)
    for dropout in (nn.Dropout(0.5), OwnDropout()):
        gap = gap_of(nn.Sequential(dropout, ByMode()), data, data)
        assert gap.of("dropout and other noise") == pytest.approx(-4 * loss_of(data), rel=0.1)  # E (x b / p)^2 = 2 x^2
        assert gap.of("other code that depends on the mode") == pytest.approx(5 * loss_of(data), rel=1e-4)
    gap = gap_of(nn.Sequential(OwnDropout(), nn.BatchNorm1d(4)), data, data)
    assert [share.cause for share in gap.shares if "mode" in share.cause] == []


@pytest.mark.parametrize("norm", [OfTheBatch(), nn.BatchNorm1d(4, affine=False, track_running_stats=False)])
def test_evaluation_that_depends_on_the_batch_is_told_from_other_data(norm):
    """Batches of evaluation of one mean each lose it; mixed, they keep their distances. The loss looks at those."""
    same = normal(batches=4)
    apart = [batch + 4 * index for index, batch in enumerate(same[:2])]

    def loss_fn(model, batch):
        return 10 - model(batch).abs().mean()

    gap = gap_of(norm, same, apart, loss_fn=loss_fn)
    assert abs(gap.of("evaluation depends on the batch")) > 0.1
    assert gap.of("running statistics") == 0.0
    for model in (nn.Sequential(nn.BatchNorm1d(4)), nn.GroupNorm(2, 4), nn.Linear(4, 4)):
        gap = gap_of(model, same, apart, loss_fn=loss_fn)
        assert "evaluation depends on the batch" not in [share.cause for share in gap.shares]


def test_a_network_as_made_is_not_told_to_recalibrate():
    case = examples.healthy(examples.mlp, trained=0, change=lambda model: model[0].weight.data.mul_(30))
    (said,) = (share.explanation for share in Evidence(case).gap.shares if share.cause == "running statistics")
    assert "has not been trained" in said
    assert "recalibrate" not in said
    case = examples.healthy(examples.mlp, change=lambda model: model[1].running_var.mul_(9.0))
    (said,) = (share.explanation for share in Evidence(case).gap.shares if share.cause == "running statistics")
    assert "recalibrate" in said


def test_a_shuffling_loader_gives_every_loss_the_same_batches():
    data = TensorDataset(torch.arange(48.0)[:, None].expand(48, 4).contiguous())
    loader = DataLoader(data, 16, shuffle=True)
    gap = gap_of(nn.Linear(4, 4), loader, None, loss_fn=lambda model, batch: square(model, batch[0]))
    assert [share.loss for share in gap.shares] == [0.0]


def test_sorted_data_of_evaluation_are_not_taken_for_other_data():
    """The same samples as in training, sorted: all of the gap is how they are batched, over more batches than four."""
    whole = torch.cat([batch + 6 * index for index, batch in enumerate(normal(batches=8))])
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(2))
    shuffled, in_order = list(whole[order].split(16)), list(whole.split(16))
    norm = nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    gap = gap_of(norm, shuffled, in_order, loss_fn=lambda model, batch: (model(batch) * batch.sign()).mean().neg())
    assert gap.of("evaluation depends on the batch") == pytest.approx(gap.total, rel=0.3)
    assert abs(gap.of("other data")) < 0.3 * gap.of("evaluation depends on the batch")


class DropoutAndMore(nn.Module):
    """Calls dropout as a function, and scales by its mode, in one forward."""

    def __init__(self, dropout):
        super().__init__()
        self.dropout = dropout

    def forward(self, x):
        return self.dropout(x, 0.5, self.training) * (2.0 if self.training else 3.0)


def attended(x, p, training):
    return nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], None, p * training)[:, 0]


FUNCTIONS = [nn.functional.dropout, torch.dropout, nn.functional.alpha_dropout, nn.functional.dropout1d, attended]


@pytest.mark.parametrize("dropout", FUNCTIONS)
def test_dropout_as_a_function_is_left_out_and_the_code_around_it_keeps_its_mode(dropout):
    data = normal(size=200)
    gap = gap_of(DropoutAndMore(dropout), data, data)
    without = loss_of([dropout(x, 0.5, False) for x in data])
    assert gap.of("other code that depends on the mode") == pytest.approx(5 * without, rel=1e-4)
    assert gap.of("dropout and other noise") == pytest.approx(4 * without - gap.train, rel=1e-4)
    assert gap.train != pytest.approx(4 * without, rel=1e-3)


class OwnMask(nn.Module):
    """Draws a mask by itself, and scales by its mode: the two cannot be told apart."""

    def forward(self, x):
        return x * (torch.rand_like(x) < 0.5) * 2 if self.training else 3 * x


def test_a_share_of_noise_says_where_it_may_be_more_than_noise():
    data = normal()
    for module, more in ((OwnMask(), True), (OwnDropout(), False), (nn.Dropout(0.5), False)):
        (said,) = (share.explanation for share in gap_of(module, data, data).shares if "noise" in share.cause)
        assert "no defect" in said
        assert ("OwnMask draw random numbers in code of their own" in said) is more


def test_batches_that_cannot_be_mixed_are_not_told_to_be_generalisation_alone():
    named = [{"x": batch, "name": "a"} for batch in normal()]
    other = [batch | {"x": 2 * batch["x"]} for batch in named]
    gap = gap_of(OfTheBatch(), named, other, loss_fn=lambda model, batch: square(model, batch["x"]))
    (said,) = (share.explanation for share in gap.shares if share.cause == "other data")
    assert "batches of evaluation, on which outputs depend" in said
    gap = gap_of(nn.Linear(4, 4), named, other, loss_fn=lambda model, batch: square(model, batch["x"]))
    assert gap.shares[-1].explanation.startswith("generalisation: ")


class Taken(nn.Module):
    """Reads the rows of a batch one after another, as a tagger reads words."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(4, 4)

    def forward(self, x):
        return self.cell(x)[0]


def test_rows_in_an_order_are_not_mixed():
    data = normal()
    gap = gap_of(examples.seeded(Taken), data, [2 * batch for batch in data])
    assert [share.cause for share in gap.shares] == ["dropout and other noise", "other data"]
    assert "batches of evaluation, on which outputs depend" in gap.shares[-1].explanation


class Drifting(nn.Module):
    """Adds to what it multiplies by at every call in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.ones(()))

    def forward(self, x):
        if not self.training:
            self.kept += 0.1
        return x * self.kept


def test_what_an_evaluation_writes_does_not_reach_the_shares_behind_it():
    """Three batches at 1.1, 1.2 and 1.3, each time that they are evaluated: other data are no part of the gap."""
    gap = gap_of(Drifting(), [torch.ones(16, 4)] * 3, [torch.ones(16, 4)] * 3)
    assert gap.of("other code that depends on the mode") == pytest.approx((1.21 + 1.44 + 1.69) / 3 - 1, rel=1e-5)
    assert gap.of("other data") == pytest.approx(0, abs=1e-6)


def test_instance_norm_with_running_statistics_is_no_batch_norm():
    norm = nn.InstanceNorm1d(4, track_running_stats=True)
    data = [batch[:, :, None] * torch.arange(1.0, 6.0) for batch in normal()]
    batch_norm = nn.BatchNorm1d(4)
    nn.init.constant_(batch_norm.weight, 3.0)
    for model in (norm, nn.Sequential(batch_norm, norm)):
        gap = gap_of(model, data, data)
        assert abs(gap.of("other code that depends on the mode")) > 0.1
        assert abs(gap.of("batch statistics")) < 1e-3


def frozen_by_surgery(model):
    surgery.freeze(model)
    return square


def frozen_by_mode(model):
    model.eval()
    return square


def frozen_by_the_loss(model):
    def loss_fn(model, batch):
        model.eval()
        return square(model, batch)

    return loss_fn


@pytest.mark.parametrize("freeze", [frozen_by_surgery, frozen_by_mode, frozen_by_the_loss])
def test_norms_that_keep_their_statistics_in_training_have_no_share(freeze):
    """Data are far from the running statistics, and both modes normalize by these: nothing changes."""
    norm = nn.BatchNorm1d(4, affine=False)
    model, data = nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 4), norm), normal(2.0)
    loss_fn = freeze(norm)
    case = Case(model, loss_fn, data, eval_loader=list(data))
    gap = checking.check(case, ["NS103"]).gap
    assert [share.loss for share in gap.shares] == [0.0] * 5
    assert {share.explanation for share in gap.shares} == {"this changes nothing here"}
    if freeze is not frozen_by_the_loss:  # without watched steps, only modes and marks are known
        assert [share.loss for share in measure_gap(case, 3).shares] == [0.0] * 5


class Beside(nn.Module):
    """Two norms, each of half of the features."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x):
        return torch.cat([self.first(x[:, :2]), self.second(x[:, 2:])], 1)


def test_beside_a_frozen_norm_the_shares_are_those_of_the_other():
    data, other = normal(2.0), normal(3.0)
    model = Beside()
    surgery.freeze(model, only="first")
    both = measure_gap(Case(model, square, data, eval_loader=other), 3)
    halves = [[batch[:, 2:] for batch in batches] for batches in (data, other)]
    alone = measure_gap(Case(nn.BatchNorm1d(2), square, halves[0], eval_loader=halves[1]), 3)
    for cause in ("batch statistics", "domain shift", "running statistics"):
        assert both.of(cause) == pytest.approx(alone.of(cause) / 2, rel=1e-4)
        assert alone.of(cause) != 0


@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.BatchNorm1d(4)])
def test_the_very_loader_of_training_is_no_other_data(model):
    loader = DataLoader(torch.cat(normal()), 16, shuffle=True)
    gap, without = (gap_of(model, loader, other) for other in (loader, None))
    assert [share.cause for share in gap.shares] == [share.cause for share in without.shares]
    assert not {"other data", "domain shift"} & {share.cause for share in gap.shares}


class Doubled(nn.Module):
    """Gives twice its input in eval mode."""

    def forward(self, x):
        return x * (1.0 if self.training else 2.0)


@pytest.mark.parametrize(("second", "shown"), [(-0.5, False), (0.3, False), (0.4, True)])
def test_no_cause_is_named_for_a_share_within_two_errors(second, shown):
    """The rises of two batches are 1 and another: their error is half of their distance, 0.35 of 0.65, 0.3 of 0.7."""
    data = [torch.ones(16, 4), torch.full((16, 4), second)]
    gap = gap_of(Doubled(), data, list(data), loss_fn=lambda model, x: model(x).mean())
    share = next(share for share in gap.shares if "mode" in share.cause)
    assert (share.loss, share.error) == (pytest.approx((1 + second) / 2), pytest.approx((1 - second) / 2))
    assert ("computes something else in eval mode" in share.explanation) is shown
    assert ("within its noise over batches" in share.explanation) is not shown


@pytest.mark.parametrize(
    ("train", "evaluation", "said"),
    [
        (float("nan"), 0.0, "the loss of training is not finite (nan): there is no gap to take apart"),
        (1.0, float("inf"), "the loss of evaluation is not finite (inf), that of training is (1): it is lost in the"),
    ],
)
def test_a_loss_that_is_not_finite_is_said_once_and_not_taken_apart(train, evaluation, said):
    data = [torch.ones(16, 4)] * 3

    def loss_fn(model, batch):
        return (model(batch[0]) * 0).sum() + batch[1]

    loaders = [[(x, torch.tensor(value)) for x in data] for value in (train, evaluation)]
    found = checking.check(Case(nn.Linear(4, 4), loss_fn, loaders[0], eval_loader=loaders[1]), ["NS103"])
    assert found.gap is None
    (why,) = found.notes
    assert why.startswith(said)
    assert "of training" in why
