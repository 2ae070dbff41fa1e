"""The leak: sub-batches by hand, company that matters or not, and planted pretext accuracies."""

import math

import numpy as np
import pytest
import torch

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.lab.contrastive import Encoder, SubBatchNorm, contrast, probe, view_of

SLUG = "batch-leak"
STUDY = studies.get(SLUG)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoder(norm="batch", size=4):
    net = Encoder(6, 10, 2, norm, size, seed=3).train()
    with torch.no_grad():
        for parameter in net.parameters():  # no norm stays at weight 1 and bias 0
            parameter.add_(0.2 * drawn(*parameter.shape, seed=parameter.numel()))
    return net


def test_a_sub_batch_is_normalized_as_a_batch_of_its_own():
    ours, theirs = SubBatchNorm(5, 4), torch.nn.BatchNorm1d(5)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(drawn(5, seed=1))
            norm.bias.copy_(drawn(5, seed=2))
    x = drawn(12, 5)
    parts = torch.cat([theirs(part) for part in x.split(4)])
    torch.testing.assert_close(ours(x), parts)
    torch.testing.assert_close(ours.eval()(x), theirs(x))


@pytest.mark.parametrize(("norm", "seen"), [("batch", True), ("layer", False), ("none", False)])
def test_company_matters_to_batch_norm_alone(norm, seen):
    net, x, order = encoder(norm), drawn(12, 6), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moved = torch.empty(12, 32).index_copy_(0, order, net(x[order]))
        apart = float((moved - net(x)).abs().max())
    assert (apart > 1e-2) == seen
    assert seen or apart < 1e-6
    assert net(x).norm(dim=1).tolist() == pytest.approx([1.0] * 12, abs=1e-5)


def test_arms_share_their_initial_weights():
    heads = [Encoder(6, 10, 2, norm, 4, seed=3).head.weight for norm in ("batch", "layer", "none")]
    assert all(torch.equal(head, heads[0]) for head in heads)


def test_a_view_moves_hides_and_adds_what_it_says():
    images, source = drawn(200, 1, 5, 5), torch.Generator().manual_seed(0)
    moved = view_of(images, source, hidden=0.0, noise=0.0).view(200, 1, 5, 5)
    assert all(
        any(
            torch.equal(view[0, 1:-1, 1:-1], image[0, 1 + a : 4 + a, 1 + b : 4 + b])
            for a in (-1, 0, 1)
            for b in (-1, 0, 1)
        )
        for view, image in zip(moved, images, strict=True)
    )
    hidden = view_of(images, source, hidden=0.3, noise=0.0)
    assert float((hidden == 0).double().mean()) == pytest.approx(0.3, abs=0.03)
    noisy = view_of(torch.zeros_like(images), source, hidden=0.0, noise=0.5)
    assert float(noisy.std()) == pytest.approx(0.5, abs=0.03)


def test_a_probe_is_ridge_regression_on_standardised_features_and_leaves_the_encoder():
    net = encoder("layer")
    x, x_test = drawn(300, 6), drawn(100, 6, seed=9)
    y, y_test = (part[:, :3].argmax(1) for part in (x, x_test))
    before = [parameter.clone() for parameter in net.parameters()]
    with torch.no_grad():
        train, test = (net.features(part).double().numpy() for part in (x, x_test))
    scaled = [(part - train.mean(0)) / (train.std(0, ddof=1) + 1e-3) for part in (train, test)]
    design, there = (np.hstack([part, np.ones((len(part), 1))]) for part in scaled)
    rows, targets = np.vstack([design, np.eye(11)]), np.vstack([np.eye(3)[y.numpy()], np.zeros((11, 3))])
    fitted = np.linalg.lstsq(rows, targets, rcond=None)[0]
    expected = np.mean((there @ fitted).argmax(1) == y_test.numpy())
    assert probe(net, x, y, x_test, y_test, classes=3) == expected
    assert net.training
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize(("norm", "shuffle"), [("batch", False), ("batch", True), ("layer", False)])
def test_keys_in_new_company_change_no_training(norm, shuffle):
    runs = []
    for start in (0, 6):
        net = encoder(norm)
        images = drawn(40, 1, 2, 3)
        runs.append(
            list(contrast(net, images, 1, steps=6, batch=8, lr=0.01, shuffle=shuffle, queue=16, compare_from=start))
        )
    losses = [[loss for _, loss, _, _ in run] for run in runs]
    assert losses[0] == losses[1]
    assert all(math.isnan(moved) for *_, moved in runs[1])
    assert norm == "batch" or all(solved == moved for _, _, solved, moved in runs[0])


def planted(own=0.12, new=0.05, *, shuffled=(0.06, 0.06), fits=(0.85, 0.87), layer=0.2):
    plant = Plant(settings(SLUG))
    for seed in plant.seeds:
        for salt, (arm, pair, fit) in enumerate((
            ("shared", (own, new), fits[0]), ("shuffled", shuffled, fits[1]), ("layer", (0.2, layer), fits[1]),
            ("none", (0.2, 0.2), fits[1]),
        )):  # fmt: skip
            common = jitter(seed, 0.02, salt)
            for name, value in zip(("own_company", "new_company"), pair, strict=True):
                size = value * math.exp(common + (jitter(seed, 0.02, 9) if name == "own_company" and salt < 2 else 0))
                plant.add(arm, seed, name, size, probe="pretext")
            plant.add(arm, seed, "probe", fit + jitter(seed, 0.002, salt + 20), probe="pretext")
    return plant.evidence()


@pytest.mark.parametrize(
    ("own", "new", "outcome"),
    [(0.12, 0.05, "holds"), (0.05, 0.12, "opposite"), (0.11, 0.1, "no effect that matters"), (0.125, 0.1, "unclear")],
)
def test_the_judge_finds_what_was_planted(own, new, outcome):
    assert STUDY.judge(planted(own, new)).outcome.value == outcome


def test_what_stops_the_leak_and_what_it_costs_are_judged_by_themselves():
    words = words_by_name(STUDY.judge(planted()))
    assert [words[name] for name in ("shuffling", "no leak, layer", "no leak, none")] == ["holds", "exact", "exact"]
    assert [words[name] for name in ("task", "features, shuffled")] == ["no effect that matters", "holds"]
    other = words_by_name(STUDY.judge(planted(shuffled=(0.12, 0.09), fits=(0.87, 0.85), layer=0.1)))
    assert [other[name] for name in ("shuffling", "no leak, layer")] == ["opposite", "false"]
    assert [other[name] for name in ("task", "features, layer")] == ["holds", "opposite"]


@pytest.mark.trains
def test_a_cell_records_the_end_of_its_run_without_leak_where_there_is_none():
    records = cell_records(SLUG, "layer")
    assert values(records, "own_company") == values(records, "new_company")
    assert len(values(records, "loss")) == settings(SLUG)["steps"] / settings(SLUG)["every"]
