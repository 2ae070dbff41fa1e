"""Surgery on this library's own batch norms: their switches, options, masks."""

import copy
import pickle

import pytest
import torch
from torch import nn

from kit.small_convnets import images, small_convnet, state_of, trained_looking
from normscope import layers, surgery
from normscope._errors import UsageError
from normscope.layers import BatchNorm1d, BatchNorm2d

F64 = torch.float64


def statistics(layer):
    return {name: value.clone() for name, value in layer.named_buffers()}


def same(a, b):
    return all(torch.equal(a[name], value) for name, value in b.items())


def switched():
    model = small_convnet()
    surgery.convert(model, "batch")
    model[1].frozen = True
    return model


def test_frozen_by_its_own_switches_is_frozen_to_all_of_surgery():
    model = switched()
    assert surgery.is_frozen(model[1])
    assert "already" in surgery.freeze(model, only="1").skipped[0].why
    before = statistics(model[1])
    report = surgery.recalibrate(model.train(), [images()])
    assert {skip.path for skip in report.skipped} == {"1"}
    assert same(before, statistics(model[1]))
    assert surgery.fold(copy.deepcopy(model).train(), only="1").done  # its statistics are fixed in training too
    surgery.unfreeze(model)
    assert not surgery.is_frozen(model[1])
    model(images())
    assert not same(before, statistics(model[1]))


def test_a_norm_frozen_by_its_switch_is_thawed_by_that_switch_after_a_conversion():
    model = switched().train()
    surgery.convert(model, "renorm")
    assert model[1].frozen
    before = statistics(model[1])
    model(images())
    assert same(before, statistics(model[1]))
    model[1].frozen = False
    model.train()(images())
    assert not same(before, statistics(model[1]))


def test_asked_to_recalibrate_a_switched_layer_it_stays_frozen():
    model = switched().train()
    twin = copy.deepcopy(model)
    surgery.unfreeze(twin)
    surgery.recalibrate(model, [images(), images(seed=2)], frozen=True)
    surgery.recalibrate(twin, [images(), images(seed=2)])
    assert model[1].frozen
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("way", ["train", "deepcopy", "pickle"])
@pytest.mark.parametrize("by", ["switch", "surgery", "both"])
@pytest.mark.parametrize("use_running", [None, False])
def test_every_freeze_survives(way, by, use_running):
    model = nn.Sequential(trained_looking(BatchNorm2d(3, use_running=use_running)))
    if by != "switch":
        surgery.freeze(model, affine=True)
    if by != "surgery":
        model[0].frozen = True
    model = {"train": lambda m: m, "deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}[way](
        model
    )
    before, x = statistics(model[0]), images()
    right = nn.functional.batch_norm(
        x, *(model[0].state_dict()[n] for n in ("running_mean", "running_var", "weight", "bias"))
    )
    torch.testing.assert_close(model.train()(x), right)
    assert same(before, statistics(model[0]))
    surgery.unfreeze(model)
    assert not surgery.is_frozen(model[0])
    assert by != "surgery" or model[0].use_running is use_running
    model(x)
    assert not same(before, statistics(model[0]))


def test_a_switched_layer_stays_frozen_as_torchs_and_back():
    model = switched().train()
    right = model[1](x := torch.randn(4, 4, 3, 3))
    for to in ("torch-batch", "batch"):
        assert "still frozen" in surgery.convert(model, to, only="1")["1"].detail
        model.train()
        assert surgery.is_frozen(model[1])
        torch.testing.assert_close(model[1](x), right)


KEPT = {
    "activation": "leaky_relu",
    "negative_slope": 0.2,
    "accumulate": 2,
    "on_bad_update": "raise",
    "unbiased_variance": False,
    "update_statistics": False,
}


def test_options_that_apply_are_kept_and_others_named():
    model = nn.Sequential(nn.Identity(), trained_looking(BatchNorm2d(6, statistics="ghost", group_size=2, **KEPT)))
    buffers = statistics(model[1])
    report = surgery.convert(model, "sync")
    assert model[1].statistics == "sync"
    assert all(getattr(model[1], name) == value for name, value in KEPT.items())
    assert "group_size" in report["1"].detail
    assert same(buffers, statistics(model[1]))
    surgery.convert(model, "ghost", group_size=3, accumulate=1)
    assert (model[1].statistics, model[1].group_size, model[1].accumulate) == ("ghost", 3, 1)
    report = surgery.convert(model, "torch-batch")
    assert [type(module) for module in model[1].then] == [nn.LeakyReLU]
    assert model[1].then[0].negative_slope == 0.2
    assert "LeakyReLU, which stays" in report["1"].detail
    for name in ("on_bad_update", "unbiased_variance", "update_statistics"):
        assert name in report["1"].detail


