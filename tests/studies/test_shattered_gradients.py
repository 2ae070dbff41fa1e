"""Shattered gradients: derivatives against automatic ones, chains against their laws, and planted correlations."""

import math

import pytest
import torch
from torch.nn.functional import relu

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.shattered_gradients import CHAINS
from normscope.studies.lab.streams import generator
from normscope.studies.lab.tangents import autocorrelation, start, tangents, theory

SLUG = "shattered-gradients"
STUDY = studies.get(SLUG)


@pytest.mark.parametrize("arm", CHAINS)
def test_a_tangent_is_the_derivative_along_the_line_with_statistics_held(arm):
    norm, branch = CHAINS[arm]
    h, along = start(2, 12, 9, line=True)
    found = list(tangents(2, h, along, 4, norm, branch))[-1]

    def output(shift):
        source, values, fixed = generator(2, "chain"), (h + shift[:, None] * along), h
        for _ in range(4):
            weight = torch.randn(9, 9, generator=source) * math.sqrt(2 / 9)
            z, same = values, fixed
            if norm:
                centre, sigma = fixed.mean(0), fixed.std(0, correction=0)
                z, same = (values - centre) / sigma, (fixed - centre) / sigma
            out, held = relu(z) @ weight.T, relu(same) @ weight.T
            values, fixed = (values + branch * out, fixed + branch * held) if branch else (out, held)
        return values

    _, expected = torch.autograd.functional.jvp(output, torch.zeros(12), torch.ones(12))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_autocorrelation_is_the_mean_cosine_of_near_rows():
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    cosine = lambda i, j: float(torch.cosine_similarity(rows[i], rows[j], dim=0))  # noqa: E731
    for reach in (1, 3, 6):
        near = [cosine(i, j) for i in range(7) for j in range(i + 1, 7) if j - i <= reach]
        assert autocorrelation(rows, reach) == pytest.approx(sum(near) / len(near), abs=1e-6)
    assert autocorrelation(rows[:1].expand(4, 5) * torch.tensor([[1.0], [2], [3], [4]]), 3) == pytest.approx(1)


def mean_correlation(arm, layer, seeds=4, width=300):
    norm, branch = CHAINS[arm]
    found = []
    for seed in range(seeds):
        h, along = start(seed, 64, width, line=False)
        found.append(autocorrelation(list(tangents(seed, h, along, layer, norm, branch))[-1], 63))
    return sum(found) / seeds


def test_without_skips_batch_norm_leaves_a_half_a_layer():
    assert [mean_correlation("plain batch", layer) for layer in (1, 2, 3)] == pytest.approx(
        [0.5, 0.25, 0.125], abs=0.04
    )


def test_without_a_norm_the_correlation_falls_as_the_angles_say():
    angle, left = 0.0, 1.0
    for _ in range(4):  # the correlation of the values, and the share of units that two inputs have in common
        left *= 1 - math.acos(angle) / math.pi
        angle = (math.sqrt(1 - angle**2) + (math.pi - math.acos(angle)) * angle) / math.pi
    assert mean_correlation("plain", 4) == pytest.approx(left, abs=0.05)
    assert left > 2 * 0.5**4


@pytest.mark.parametrize("arm", ["skips batch", "full skips batch"])
def test_skips_with_batch_norm_follow_the_recursion(arm):
    assert mean_correlation(arm, 8) == pytest.approx(theory(8, CHAINS[arm][1]), abs=0.04)


def test_the_recursion_is_a_power_of_the_depth():
    # d log / d log depth tends to -(1/2) / (1 - 1/pi) for full branches.
    slope = math.log(theory(200_000, 1.0) / theory(100_000, 1.0)) / math.log(2)
    assert slope == pytest.approx(-0.5 / (1 - 1 / math.pi), abs=1e-3)


def planted(plain=0.4, plain_batch=0.0, skips_batch=0.9, *, rate=0.5, power=-0.5):
    plant = Plant(settings(SLUG, depth=20, judged=10))
    for seed in plant.seeds:
        for inputs in ("line", "random"):
            for layer in range(1, 21):
                levels = {"plain": plain, "plain batch": plain_batch, "skips": 0.9, "skips batch": skips_batch}
                levels["full skips batch"] = layer**power
                if inputs == "random" and layer <= 5:
                    levels |= {"plain": rate**layer, "plain batch": rate**layer}
                for salt, (arm, level) in enumerate(levels.items()):
                    value = level * math.exp(jitter(seed, 0.01, salt + 7 * layer)) + jitter(seed, 1e-4, 99 + salt)
                    where = {"probe": "gradients", "site": f"layer.{layer - 1}", "inputs": inputs}
                    plant.add(arm, seed, "correlation", value, **where)
    return plant.evidence()


@pytest.mark.parametrize(
    ("plain_batch", "skips_batch", "outcome"),
    [(0.0, 0.9, "holds"), (0.9, 0.2, "opposite"), (0.5, 0.55, "no effect that matters"), (0.5, 0.6, "unclear")],
)
def test_the_judge_finds_what_was_planted(plain_batch, skips_batch, outcome):
    assert STUDY.judge(planted(plain_batch=plain_batch, skips_batch=skips_batch)).outcome.value == outcome


@pytest.mark.parametrize(("rate", "outcome"), [(0.5, "holds"), (0.7, "opposite")])
def test_a_halving_is_told_from_a_slower_fall(rate, outcome):
    words = words_by_name(STUDY.judge(planted(rate=rate)))
    assert words["halves, plain"] == words["halves, plain batch"] == outcome


@pytest.mark.parametrize(("power", "outcome"), [(-0.5, "holds"), (-0.7, "opposite")])
def test_a_root_of_the_depth_is_told_from_another_power(power, outcome):
    assert words_by_name(STUDY.judge(planted(power=power)))["root of the depth"] == outcome


def test_batch_norm_that_shatters_plain_networks_is_found():
    assert words_by_name(STUDY.judge(planted(plain=0.6, plain_batch=0.0)))["batch norm, 10"] == "opposite"
    assert words_by_name(STUDY.judge(planted(plain=0.1, plain_batch=0.6)))["batch norm, 10"] == "holds"


def test_a_cell_records_every_layer():
    records = cell_records(SLUG, "skips batch", {"inputs": "line"})
    small = settings(SLUG)
    h, along = start(0, small["points"], small["width"], line=True)
    layers = tangents(0, h, along, small["depth"], *CHAINS["skips batch"])
    assert values(records, "correlation") == [autocorrelation(layer, small["points"] // 16) for layer in layers]
