"""The training loop: one seed, one run; arms see the same batches; a lost run ends where it was lost."""

import math

import pytest
import torch
from torch import nn

from normscope._errors import NonFiniteError
from normscope.probes.landscape import LandscapeAlongGradient
from normscope.records import Cell
from normscope.studies.lab import norms
from normscope.studies.lab.arms import schedule
from normscope.studies.lab.data import Split, load
from normscope.studies.lab.evaluate import population_statistics
from normscope.studies.lab.meters import AbstractMeter, ChannelShift
from normscope.studies.lab.models import mlp
from normscope.studies.lab.train import batch_indices, train


def network(norm=None, seed: int = 0) -> nn.Module:
    return mlp(2, 16, inputs=64, classes=10, norm=norm or norms.batch(), seed=seed)


def run(model: nn.Module, **changes):
    options = {"cell": "c", "seed": 3, "steps": 12, "lr": 0.1, "batch_size": 32} | changes
    return train(model, load("digits").split(3), **options)


def values(records, name):
    return [r.value for r in records if r.name == name]


def test_same_seed_same_records_whatever_the_global_random_state_is():
    torch.manual_seed(0)
    one = run(network(norms.noisy_batch(3)))
    torch.manual_seed(1)
    torch.rand(5)
    assert one == run(network(norms.noisy_batch(3)))
    assert one != run(network(norms.noisy_batch(4)))


def test_batches_depend_on_the_seed_alone_and_cover_each_epoch():
    indices = batch_indices(100, 30, 7, 5)
    assert indices.shape == (7, 30)
    assert torch.equal(indices, batch_indices(100, 30, 7, 5))
    assert torch.equal(indices[:4], batch_indices(100, 30, 4, 5))
    assert not torch.equal(indices, batch_indices(100, 30, 7, 6))
    for epoch in (indices[:3], indices[3:6]):
        assert len(epoch.flatten().unique()) == 90
    assert batch_indices(10, 64, 3, 0).shape == (3, 10)


def test_arms_see_the_same_batches():
    seen: dict[str, list[torch.Tensor]] = {"none": [], "batch": []}
    for arm, norm in (("none", norms.none()), ("batch", norms.batch())):
        model = network(norm)
        model.register_forward_pre_hook(
            lambda module, inputs, arm=arm: seen[arm].append(inputs[0].clone()) if module.training else None
        )
        run(model)
    assert len(seen["none"]) == len(seen["batch"]) == 12
    assert all(torch.equal(a, b) for a, b in zip(seen["none"], seen["batch"], strict=True))


@pytest.mark.trains
def test_loss_falls_and_every_step_is_recorded():
    records = run(network(), steps=60)
    losses = values(records, "loss")
    assert [r.step for r in records if r.name == "loss"] == list(range(60))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])  # over ten seeds 0.35 to 0.51 of it
    assert values(records, "diverged") == [0.0]
    assert values(records, "test_accuracy")[0] > 0.5
    assert {r.probe for r in records} == {"training"}


@pytest.mark.trains
def test_a_lost_run_says_so_and_stops():
    records = run(network(norms.none()), lr=1e12, steps=50)
    assert values(records, "diverged") == [1.0]
    last = max(r.step for r in records)
    assert 0 < last < 49
    assert not math.isfinite(values(records, "loss")[-1])
    assert values(records, "test_loss") == []


def test_data_that_make_the_first_loss_infinite_are_an_error():
    split = load("digits").split(0)
    bad = Split(split.x_train * math.inf, *(getattr(split, name) for name in Split.__slots__[1:]))
    with pytest.raises(NonFiniteError, match="before the first update"):
        train(network(), bad, cell="c", seed=0, steps=3, lr=0.1, batch_size=8)


def test_evaluation_leaves_no_trace():
    model = network(norms.noisy_batch(0)).train()
    x = load("digits").split(0).x_train
    model(x[:50])
    model.blocks[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    with pytest.raises(ZeroDivisionError), population_statistics(model, x):
        raise ZeroDivisionError
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.blocks[1].norm[0].momentum == 0.1


def test_population_statistics_are_the_average_over_batches():
    model = mlp(1, 8, inputs=6, classes=3, norm=norms.batch(), seed=0).double()
    x = torch.randn(1030, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = model.blocks[0].linear(x[:1024]).detach()
    chunks = z.view(4, 256, 8)
    with population_statistics(model, x):
        norm = model.blocks[0].norm
        torch.testing.assert_close(norm.running_mean, chunks.mean(1).mean(0), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(norm.running_var, chunks.var(1, correction=1).mean(0), rtol=1e-10, atol=1e-12)
        assert not model.training
        assert model(x[:2]).shape == (2, 3)


def test_channel_shift_is_what_two_passes_differ_by():
    model = network(norms.none()).double()
    meter = ChannelShift(model.sites(), every=1)
    meter.attach(model)
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(20, 64, dtype=torch.float64, generator=g) for _ in range(2)]
    outputs = []
    for step, batch in enumerate(batches):
        meter.active = meter.wants(step)
        model(batch)
        meter.active = False
        model(batch * 7)  # a pass of someone else's
        with torch.no_grad():
            outputs.append(model.blocks[0].linear(batch))
        records = list(meter.read("c", step))
    meter.close()
    found = {r.name: r.value for r in records if r.site == "blocks.0.norm"}
    moved = (outputs[1].mean(0) - outputs[0].mean(0)).abs()
    assert found["mean_shift"] == pytest.approx(float(moved.mean()), rel=1e-9)
    spread = outputs[0].std(0, correction=0)
    assert found["relative_mean_shift"] == pytest.approx(float((moved / spread).mean()), rel=1e-6)
    assert not any(m._forward_hooks for m in model.modules())


def test_channel_shift_reads_pairs_of_consecutive_steps():
    model = network()
    records = run(model, steps=25, meters=[ChannelShift(model.sites(), every=10)])
    assert sorted({r.step for r in records if r.probe == "channel_shift"}) == [1, 11, 21]


class Passes(AbstractMeter):
    """Counts the passes that it hears."""

    heard = 0

    def look(self, site, out):
        self.heard += 1

    def read(self, cell, step):
        return ()


def test_meters_hear_no_pass_but_the_steps_own():
    meter = Passes(["blocks.0.norm"])
    run(network(), meters=[meter], watch=lambda step, model: [model(torch.ones(7, 64))][:0], evaluate_every=5)
    assert meter.heard == 12


def test_population_statistics_are_those_of_evaluation():
    model = network().train()
    with population_statistics(model, load("digits").split(3).x_train):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("until", "last"), [(None, 8), (9, 8), (8, 4), (0, None)])
def test_probes_read_until_a_step(until, last):
    records = run(network(), probes=[LandscapeAlongGradient(points=2, dense=[0.1])], every=4, probe_until=until)
    steps = {r.step for r in records if r.probe == "landscape"}
    assert max(steps, default=None) == last


def test_a_point_goes_before_the_settings():
    settings = {"steps": 5, "lr": 0.1, "batch": 32}
    assert schedule(Cell("s", "a", 0, {}, settings)) == {"steps": 5, "lr": 0.1, "batch_size": 32}
    assert schedule(Cell("s", "a", 0, {"lr": 2, "batch": 8}, settings)) == {"steps": 5, "lr": 2.0, "batch_size": 8}
