"""The trail of a unit's distribution against distributions whose distances are known; its judge on planted paths."""

import pytest
import torch
from torch import nn

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import settings
from normscope import studies
from normscope.records import Cell, standing
from normscope.studies.lab.arms import Noted
from normscope.studies.lab.trail import Trail

SLUG = "stable-activation-distributions"


class Shifted(nn.Module):
    """Puts out its input times a scale plus a shift, and keeps count in a buffer."""

    def __init__(self):
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.scale + self.shift


def follow(moves):
    """Follow a unit through (shift, scale), one a reading."""
    inner = Shifted()
    model = nn.Sequential(Noted(inner))
    x = torch.randn(401, 1, generator=torch.Generator().manual_seed(0))
    trail = Trail(Cell(study="x", arm="a", seed=0, point={}, settings={}), x, 10)
    records = []
    for index, (shift, scale) in enumerate(moves):
        with torch.no_grad():
            inner.shift.fill_(shift)
            inner.scale.fill_(scale)
        records += trail(10 * index, model)
        records += trail(10 * index + 1, model)  # not due
    assert inner.calls == 0  # buffers are those of a copy
    return records + list(trail.finish()), x


def read(records, name):
    return [record.value for record in records if record.name == name]


def test_a_shift_is_its_own_distance_and_no_change_of_shape():
    records, _ = follow([(0, 1), (0.5, 1), (2.0, 1)])
    assert read(records, "path") == pytest.approx([0.5, 1.5], rel=1e-5)
    assert read(records, "shape_path") == pytest.approx([0, 0], abs=1e-6)
    assert read(records, "displacement") == pytest.approx([2.0], rel=1e-5)


def test_a_scale_moves_each_value_in_proportion():
    records, x = follow([(0, 1), (0, 3)])
    assert read(records, "path") == pytest.approx([2 * float(x.abs().mean())], rel=1e-5)
    first, last = read(records, "iqr")
    assert last == pytest.approx(3 * first, rel=1e-5)


def test_there_and_back_is_a_path_without_displacement():
    records, _ = follow([(0, 1), (1, 1), (0, 1)])
    assert sum(read(records, "path")) == pytest.approx(2.0, rel=1e-5)
    assert read(records, "displacement") == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("moves", "step"),
    [([(0, 1)] * 4, 0), ([(5, 1), (5, 1), (0, 1), (0, 1)], 20), ([(0, 1), (0, 2), (0, 1), (0, 1)], 20)],
)
def test_settled_is_the_step_after_the_last_reading_outside_a_tenth(moves, step):
    assert read(follow(moves)[0], "settled") == [step]


def planted(none=4.0, batch=1.0, *, slow=None, shape=1.0):
    """Paths of both arms, without norm ``slow`` at the smallest rate; ``shape``: its path without over with."""
    made = settings(SLUG, lrs=[0.1, 0.5, 2.0], steps=40)
    plant = Plant(made)
    for seed in plant.seeds:
        for lr in made["lrs"]:
            for arm, path in (("none", slow if slow and lr == 0.1 else none), ("batch", batch), ("layer", none)):
                found = {"path": path, "displacement": path, "settled": 9, "iqr": 2}
                found["shape_path"] = shape if arm == "none" else 1.0
                for salt, (name, value) in enumerate(found.items()):
                    value *= 1 + jitter(seed, 0.02, 10 * salt + len(arm))
                    plant.add(arm, seed, name, value, probe="trail", site="a", lr=lr)
                plant.reach(arm, seed, 10 if arm == "batch" else 30, 40, lr=lr)
                plant.end(arm, seed, lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "batch", "outcome"),
    [(4, 1, "holds"), (1, 4, "opposite"), (1, 1, "no effect that matters"), (2, 1, "unclear")],
)
def test_the_judge_finds_what_was_planted(none, batch, outcome):
    verdict = studies.get(SLUG).judge(planted(none, batch))
    assert verdict.outcome.value == outcome
    assert standing(verdict) == outcome
    assert verdict.name == "path, learning rate 0.5"


def test_a_network_that_stands_still_at_one_rate_makes_it_depend_on_the_rate():
    assert standing(studies.get(SLUG).judge(planted(slow=0.25))) == "depends on the learning rate"


@pytest.mark.parametrize(("shape", "outcome"), [(3.0, "holds"), (1.0, "no effect that matters"), (0.3, "opposite")])
def test_the_shape_is_a_claim_of_its_own(shape, outcome):
    named = words_by_name(studies.get(SLUG).judge(planted(shape=shape)))
    assert named["shape path, learning rate 0.5"] == named["shape path, own best rates"] == outcome
    assert named["displacement, learning rate 0.5"] == "holds"
    assert named["settled, learning rate 0.5"] == "no effect that matters"
