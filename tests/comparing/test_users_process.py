"""What a factory sets stays within its runs: the user's process is as it was, and every arm begins from the same."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from kit import set_ups
from normscope.modules.settings import Settings, settings_kept

QUICK = {"seeds": 1, "steps": 3, "workers": 1, "questions": ["speed", "cost"]}
FLAGS = torch.backends.disable_global_flags.__globals__  # where torch keeps that its flags are locked
CHANGES = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "gradients": lambda: torch.set_grad_enabled(False),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "folder": lambda: os.chdir(".."),
    "numpy": lambda: np.seterr(all="raise"),
    "hooks": lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
}


def state():
    return [
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_anomaly_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        Path.cwd(),
        np.geterr(),
        len(nn.modules.module._global_forward_hooks),  # white box: torch has no other way to count them
    ]


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_settings_are_put_back(what, monkeypatch):
    # Another test of this process may have imported torch's own test suites, which have these flags kept as they are.
    monkeypatch.setitem(FLAGS, "__allow_nonbracketed_mutation_flag", True)
    before = state()
    with settings_kept():
        CHANGES[what]()
        assert state() != before  # the oracle sees it
    assert state() == before


def test_a_folder_that_is_gone_is_no_error(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    settings = Settings()
    os.chdir(tmp_path)
    gone.rmdir()
    settings.restore()
    assert Path.cwd() == tmp_path


def test_a_factory_that_changes_the_process_leaves_it_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    before, seen = state(), []

    def make():
        os.chdir("data")  # relative: it fails unless every call begins where the first began
        seen.append((Path.cwd(), torch.get_num_threads(), torch.get_default_dtype()))
        torch.set_num_threads(3)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        model = set_ups.dense()
        batches = [(torch.randn(8, 6), torch.arange(8) % 3) for _ in range(2)]
        return model, set_ups.entropy, batches, torch.optim.SGD(model.parameters(), 0.1)

    found = ns.compare(make, out="run", **QUICK)
    assert state() == before
    assert len(set(seen)) == 1
    assert found.path.resolve() == tmp_path / "run"


def test_a_file_that_draws_where_it_is_imported_moves_no_stream(tmp_path):
    file = tmp_path / "train.py"
    file.write_text(
        "import random, numpy as np, torch\nfrom kit.set_ups import make_case\n"
        "numbers = np.random.rand(3), random.random(), torch.rand(2)\ntorch.set_default_dtype(torch.float64)\n"
        "def make():\n    case = make_case()\n    assert torch.get_default_dtype() is torch.float64\n    return case\n"
    )

    def numbers():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002

    def seed():
        torch.manual_seed(4)
        np.random.seed(4)  # noqa: NPY002
        random.seed(4)

    seed()
    expected = numbers()
    seed()
    ns.compare(f"{file}:make", out=tmp_path / "run", **QUICK)
    assert numbers() == expected
    assert torch.get_default_dtype() is torch.float32


def test_a_comparison_runs_where_gradients_are_off(tmp_path):
    with torch.no_grad():
        found = ns.compare(set_ups.make_case, out=tmp_path, **QUICK)
        assert not torch.is_grad_enabled()
    assert found.evidence.select(probe="cost", name="seconds").height == 2
    losses = found.evidence.select(probe="training", name="loss", arm="own")["value"]
    assert losses.n_unique() == 3  # it has trained


def test_flags_that_torch_keeps_as_they_are_are_no_error(monkeypatch):
    settings = Settings()
    monkeypatch.setitem(FLAGS, "__allow_nonbracketed_mutation_flag", False)  # as torch's own test suites do
    settings.restore()
    monkeypatch.setattr(settings, "_cudnn", (not torch.backends.cudnn.benchmark, True))  # white box: a flag differs
    settings.restore()
