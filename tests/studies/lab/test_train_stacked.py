"""Several seeds by one loop, against each seed by the plain one."""

import math

import pytest
import torch
from torch import nn

from normscope import layers
from normscope._errors import NonFiniteError
from normscope.builders import residual_mlp, scalar_groups
from normscope.records import Record
from normscope.studies.lab import norms, stack
from normscope.studies.lab.arms import batch_norm, noted
from normscope.studies.lab.data import load
from normscope.studies.lab.meters import ChannelShift
from normscope.studies.lab.models import mlp
from normscope.studies.lab.train import train
from normscope.studies.lab.train_stacked import train_stacked

pytestmark = pytest.mark.trains

SEEDS = (3, 0, 7)


def splits(seeds=SEEDS):
    return [load("digits").split(seed, train=200, test=60, dtype=torch.float64) for seed in seeds]


def network(norm, seed, **options):
    made = {"activation": "relu", "depth": 2, "width": 12, **options}
    depth, width = made.pop("depth"), made.pop("width")
    return mlp(depth, width, inputs=64, classes=10, norm=norm(seed), seed=seed, **made).double().train()


def both(make, seeds=SEEDS, **changes):
    """Train stacked and one by one, and return (records, networks) of both ways."""
    options = {"steps": 15, "lr": 0.1, "batch_size": 32} | changes
    cells = [f"cell{seed}" for seed in seeds]
    many, alone = [make(seed) for seed in seeds], [make(seed) for seed in seeds]
    stacked = train_stacked(many, splits(seeds), cells=cells, seeds=seeds, **options)
    single = [
        train(model, split, cell=cell, seed=seed, **options)
        for model, split, cell, seed in zip(alone, splits(seeds), cells, seeds, strict=True)
    ]
    return stacked, many, single, alone


def assert_alike(stacked, many, single, alone, rtol=1e-9, lost=()):
    """Hold both ways against each other; of networks that were lost only which weights are numbers."""
    for found, expected in zip(stacked, single, strict=True):
        assert [(r.cell, r.step, r.probe, r.site, r.name) for r in found] == [
            (r.cell, r.step, r.probe, r.site, r.name) for r in expected
        ]
        for a, b in zip(found, expected, strict=True):
            assert a.value == pytest.approx(b.value, rel=rtol, abs=1e-12, nan_ok=True), (a, b)
    for index, (model, twin) in enumerate(zip(many, alone, strict=True)):
        state, expected = model.state_dict(), twin.state_dict()
        assert state.keys() == expected.keys()
        for name, value in state.items():
            if index in lost:
                assert torch.equal(value.isfinite(), expected[name].isfinite())
            else:
                torch.testing.assert_close(value, expected[name], rtol=rtol, atol=1e-10)


def ghost(place):
    return layers.BatchNorm1d(place.features, statistics="ghost", group_size=8)


NORMS = {
    "none": lambda seed: norms.none(),
    "batch": lambda seed: norms.batch(),
    "torch's batch norm": lambda seed: lambda place: nn.BatchNorm1d(place.features),
    "fixed gain, noted": lambda seed: noted(batch_norm(gain=2.0, learn_gain=False)),
    "ghost batches": lambda seed: ghost,
    "l1": lambda seed: norms.lp(1.0),
    "l-infinity": lambda seed: norms.lp(math.inf),
    "detached": lambda seed: norms.detached(mean=True, variance=False),
    "layer": lambda seed: lambda place: nn.LayerNorm(place.features),
    "groups": lambda seed: lambda place: layers.GroupNorm(4, place.features),
    "noise of each seed": norms.noisy_batch,
}


@pytest.mark.parametrize("name", NORMS)
def test_seeds_at_once_are_seeds_alone(name):
    assert_alike(*both(lambda seed: network(NORMS[name], seed)))


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "sigmoid", "gain": 1.0},
        {"activation": "tanh", "bias": False},
        {"activation": "softplus"},
        {"activation": "linear", "depth": 1},
    ],
)
def test_whatever_the_architecture(options):
    assert_alike(*both(lambda seed: network(NORMS["batch"], seed, **options)))


@pytest.mark.parametrize("scheme", ["none", "batch", "layer", "group", "fixup", "nf"])
def test_residual_networks_too(scheme):
    def make(seed):
        return residual_mlp(2, 32, inputs=64, outputs=10, scheme=scheme, seed=seed).double().train()

    def optimizer(net):
        return torch.optim.SGD(scalar_groups(net, 0.03), lr=0.03)

    assert_alike(*both(make, optimizer=optimizer))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda net: torch.optim.Adam(net.parameters(), lr=0.01),
        lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    ],
)
def test_with_another_optimizer(optimizer):
    # Without norms: biases before them have no gradient but rounding, which Adam would make steps of full size of.
    assert_alike(*both(lambda seed: network(NORMS["none"], seed), optimizer=optimizer))