def test_a_micro_batch_already_taken_in_is_not_forgotten():
    model = nn.Sequential(BatchNorm1d(3, accumulate=2, dtype=F64))
    twin = copy.deepcopy(model)
    x = torch.randn(2, 5, 3, dtype=F64)
    for m in (model, twin):
        m(x[0])
    surgery.convert(model, "batch", on_bad_update="skip")
    for m in (model, twin):
        m(x[1])
    torch.testing.assert_close(model[0].running_mean, twin[0].running_mean)
    assert model[0].num_batches_tracked == 1


def test_ghost_renorm_and_sync_are_kinds():
    x = torch.randn(6, 3, 4, 4, dtype=F64)
    model = trained_looking(nn.Sequential(nn.BatchNorm2d(3, dtype=F64)))
    whole = nn.BatchNorm2d(3, affine=False, dtype=F64)
    gain, shift = (model[0].state_dict()[n].view(-1, 1, 1) for n in ("weight", "bias"))
    surgery.convert(model, "ghost", group_size=2)
    torch.testing.assert_close(model(x), torch.cat([whole(part) for part in x.split(2)]) * gain + shift)
    surgery.convert(model, "sync")  # on the CPU, where torch's refuses tensors
    torch.testing.assert_close(model(x), whole(x) * gain + shift)
    surgery.convert(model, "renorm")
    assert model[0].statistics == "renorm"
    with pytest.raises(UsageError, match="group_size"):
        surgery.convert(model, "ghost")
    assert model[0].statistics == "renorm"


def test_statistics_asked_to_be_wide_keep_their_values():
    model = trained_looking(nn.Sequential(BatchNorm2d(3).bfloat16()))
    right = model[0].running_var.float()
    surgery.convert(model, "batch", float32_statistics=True)
    assert model[0].running_var.dtype == torch.float32
    assert torch.equal(model[0].running_var, right)


class Padded(nn.Module):
    def __init__(self, how, **options):
        super().__init__()
        self.how = how
        self.conv = nn.Conv1d(2, 3, 1, dtype=F64)
        self.norm = BatchNorm1d(3, dtype=F64, **options)

    def forward(self, x, lengths):
        h = self.conv(x)
        mask = torch.arange(h.shape[-1]) < lengths[:, None]
        if self.how == "lengths":
            return self.norm(h, lengths=lengths)
        if self.how == "each channel":
            mask = mask[:, None].repeat(1, 3, 1)
            mask[:, 1, 1:] = False
        return self.norm(h, mask)


OPTIONS = [{}, {"statistics": "renorm"}, {"statistics": "sync"}, {"statistics": "ghost", "group_size": 2}]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("how", ["mask", "lengths", "each channel"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padding_does_not_count_in_recalibration(how, options, sequential):
    torch.manual_seed(0)
    model = Padded(how, **options)
    data = [(torch.randn(4, 2, 5, dtype=F64) + 3, torch.tensor(n)) for n in ([5, 3, 1, 2], [1, 4, 4, 5])]
    for x, lengths in data:
        x[(torch.arange(5) >= lengths[:, None])[:, None].expand_as(x)] = 1e3
    report = surgery.recalibrate(model, data, lambda m, batch: m(*batch), sequential=sequential)
    rows = torch.cat([model.conv(x).movedim(1, -1)[torch.arange(5) < n[:, None]] for x, n in data])
    if how == "each channel":
        firsts = torch.cat([model.conv(x)[:, 1, 0] for x, _ in data])
        torch.testing.assert_close(model.norm.running_mean[1], firsts.mean())
        assert report["norm"].numbers["count"] == 8
        rows = rows[:, [0, 2]]
    columns = [0, 2] if how == "each channel" else [0, 1, 2]
    torch.testing.assert_close(model.norm.running_mean[columns], rows.mean(0))
    torch.testing.assert_close(model.norm.running_var[columns], rows.var(0))
    assert all(getattr(model.norm, name) == value for name, value in options.items())
    assert model.norm.update_statistics


def test_a_masked_norm_is_not_replaced_by_one_without_masks_nor_folded():
    model = Padded("mask")
    example = (torch.randn(4, 2, 5, dtype=F64), torch.tensor([5, 3, 1, 2]))
    assert "mask" in surgery.convert(model, "group", example=example).skipped[0].why
    before = state_of(model)
    report = surgery.fold(model.eval(), example)
    assert "mask" in report.skipped[0].why
    assert list(before[3]) == list(state_of(model)[3])
    assert "mask" in surgery.fold(model).skipped[0].why
    model.norm = layers.BatchNorm1d(3, dtype=F64, use_running=False)
    assert "each batch" in surgery.fold(model.eval(), example).skipped[0].why
