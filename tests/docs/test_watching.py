"""What the guide to watching says runs."""

import re
import warnings
from pathlib import Path

import pytest

import normscope as ns
from normscope import checking
from normscope.probes import ProbeWarning, SinkWarning, WiringWarning

GUIDE = Path(__file__).parents[2] / "docs" / "watching.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
EXTRAS = [block for block in BLOCKS if "normscope.integrations" in block or "accelerate" in block]


def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(checking.FindingWarning, match="NS122 redundant-bias at step 0"):
        exec(compile("\n".join(block for block in BLOCKS if block not in EXTRAS), str(GUIDE), "exec"), {})
    assert (tmp_path / "page.html").is_file()
    printed = capsys.readouterr().out
    assert "What stands out" in printed or "Nothing stands out" in printed
    assert "'landscape': 'it evaluates the loss again" in printed


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", ["lightning", "transformers", "accelerate", "mlflow"])
def test_its_python_with_other_packages_runs(package, tmp_path, monkeypatch, capsys):
    needs = {"transformers": ["transformers", "accelerate"], "mlflow": ["mlflow", "sqlalchemy", "wandb", "tensorboard"]}
    for needed in needs.get(package, [package]):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    (block,) = (block for block in EXTRAS if re.search(rf"^(import|from) {package}\b", block, re.M))
    known = {}
    exec(compile(BLOCKS[0], str(GUIDE), "exec"), known)
    capsys.readouterr()
    with warnings.catch_warnings():
        for kind in (ProbeWarning, SinkWarning, WiringWarning):
            warnings.simplefilter("error", kind)
        exec(compile(block, str(GUIDE), "exec"), known)
    if "mlflow" not in block:
        assert "stands out" in capsys.readouterr().out
        return
    assert list((tmp_path / "runs" / "tensorboard").glob("events.*"))
    assert list(Path(known["run"].settings.sync_dir).glob("*.wandb"))
    (run,) = known["mlflow"].search_runs(output_format="list")
    assert run.data.metrics["gradient_flow/norm/0"] > 0


def test_its_table_has_every_probe():
    rows = dict(re.findall(r'^\| `"(\w+)"` \| (.*) \|$', TEXT, re.M))
    listed = {question: [code.replace("-", "_") for code in codes.split(", ")] for question, codes in rows.items()}
    known = {}
    for probe in ns.probes.all():
        known.setdefault(probe.QUESTION, []).append(probe.CODE)
    assert listed == known


def test_its_links_and_commands_exist():
    for path in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (GUIDE.parent / path).is_file(), path
    assert set(re.findall(r"`normscope (\w+)", TEXT)) <= {"explain", "check", "bench", "watch", "report"}
