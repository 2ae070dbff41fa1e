"""The callback under Lightning's own Trainer: training stays as it is, and probes read what Lightning trains with."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kit.traces import differences, fingerprint
from normscope.records import Store

pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings(
        "ignore", "error::normscope.probes.ProbeWarning", "error::normscope.probes.WiringWarning"
    ),  # Lightning's own are not of interest
]
REPLAYING = ["descent", "covariate_shift", "gradient_flow", "update_ratio"]
WAYS = {
    "plain": {},
    "accumulating": {"accumulate_grad_batches": 2},  # the last step of an epoch has one batch
    "bf16": {"precision": "bf16-mixed"},
    "clipped": {"gradient_clip_val": 1e-3},
    "clipped-by-value": {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
    "all": {"accumulate_grad_batches": 2, "precision": "bf16-mixed", "gradient_clip_val": 1e-3},
}


@pytest.fixture
def kit():
    return pytest.importorskip("kit.lightning_training", reason="Lightning is not installed")


@pytest.fixture
def watching(kit):
    from normscope.integrations.lightning import NormscopeCallback

    return NormscopeCallback


def value(callback, probe, name, step, site=""):
    frame = callback.scope.records()
    rows = frame.filter((frame["probe"] == probe) & (frame["name"] == name) & (frame["step"] == step))
    return rows.filter(rows["site"] == site)["value"].item()


@pytest.mark.parametrize("way", WAYS)
def test_training_is_bit_identical_and_probes_read_its_loss(kit, watching, way):
    without = kit.fit(**WAYS[way])
    callback = watching(probes=REPLAYING, every=2)
    module, trainer = kit.fit(callbacks=[callback], **WAYS[way])
    assert differences(kit.left_behind(*without), kit.left_behind(module, trainer)) == []
    scope, parts = callback.scope, WAYS[way].get("accumulate_grad_batches", 1)
    steps = 2 * math.ceil(9 / parts)
    assert (trainer.global_step, scope.index) == (steps, steps)
    assert sorted(set(scope.records()["step"])) == list(range(0, steps, 2))
    assert set(scope.records()["probe"]) == set(REPLAYING)
    # Lightning has divided each batch's loss by the number of batches of a full step, also where an epoch ends early.
    firsts = [first for epoch in (0, 9) for first in range(epoch, epoch + 9, parts)]
    losses = [sum(module.losses[first : min(first + parts, first // 9 * 9 + 9)]) for first in firsts]
    for step in range(0, steps, 2):
        assert value(callback, "descent", "loss", step) == pytest.approx(losses[step], rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_read_as_they_are_when_the_backward_pass_ends(kit, watching, way):
    callback = watching(probes=["gradient_flow"], every=1)
    module, _ = kit.fit(callbacks=[callback], **WAYS[way])
    # Lightning clips after this hook: what the module heard is the gradient of the step, whole and unclipped.
    for step, norms in enumerate(module.norms):
        read = value(callback, "gradient_flow", "norm", step, "net.4")
        assert read == pytest.approx(norms["net.4.weight"], rel=1e-5)


def test_probes_read_in_the_precision_of_the_training(kit, watching):
    read = {}
    for precision in ("32-true", "bf16-mixed"):
        callback = watching(probes=["descent"], every=100)
        module, _ = kit.fit(callbacks=[callback], precision=precision)
        read[precision] = value(callback, "descent", "loss", 0)
        assert read[precision] == module.losses[0]
    assert read["32-true"] != read["bf16-mixed"]


def test_two_optimizers_stepped_by_hand(kit, watching):
    without = kit.fit(kit.Gan)
    callback = watching(every=2)
    module, trainer = kit.fit(kit.Gan, [callback])
    assert differences(kit.left_behind(*without), kit.left_behind(module, trainer)) == []
    assert trainer.global_step == 36
    assert callback.scope.index == 18
    sites = set(callback.scope.records().filter(callback.scope.records()["probe"] == "gradient_flow")["site"])
    assert {"generator.0", "discriminator.0"} <= sites


def test_costly_probes_under_manual_optimization_need_a_loss(kit, watching):
    callback = watching(probes=["gradient_flow", "landscape"], every=4)
    kit.fit(kit.Gan, [callback])
    assert "loss_fn" in callback.scope.not_read["landscape"]
    assert set(callback.scope.records()["probe"]) == {"gradient_flow"}


@pytest.mark.parametrize("with_callback_before", [True, False])
def test_a_resumed_training_counts_on(kit, watching, tmp_path, with_callback_before):
    first = watching(every=2)
    _, trainer = kit.fit(callbacks=[first] * with_callback_before, epochs=1)
    trainer.save_checkpoint(tmp_path / "epoch.ckpt")
    without = kit.fit(epochs=2, resume=tmp_path / "epoch.ckpt")
    callback = watching(every=2)
    resumed = kit.fit(callbacks=[callback], epochs=2, resume=tmp_path / "epoch.ckpt")
    assert differences(kit.left_behind(*without), kit.left_behind(*resumed)) == []
    assert sorted(set(callback.scope.records()["step"])) == [10, 12, 14, 16]
    assert callback.scope.index == 18


def test_a_resumed_training_with_several_optimizers_counts_its_own_steps(kit, watching, tmp_path):
    _, trainer = kit.fit(kit.Gan, [watching(every=2)], epochs=1)
    trainer.save_checkpoint(tmp_path / "epoch.ckpt")
    callback = watching(every=2)
    kit.fit(kit.Gan, [callback], epochs=2, resume=tmp_path / "epoch.ckpt")
    assert callback.scope.index == 18


def test_an_exception_in_the_middle_leaves_nothing_on_the_model(kit, watching):
    callback = watching(probes=REPLAYING, every=2)
    made = []

    def failing():
        made.append(kit.Net(fails_at=4))
        return made[0]

    with pytest.raises(KeyError, match="planted"):
        kit.fit(failing, [callback])
    assert callback.scope.index == 4  # the step that failed does not count
    assert sorted(set(callback.scope.records()["step"])) == [0, 2]
    for part in made[0].modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    assert {"log", "log_dict"}.isdisjoint(vars(made[0]))


def test_what_the_module_logs_is_logged_once(kit, watching, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    written = []
    for callbacks in ([], [watching(probes=REPLAYING, every=1)]):
        logger = CSVLogger(tmp_path, version=len(written))
        kit.fit(callbacks=callbacks, logger=logger, log_every_n_steps=1)
        written.append((tmp_path / "lightning_logs" / f"version_{len(written)}" / "metrics.csv").read_text())
    assert written[0] == written[1]
    assert "own" in written[0]


def test_an_epoch_that_is_cut_short_begins_anew(kit, watching):
    class Skipping(kit.Net):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 3 else None  # within a step of two batches

    callback = watching(every=1)
    _, trainer = kit.fit(Skipping, [callback], accumulate_grad_batches=2)
    assert callback.scope.index == trainer.global_step


def test_the_older_name_of_the_package(kit, watching):
    """``pytorch_lightning`` is the same code under another name; its trainer calls any object with these methods."""
    other = pytest.importorskip("pytorch_lightning")

    class Module(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(6, 3)

        def training_step(self, batch, _):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = watching(probes=["descent"], every=1)
    trainer = other.Trainer(
        accelerator="cpu", max_steps=2, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(kit.data(), 8))
    assert sorted(set(callback.scope.records()["step"])) == [0, 1]


@pytest.mark.slow
def test_two_processes(kit, tmp_path):
    """Data-parallel by gloo: each process has a cell; gradients are the processes' average, before clipping."""
    root = Path(__file__).parents[1]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    path = os.pathsep.join([str(root), str(root.parent / "src")])
    done = subprocess.run(
        [sys.executable, str(root / "kit" / "lightning_ddp.py"), str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning: probe" not in done.stderr
    for rank in (0, 1):
        without, watched = (torch.load(tmp_path / f"{name}-{rank}.pt") for name in ("without", "with"))
        assert differences(fingerprint(left=without), fingerprint(left=watched)) == []
    frame = Store.open(tmp_path / "run").frame()
    assert sorted(set(frame["cell"])) == ["scope.rank0", "scope.rank1"]
    losses = frame.filter((frame["probe"] == "descent") & (frame["name"] == "loss"))
    assert losses["step"].to_list().count(0) == 2
    read = frame.filter((frame["name"] == "norm") & (frame["site"] == "net.4") & (frame["step"] == 0))[
        "value"
    ].to_list()
    assert read == pytest.approx([watched["norms"][0]["net.4.weight"]] * 2, rel=1e-5)
