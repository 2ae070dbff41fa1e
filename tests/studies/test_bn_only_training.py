"""Layers alone: the arms train what they say, and the judge tells them apart."""

import pytest
import torch

from kit.planted_evidence import Plant, jitter, outcomes, part
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.records import standing
from normscope.studies.claims.bn_only_training import train_random_weights
from normscope.studies.lab import norms
from normscope.studies.lab.data import load
from normscope.studies.lab.models import build

SLUG = "bn-only-training"
STUDY = studies.get(SLUG)


def planted(norm=0.75, random=0.4, *, everything=0.97, depths=(3,), shallow=None):
    """``norm`` is the accuracy of gamma and beta alone, ``shallow`` that in the network of 3 layers."""
    plant = Plant(settings(SLUG, depths=list(depths)))
    plant.chance()
    for seed in plant.seeds:
        for depth in depths:
            for salt, arm in enumerate(STUDY.ARMS):
                alone = shallow if shallow is not None and depth == 3 else norm
                value = {"norm": alone, "random": random, "all": everything}.get(arm, 0.9)
                plant.end(arm, seed, value + jitter(seed, 0.01, salt), depth=depth)
                plant.add(arm, seed, "count", 600, probe="affine", depth=depth)
    return plant.evidence()


@pytest.mark.parametrize(
    ("norm", "random", "outcome"),
    [(0.75, 0.4, "holds"), (0.5, 0.5, "no effect that matters"), (0.4, 0.75, "opposite"), (0.55, 0.5, "unclear")],
)
def test_the_judge_finds_what_was_planted(norm, random, outcome):
    assert STUDY.judge(planted(norm, random)).outcome.value == outcome


def test_the_deepest_network_makes_the_headline_whatever_the_order():
    for depths in ([3, 6], [6, 3]):
        verdict = STUDY.judge(planted(depths=depths, shallow=0.42))
        assert verdict.name == "6 layers"
        assert verdict.outcome.value == "holds"
        assert part(verdict, "3 layers").outcome.value == "no effect that matters"
        assert standing(verdict) == "depends on the depth"


@pytest.mark.parametrize(("everything", "outcome"), [(0.97, "opposite"), (0.76, "holds"), (0.5, "holds")])
def test_the_distance_to_the_full_network_is_told_apart(everything, outcome):
    assert outcomes(STUDY.judge(planted(everything=everything)), "full network") == {outcome}


@pytest.mark.trains
def test_as_many_random_weights_are_trained_and_no_others():
    cell = STUDY.cells("quick", [0], load("digits"))[0]
    model = build("mlp", shape=(1, 8, 8), classes=10, norm=norms.batch(), seed=0, depth=2, width=8)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train_random_weights(model, 32, cell)
    updates = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        updates.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(40, 1, 8, 8)), torch.arange(40) % 10).backward()
        updates.step()
    changed = {name: int((value.detach() != before[name]).sum()) for name, value in model.named_parameters()}
    assert 25 <= sum(changed.values()) <= 32  # a dead unit's weight may stand still
    assert not any(count for name, count in changed.items() if before[name].ndim < 2)


def test_a_cell_counts_two_parameters_a_unit():
    records = cell_records(SLUG, "norm", {"depth": 2})
    assert values(records, "count") == [2 * 2 * 8]
    assert values(records, "off") == [0.0]


@pytest.mark.trains
def test_training_gamma_and_beta_alone_lowers_the_loss():
    net = {"network": {"name": "mlp", "width": 40}, "depths": [3]}
    records = cell_records(SLUG, "norm", {"depth": 3}, **net, steps=150, train=None)
    losses = values(records, "loss")
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])  # over ten seeds 0.54 to 0.66 of it
