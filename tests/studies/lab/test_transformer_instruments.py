"""Instruments of transformers: attention logits, the stream by block, distances of batch statistics, held-out loss."""

import math

import pytest
import torch
from torch import nn

from kit.planted_evidence import Plant
from normscope.records import Cell
from normscope.studies.lab import token_norms
from normscope.studies.lab.attention_meter import AttentionMeter
from normscope.studies.lab.batch_distance import NAMES, BatchDistance, distances
from normscope.studies.lab.data import load
from normscope.studies.lab.held_out import HELD_OUT, chance
from normscope.studies.lab.stream_by_block import stream_by_block, worth_of_blocks
from normscope.studies.lab.transformer import transformer

CELL = Cell(study="s", arm="a", seed=0, point={}, settings={})
SIZES = {"width": 8, "heads": 2, "init": "xavier"}


def model_of(blocks=2, **options):
    return transformer(load("text"), token_norms.layer(), seed=0, context=16, blocks=blocks, **SIZES, **options)


def windows(count=3):
    split = load("text").split(0, context=16)
    return split.x_test[:count], split.y_test[:count]


def by_name(records):
    return {(record.site, record.name): record.value for record in records}


@torch.no_grad()
def test_logits_and_weights_are_those_of_the_formula():
    model, (x, _) = model_of(blocks=1), windows()
    meter = AttentionMeter(1, every=2)
    meter.attach(model)
    meter.active = meter.wants(0)
    model(x)
    found = by_name(meter.read("c", 0))
    attention, h = model.blocks[0].attention, model.blocks[0].attention_norm(model.stream(x))
    q, k = (part(h).view(3, 16, 2, 4).transpose(1, 2) for part in (attention.query, attention.key))
    logits = q @ k.transpose(-2, -1) / 2
    earlier = torch.ones(16, 16, dtype=torch.bool).tril()
    weights = torch.where(earlier, logits, torch.tensor(-math.inf)).softmax(-1)
    assert found["blocks.0.attention", "largest_logit"] == pytest.approx(float(logits.abs().max()), rel=1e-5)
    assert found["blocks.0.attention", "largest_weight"] == pytest.approx(float(weights.amax(-1).mean()), rel=1e-5)
    meter.active = meter.wants(1)
    model(x)
    assert list(meter.read("c", 1)) == []
    meter.close()
    assert not any(module._forward_hooks for module in model.modules())


class Turned(nn.Module):
    """Exchanges the two halves of the features, one of them with the other sign: a right angle; or scales."""

    def __init__(self, factor=0.0):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        first, second = x.chunk(2, -1)
        return self.factor * x if self.factor else torch.cat([-second, first], -1)


def test_the_stream_is_turned_and_widened_as_planted():
    model, (x, _) = model_of(blocks=3), windows()
    model.blocks[0], model.blocks[1], model.blocks[2] = Turned(), Turned(3.0), Turned(-1.0)
    found = by_name(stream_by_block(CELL, model, x, 5))
    angles = [found[f"blocks.{index}", "angle"] for index in range(3)]
    assert angles == pytest.approx([90, 0, 180], abs=0.1)
    variances = [found[f"blocks.{index}", "variance"] for index in range(3)]
    assert variances[1] / variances[0] == pytest.approx(9, rel=1e-5)
    assert variances[2] / variances[1] == pytest.approx(1, rel=1e-5)


def test_a_block_that_does_nothing_is_worth_nothing_and_blocks_are_put_back():
    model, batch = model_of(blocks=3), windows()
    model.blocks[1] = nn.Identity()
    before = list(model.blocks)
    found = by_name(worth_of_blocks(CELL, model, batch, 5))
    assert found["blocks.1", "worth"] == 0
    assert found["blocks.0", "worth"] != 0
    model.blocks[0] = nn.Identity()
    without = nn.functional.cross_entropy(model(batch[0]), batch[1]).item()
    model.blocks[0] = before[0]
    whole = nn.functional.cross_entropy(model(batch[0]), batch[1]).item()
    assert found["blocks.0", "worth"] == pytest.approx(without - whole, abs=1e-5)
    assert all(a is b for a, b in zip(model.blocks, before, strict=True))


def test_distances_of_a_batch_are_those_by_hand():
    norm = nn.BatchNorm1d(2, eps=0.0)
    norm.running_mean.copy_(torch.tensor([1.0, -1.0]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0]))
    x = torch.tensor([[2.0, -4.0], [6.0, 0.0]])  # means 4 and -2, variances 4 and 4
    wanted = [math.sqrt(9 + 1) / 2, 3 / 2, math.sqrt((9 / 4 + 1) / 2), math.sqrt(math.log(4) ** 2 / 2)]
    assert distances(norm, x).tolist() == pytest.approx(wanted, rel=1e-6)


def test_means_of_independent_values_lie_one_over_the_root_of_their_number_away():
    norm, g = nn.BatchNorm2d(400), torch.Generator().manual_seed(0)
    found = distances(norm, torch.randn(5, 400, 4, 10, generator=g)).tolist()
    assert found[NAMES.index("relative_mean")] == pytest.approx(1 / math.sqrt(200), rel=0.1)
    assert found[NAMES.index("relative_variance")] == pytest.approx(math.sqrt(2 / 200), rel=0.15)


def test_distances_are_read_before_the_running_statistics_take_the_batch_in():
    model = nn.Sequential(nn.BatchNorm1d(3)).train()
    meter = BatchDistance(["0"], every=1)
    meter.attach(model)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)) + 5
    meter.active = True
    model(x)
    found = by_name(meter.read("c", 0))
    # Running means begin at 0 and variances at 1.
    assert found["0", "mean"] == pytest.approx(float(x.mean(0).norm()) / 3, rel=1e-5)
    meter.active = False
    model(x)
    assert list(meter.read("c", 1)) == []
    meter.close()
    assert not model[0]._forward_pre_hooks


def test_a_run_that_diverged_or_ended_worse_than_chance_has_the_loss_of_chance():
    plant = Plant({}, seeds=4)
    for seed, (loss, diverged) in enumerate([(2.5, 0), (9.0, 0), (None, 1), (None, None)]):
        plant.add("a", seed, "loss", 4.0, probe="chance")
        if loss is not None:
            plant.add("a", seed, "test_loss", loss, step=9)
        if diverged is not None:
            plant.add("a", seed, "diverged", diverged, step=9)
    found = HELD_OUT(plant.evidence(), arm="a").tolist()
    assert found[:3] == [2.5, 4.0, 4.0]
    assert math.isnan(found[3])  # it has not ended


def test_chance_is_the_loss_of_equally_likely_classes():
    (record,) = chance(CELL, model_of())
    assert record.value == pytest.approx(math.log(96), rel=1e-9)
    assert load("text").classes == 96
