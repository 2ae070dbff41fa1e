"""The recorder: schedule, hooks, batches of any structure, run folders, and what it refuses."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from kit import varied_networks as nets
from normscope import probes
from normscope._errors import UsageError
from normscope.probes import ProbeWarning, Recorder
from normscope.records import Store

# Networks without tokens have no stream that one probe reads.
CODES = [probe.CODE for probe in probes.all() if probe.CODE != "residual_stream"]


def run(scope, model, batches, optimizer=None, loss_fn=nets.loss_fn):
    for batch in batches:
        with scope.step(batch):
            model.zero_grad()
            loss_fn(model, batch).backward()
            if optimizer is not None:
                optimizer.step()


def test_the_room_lists_its_probes_and_each_has_its_page():
    assert sorted(CODES) == CODES
    assert {"activation_distribution", "covariate_shift", "gradient_flow", "landscape"} <= set(CODES)
    assert {"curvature", "descent", "interaction", "output_moments"} <= set(CODES)
    for probe in probes.all():
        assert probe.page().keys() == {"Measures", "Cost", "Reads wrongly when"}
        assert probe.SOURCES
        assert getattr(probes, probe.__name__) is probe
    with pytest.raises(UsageError, match="no probe 'gradientflow'; did you mean gradient_flow"):
        probes.get("gradientflow")


def test_each_probe_reads_at_its_own_schedule():
    model = nets.make("mlp")
    flow = probes.GradientFlow(every=3)
    scope = Recorder(model, nets.loss_fn, None, [flow, "activation_distribution"], every=5, cell="mine")
    run(scope, model, nets.batches("mlp", 11))
    steps = {code: sorted({r.step for r in scope.drain() if r.probe == code}) for code in ("gradient_flow",)}
    assert steps == {"gradient_flow": [0, 3, 6, 9]}
    frame = scope.records()
    assert set(frame["cell"]) == {"mine"}
    assert sorted(set(frame.filter(frame["probe"] == "activation_distribution")["step"])) == [0, 5, 10]
    assert scope.drain() == []


def test_steps_that_are_not_due_set_no_hooks():
    model = nets.make("mlp")
    scope = Recorder(model, nets.loss_fn, None, ["gradient_flow", "covariate_shift"], every=2)
    counts = []
    for batch in nets.batches("mlp", 2):
        with scope.step(batch):
            counts.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()))
            nets.loss_fn(model, batch).backward()
    assert counts[0] > 0
    assert counts[1] == 0


@dataclass
class Pair:
    x: Tensor
    y: Tensor


@pytest.mark.parametrize("wrap", [tuple, lambda pair: {"x": pair[0], "y": pair[1]}, lambda pair: Pair(*pair)])
def test_batches_of_any_structure_and_several_losses(wrap):
    model = nets.make("cnn")

    def loss_fn(model, batch):
        x, y = batch if isinstance(batch, tuple) else (batch if isinstance(batch, dict) else vars(batch)).values()
        return nets.loss_fn(model, (x, y)) + 0.1 * model(x).square().mean()

    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scope = Recorder(model, loss_fn, optimizer, CODES, every=1)
    run(scope, model, map(wrap, nets.batches("cnn", 2)), optimizer, loss_fn)
    records = scope.drain()
    assert {record.probe for record in records} == set(CODES)
    assert all(record.value == record.value for record in records)


def test_without_optimizer_only_what_needs_a_learning_rate_is_switched_off():
    model = nets.make("mlp")
    scope = Recorder(model, nets.loss_fn, None, CODES, every=1)
    with pytest.warns(ProbeWarning, match="landscape.*give the scope its optimizer, or the probe lr="):
        run(scope, model, nets.batches("mlp", 2))
    assert {record.probe for record in scope.drain()} == set(CODES) - {"landscape"}


def test_unused_modules_are_passed_over_and_frozen_ones_left_out():
    model = nets.make("shared")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    scope = Recorder(model, nets.loss_fn, optimizer, CODES, every=1)
    run(scope, model, nets.batches("shared", 1), optimizer)
    records = scope.drain()
    assert "unused" not in {record.site for record in records}
    assert "inlet" not in {record.site for record in records if record.probe == "covariate_shift"}


def test_wholly_frozen_models_are_reported_not_fatal():
    model = nets.make("mlp").requires_grad_(False)
    scope = Recorder(model, nets.loss_fn, None, [probes.LandscapeAlongGradient(lr=0.1)], every=1)
    (batch,) = nets.batches("mlp", 1)
    with pytest.warns(ProbeWarning, match="depends on no trainable parameter"), scope.step(batch):
        nets.loss_fn(model, batch)


def test_a_loss_that_is_not_scalar_is_named():
    model = nets.make("mlp")
    scope = Recorder(model, lambda m, b: m(b[0]), None, [probes.LandscapeAlongGradient(lr=0.1)], every=1)
    batch = next(nets.batches("mlp", 1))
    with pytest.warns(ProbeWarning, match="must return a scalar"), scope.step(batch):
        nets.loss_fn(model, batch).backward()


def test_the_mode_of_the_users_forward_pass_is_replayed():
    """A model switched to train mode inside the block is replayed in train mode."""
    model = nets.make("mlp").eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (batch,) = nets.batches("mlp", 1)
    scope = Recorder(model, nets.loss_fn, optimizer, ["landscape"], every=1)
    with scope.step(batch):
        model.train()
        loss = nets.loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        model.eval()
    found = {record.name: record.value for record in scope.drain()}
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert not any(module.training for module in model.modules())


def test_weights_computed_by_torchs_own_hooks_are_replayed():
    with pytest.warns(FutureWarning):
        inlet = torch.nn.utils.weight_norm(nn.Linear(12, 6))
    model = nn.Sequential(inlet, nn.ReLU(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope = Recorder(model, nets.loss_fn, optimizer, CODES, every=1)
    (batch,) = nets.batches("mlp", 1)
    expected = nets.loss_fn(model, batch).item()
    run(scope, model, [batch], optimizer)
    records = scope.drain()
    found = {record.name: record.value for record in records if record.probe == "landscape"}
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["loss_min@same-step"] < expected
    assert {record.site for record in records if record.probe == "covariate_shift"} == {"0", "2"}


def test_records_go_to_a_run_folder_and_are_read_back(tmp_path):
    model = nets.make("mlp")
    kept = Recorder(model, nets.loss_fn, None, ["gradient_flow"], every=1, record_to=tmp_path / "run")
    with kept as scope:
        run(scope, model, nets.batches("mlp", 2))
        with pytest.raises(UsageError, match="read them by scope"):
            scope.drain()
    again = nets.make("mlp")
    memory = Recorder(again, nets.loss_fn, None, ["gradient_flow"], every=1)
    run(memory, again, nets.batches("mlp", 2))
    columns = ["step", "probe", "site", "name", "value"]
    assert Store.open(tmp_path / "run").frame().select(columns).equals(memory.records().select(columns))


def test_misuse_is_refused_in_one_line():
    model = nets.make("mlp")
    for make, says in (
        (lambda: Recorder(model, nets.loss_fn, every=0), "every=0"),
        (lambda: Recorder(nets.loss_fn, model), "torch.nn.Module"),
        (lambda: Recorder(model, nets.loss_fn, [model]), "torch optimizer"),
        (lambda: Recorder(model, nets.loss_fn, probes=[3]), "a probe, its code"),
        (lambda: probes.CovariateShift(parameters="bias"), "'weight' or 'all'"),
        (lambda: probes.CovariateShift(method="fast"), "auto, prefix, general"),
        (lambda: probes.LandscapeAlongGradient(matchings=["same"]), "no matching 'same'"),
        (lambda: probes.LandscapeAlongGradient(low=4, high=1), "low, high"),
        (lambda: probes.LandscapeAlongGradient(points=0), "must be positive"),
    ):
        with pytest.raises(UsageError, match=says):
            make()
    scope = Recorder(model, nets.loss_fn)
    with scope.step(None), pytest.raises(UsageError, match="inside another step"), scope.step(None):
        pass
