"""Recalibrated statistics are those of the data, whatever the split, and nothing else moves."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn

from kit.small_convnets import assert_same_state, images, small_convnet, state_of, trained_looking, twin
from normscope import layers, surgery
from normscope._errors import DataError, NonFiniteError, UsageError


def one(channels=3, kind=nn.BatchNorm1d, **options):
    return nn.Sequential(kind(channels, **options))


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=8).filter(lambda s: sum(s) > 1),
    offset=st.sampled_from([0.0, 1e3, 1e6]),
    ours=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_split_gives_numpys_statistics_of_the_whole(sizes, offset, ours):
    data = np.random.default_rng(sum(sizes)).normal(offset, [1.0, 0.01, 5.0], (sum(sizes), 3))
    batches = [torch.from_numpy(part) for part in np.split(data, np.cumsum(sizes)[:-1])]
    model = one(kind=layers.BatchNorm1d if ours else nn.BatchNorm1d).double()
    report = surgery.recalibrate(model, batches, call=lambda m, b: m(b) if len(b) else None)
    np.testing.assert_allclose(model[0].running_mean.numpy(), data.mean(0), rtol=1e-13, atol=1e-13)
    # The oracle itself rounds: eps * offset^2 beside a variance of 1e-4.
    np.testing.assert_allclose(model[0].running_var.numpy(), data.var(0, ddof=1), rtol=1e-6)
    assert report["0"].numbers["count"] == sum(sizes)
    assert model[0].num_batches_tracked == len(sizes)


def test_a_planted_average_of_averages_is_caught():
    data = np.random.default_rng(0).normal(size=(9, 3))
    parts = data[:7], data[7:]
    wrong = np.mean([part.mean(0) for part in parts], 0)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wrong, data.mean(0), rtol=1e-13)


def test_a_short_last_batch_moves_torchs_mean_from_0_to_10_and_ours_not():
    batches = [torch.zeros(64, 1) + torch.randn(64, 1) * 0.01 for _ in range(1)] + [torch.full((2, 1), 20.0)]
    batches[1][1] += 0.01
    model = one(1)
    update_bn(batches, model)
    assert model[0].running_mean.item() == pytest.approx(10, abs=0.1)
    surgery.recalibrate(model, batches)
    assert model[0].running_mean.item() == pytest.approx(20 * 2 / 66, abs=0.01)


def test_torch_unfreezes_and_leaves_momentum_none_after_an_exception_and_ours_does_neither():
    def broken():
        yield torch.randn(4, 3)
        raise RuntimeError("the disk is full")

    model = one()
    with pytest.raises(RuntimeError, match="disk"):
        update_bn(broken(), model)
    assert model[0].momentum is None
    model = trained_looking(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))).train()
    model[0].eval()
    frozen = model[0].running_mean.clone()
    theirs = twin(model)
    update_bn([torch.randn(8, 3)], theirs)
    assert not torch.equal(theirs[0].running_mean, frozen)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="disk"):
        surgery.recalibrate(model, broken())
    assert_same_state(before, state_of(model))
    report = surgery.recalibrate(model, [torch.randn(8, 3)])
    assert torch.equal(model[0].running_mean, frozen)
    assert "evaluation mode in a model that trains" in report.skipped[0].why
    assert (model[0].training, model[1].training, model[1].momentum) == (False, True, 0.1)


def test_fvcores_formula_goes_negative_and_ours_does_not():
    """fvcore's PreciseBN: mean of squares (from unbiased batch variances) minus the squared mean, in float32."""
    torch.manual_seed(0)
    batches = [1000 + 0.01 * torch.randn(16, 64) for _ in range(20)]
    means, squares = torch.zeros(64), torch.zeros(64)
    for number, x in enumerate(batches, 1):
        mean = x.mean(0)
        square = x.var(0, correction=0) + mean.square()
        means += (mean - means) / number
        squares += (square - squares) / number
    assert (squares - means.square()).min() < 0
    model = one(64)
    surgery.recalibrate(model, batches)
    assert (model[0].running_var.sqrt() / 0.01 - 1).abs().max() < 0.2
    torch.testing.assert_close(model[0].running_var, torch.cat(batches).double().var(0).float())


def test_frozen_norms_are_left_unless_asked():
    model = small_convnet()
    surgery.freeze(model, only="1")
    frozen = model[1].running_mean.clone()
    report = surgery.recalibrate(model, [images()])
    assert torch.equal(model[1].running_mean, frozen)
    assert "frozen=True" in report.skipped[0].why
    surgery.recalibrate(model, [images()], frozen=True)
    assert not torch.equal(model[1].running_mean, frozen)
    assert surgery.is_frozen(model[1])
    assert not model[1].training