def test_one_seed_is_a_stack_too():
    assert_alike(*both(lambda seed: network(NORMS["batch"], seed), seeds=(5,)))


@pytest.mark.parametrize("name", ["none", "batch", "layer"])
def test_a_seed_that_is_lost_ends_as_it_does_alone_and_the_others_go_on(name):
    def make(seed):
        model = network(NORMS[name], seed)
        if seed == 0:
            with torch.no_grad():  # large enough to be lost after some steps, not at once
                model.head.weight.mul_(1e150)
        return model

    stacked, many, single, alone = both(make, lr=1e-3)
    assert [records[-1].value for records in stacked] == [0, 1, 0]
    assert stacked[1][-1].step > 0
    assert_alike(stacked, many, single, alone, lost=[1])


def test_all_seeds_lost_at_steps_of_their_own():
    stacked, many, single, alone = both(
        lambda seed: network(NORMS["none"], seed, activation="linear"), lr=20.0, steps=60
    )
    assert [records[-1].value for records in stacked] == [1, 1, 1]
    assert [records[-1].step for records in stacked] == [records[-1].step for records in single]
    assert_alike(stacked, many, single, alone, rtol=1e-4, lost=range(3))


def test_parameters_that_are_not_learnt_stay():
    def make(seed):
        model = network(NORMS["batch"], seed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    result = both(make)
    assert torch.equal(result[1][0].head.weight, make(SEEDS[0]).head.weight)
    assert_alike(*result)


def test_watchers_see_what_they_see_of_a_seed_alone():
    def watcher(cell):
        def watch(step, model):
            for name, parameter in model.named_parameters():
                yield Record(cell, step, "watch", name, "weight", float(parameter.detach().norm()))
                yield Record(cell, step, "watch", name, "gradient", float(parameter.grad.norm()))
            yield Record(cell, step, "watch", "", "mean", float(model.blocks[0].norm.running_mean.norm()))

        return watch

    seeds, options = (4, 1), {"steps": 7, "lr": 0.1, "batch_size": 32}
    cells = ["a", "b"]
    models = [network(NORMS["batch"], seed) for seed in seeds]
    made = [watcher(cell) for cell in cells]
    found = train_stacked(models, splits(seeds), cells=cells, seeds=seeds, watch=made, watch_every=3, **options)
    for seed, split, cell, watch, records in zip(seeds, splits(seeds), cells, made, found, strict=True):
        alone = train(
            network(NORMS["batch"], seed),
            split,
            cell=cell,
            seed=seed,
            watch=lambda step, model, watch=watch: watch(step, model) if step % 3 == 0 else (),
            **options,
        )
        assert [(r.step, r.site, r.name) for r in records] == [(r.step, r.site, r.name) for r in alone]
        # Biases before norms have a gradient of roundings.
        assert [r.value for r in records] == pytest.approx([r.value for r in alone], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["none", "batch", "noise of each seed"])
def test_meters_hear_of_each_seed_what_they_hear_of_it_alone(name):
    seeds, options = (4, 1), {"steps": 9, "lr": 0.1, "batch_size": 32}
    models = [network(NORMS[name], seed) for seed in seeds]
    sites = models[0].sites()
    meters = [[ChannelShift(sites, every=4)] for _ in seeds]
    found = train_stacked(models, splits(seeds), cells=["a", "b"], seeds=seeds, meters=meters, **options)
    for seed, split, cell, records in zip(seeds, splits(seeds), "ab", found, strict=True):
        model = network(NORMS[name], seed)
        alone = train(model, split, cell=cell, seed=seed, meters=[ChannelShift(sites, every=4)], **options)
        assert sum(r.probe == "channel_shift" for r in alone) == 2 * 2 * 4
        assert [(r.step, r.site, r.name) for r in records] == [(r.step, r.site, r.name) for r in alone]
        assert [r.value for r in records] == pytest.approx([r.value for r in alone], rel=1e-8, abs=1e-12)


def test_data_at_fault_are_told_from_training():
    def make(seed):
        model = network(NORMS["none"], seed)
        with torch.no_grad():
            model.head.bias.fill_(math.inf if seed == 7 else 0.0)
        return model

    with pytest.raises(NonFiniteError):
        both(make)


@pytest.mark.parametrize("fault", ["sign", "mixed"])
def test_a_wrong_stack_is_found_out(monkeypatch, fault):
    right = stack._Linears.forward  # white box: a planted fault

    def wrong(self, x):
        out = right(self, x)
        return 2 * out.detach() - out if fault == "sign" else out.roll(1, 1)

    monkeypatch.setattr(stack._Linears, "forward", wrong)
    with pytest.raises(AssertionError):
        assert_alike(*both(lambda seed: network(NORMS["batch"], seed)))