@pytest.mark.parametrize("training", [False, True])
def test_nothing_but_the_statistics_moves(training):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x

    model = nn.Sequential(Counting(), *small_convnet(), layers.TimeVaryingNoise(2)).train(training)
    model[1].weight.grad = torch.ones_like(model[1].weight)
    before = state_of(model)
    torch.manual_seed(11)
    random = torch.get_rng_state()
    surgery.recalibrate(model, [images(), images(3)], dropout=True)
    after = state_of(model)
    assert torch.equal(random, torch.get_rng_state())
    assert before[:3] == after[:3]
    moved = {k for k in before[3] if not torch.equal(before[3][k], after[3][k])}
    assert moved == {k for k in before[3] if "running" in k or "num_batches" in k}
    assert model[1].weight.grad.eq(1).all()
    surgery.recalibrate(model, [images()], dropout=True, preserve_rng=False)
    assert not torch.equal(random, torch.get_rng_state())


def test_dropout_off_by_default_and_on_by_request():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    data = torch.ones(20000, 4)
    surgery.recalibrate(model, [data])
    assert model[1].running_var.max() == 0
    surgery.recalibrate(model, [data], dropout=True)
    torch.testing.assert_close(model[1].running_var, torch.ones(4), rtol=0.05, atol=0)


def test_any_call_signature():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x, scale=1.0):
            return self.bn(x * scale)

    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    expected = torch.tensor([1.0, 3.0])
    for batch, factor in (
        (x, 1),
        ((x, "a label"), 1),
        ([x, torch.zeros(2)], 1),
        ({"x": x, "scale": 3.0}, 3),
    ):
        model = Two()
        surgery.recalibrate(model, [batch])
        torch.testing.assert_close(model.bn.running_mean, expected * factor)
    model = Two()
    surgery.recalibrate(model, range(1, 3), lambda m, k: m(x, scale=k), progress=True)
    torch.testing.assert_close(model.bn.running_mean, expected * 1.5)
    surgery.recalibrate(model, iter([x, x * 100]), num_batches=1)
    torch.testing.assert_close(model.bn.running_mean, expected)


@pytest.mark.parametrize("sequential", [False, True])
def test_fewer_batches_than_asked_for_are_said_so(sequential):
    model, data = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)), [torch.randn(8, 3) for _ in range(4)]
    report = surgery.recalibrate(model, data, num_batches=7, sequential=sequential)
    assert report.notes == ("the loader gave 4 batches of the 7 asked for",)
    assert "note    the loader gave 4 batches" in str(report)
    assert model[1].num_batches_tracked == 4
    for enough in (4, 2, None):
        assert surgery.recalibrate(model, data, num_batches=enough, sequential=sequential).notes == ()
    assert surgery.recalibrate(model, data[:1], num_batches=2).notes == ("the loader gave 1 batch of the 2 asked for",)


def test_empty_and_unfit_data():
    model = small_convnet()
    before = state_of(model)
    for loader in ([], iter([])):
        with pytest.raises(DataError, match="no batches"):
            surgery.recalibrate(model, loader)
    with pytest.raises(DataError, match="no norm was called"):
        surgery.recalibrate(model, [images()], lambda m, b: None)
    with pytest.raises(NonFiniteError, match="batch 1: 1 was given"):
        surgery.recalibrate(model, [images(), images() * torch.nan])
    with pytest.raises(UsageError, match="num_batches"):
        surgery.recalibrate(model, [images()], num_batches=0)
    with pytest.raises(UsageError, match="not an iterator"):
        surgery.recalibrate(model, iter([images()]), sequential=True)
    assert_same_state(before, state_of(model))
    report = surgery.recalibrate(one(track_running_stats=False), [torch.randn(4, 3)])
    assert "no running statistics" in report.skipped[0].why


def test_a_batch_of_one_is_taken_in():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3), nn.BatchNorm1d(3))
    data = torch.randn(9, 3)
    surgery.recalibrate(model, [data[:8], data[8:]])
    torch.testing.assert_close(model[1].running_mean, model[0](data).mean(0).detach())
    surgery.recalibrate(model, [data[:1]] * 1 + [data[1:]])
    torch.testing.assert_close(model[1].running_var, model[0](data).var(0).detach())


def test_the_default_is_training_statistics_and_sequential_is_the_fixed_point_of_evaluation():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.BatchNorm1d(8)
    )
    model = trained_looking(model).double()
    data = torch.randn(60, 5, dtype=torch.float64) * torch.linspace(0.5, 2, 60, dtype=torch.float64).unsqueeze(1)
    whole, split = [data], list(data.split(7))
    surgery.recalibrate(model, split, sequential=True)
    small = twin(model).state_dict()
    h = data  # by hand, layer by layer, in evaluation
    model.eval()
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            torch.testing.assert_close(layer.running_mean, h.mean(0), rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(layer.running_var, h.var(0), rtol=1e-11, atol=1e-11)
        h = layer(h)
    report = surgery.recalibrate(model, whole, sequential=True)
    for name, value in model.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(value, small[name], rtol=1e-10, atol=1e-10)
    assert all(c.numbers["mean_shift"] < 1e-10 for c in report)
    surgery.recalibrate(model, split)
    assert (model[4].running_var - small["4.running_var"]).abs().max() > 1e-3
    assert model[4].num_batches_tracked == len(split)


def test_shared_norms_pool_both_calls():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2).double()

        def forward(self, x):
            return self.bn(x) + self.bn(x + 3)

    model, x = Shared(), torch.randn(20, 2, dtype=torch.float64)
    surgery.recalibrate(model, [x])
    both = torch.cat([x, x + 3])
    torch.testing.assert_close(model.bn.running_mean, both.mean(0))
    torch.testing.assert_close(model.bn.running_var, both.var(0))


def test_report_says_how_far_the_old_statistics_were():
    model = one(2)
    model[0].running_mean.copy_(torch.tensor([4.0, 0.0]))
    data = torch.tensor([[0.0, 0.0], [4.0, 2.0]])
    numbers = surgery.recalibrate(model, [data])["0"].numbers
    assert numbers["mean_shift"] == pytest.approx(1.0, rel=1e-4)
    assert numbers["mean_shift_rms"] == pytest.approx(1.0, rel=1e-4)
    assert numbers["variance_ratio_high"] == pytest.approx(4.0, rel=1e-4)
    assert numbers["variance_ratio_low"] == pytest.approx(1.0, rel=1e-4)


def test_maps_sync_and_low_precision():
    x = torch.randn(5, 3, 4, 4) * 2 + 1
    for norm in (nn.BatchNorm2d(3), nn.SyncBatchNorm(3), layers.BatchNorm2d(3)):
        model = nn.Sequential(norm)
        surgery.recalibrate(model, [x[:2], x[2:]])
        torch.testing.assert_close(model[0].running_var, x.var((0, 2, 3)))
        assert "forward" not in vars(norm)
    model = nn.Sequential(nn.BatchNorm2d(3)).to(torch.bfloat16)
    surgery.recalibrate(model, [x.bfloat16()])
    assert model[0].running_mean.dtype is torch.bfloat16


def test_momentum_none_and_biased():
    model = one(3, momentum=None)
    x = torch.randn(10, 3)
    surgery.recalibrate(model, [x, x], unbiased=False)
    torch.testing.assert_close(model[0].running_var, x.var(0, correction=0))
    model.train()(x)
    assert model[0].num_batches_tracked == 3
    assert math.isfinite(model[0].running_mean.sum())


@pytest.mark.parametrize("sequential", [False, True])
def test_a_call_may_take_gradients_itself_and_no_batch_counts_twice(sequential):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    batches = [torch.randn(8, 2, generator=torch.Generator().manual_seed(seed)) * 3 + seed for seed in range(3)]

    def force(model, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]

    report = surgery.recalibrate(model, batches, force, sequential=sequential)
    whole = torch.cat(batches)
    assert torch.allclose(model[0].running_mean, whole.mean(0), atol=1e-6)
    assert torch.allclose(model[0].running_var, whole.var(0), rtol=1e-5)
    assert report["0"].numbers["count"] == 24
    assert model[0].num_batches_tracked == 3
    with pytest.raises(ZeroDivisionError):
        surgery.recalibrate(model, batches, lambda model, x: 1 / 0)


def test_a_name_with_brackets_is_the_name_of_one_norm():
    """Brackets mean a set of letters in a pattern, and a module may have them in its name."""
    model = nn.Sequential(OrderedDict((name, nn.BatchNorm1d(4)) for name in ("b0", "b[0]", "b*")))
    data = [torch.randn(64, 4) + 5 for _ in range(2)]
    for name in ("b[0]", "b*"):
        report = surgery.recalibrate(model, data, only=[name])
        assert [done.path for done in report.done] == [name]
    assert not model.b0.running_mean.any()
