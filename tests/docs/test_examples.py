"""The training scripts in examples/ run, and leave a run with a page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from normscope.records import Store

FOLDER = Path(__file__).parents[2] / "examples"
ALONE = {"plain": ["scope"], "gan": ["discriminator", "generator"], "ddp": ["scope.rank0", "scope.rank1"]}
WITH_EXTRAS = {"lightning_module": ["lightning"], "transformers_trainer": ["accelerate", "tensorboard"]}


def run(name, folder, *options):
    """Run a script with few steps; return how many pages it wrote, and the records of its run."""
    words = [sys.executable, *options, str(FOLDER / f"{name}.py"), "--steps", "5", "--every", "2", "--out", "run"]
    path = os.pathsep.join([str(FOLDER.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = re.findall(r"^page: (\S+)", done.stdout, re.M)
    for page in pages:
        assert "</html>" in (folder / page).read_text(encoding="utf-8")
    frame = Store.open(folder / "run").frame()
    assert sorted(set(frame["step"])) == [0, 2, 4]
    return len(pages), frame


@pytest.mark.long
@pytest.mark.parametrize("name", ALONE)
def test_scripts_that_need_nothing_else(name, tmp_path):
    pages, frame = run(name, tmp_path, "-W", "error")
    assert sorted(set(frame["cell"])) == ALONE[name]
    assert pages == (2 if name == "gan" else 1)


@pytest.mark.extras
@pytest.mark.parametrize("name", WITH_EXTRAS)
def test_scripts_under_a_trainer(name, tmp_path):
    for package in WITH_EXTRAS[name]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    pages, frame = run(name, tmp_path)
    assert pages == 1
    assert {"gradient_flow", "descent"} <= set(frame["probe"])
    if "tensorboard" in WITH_EXTRAS[name]:
        assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_the_list_of_scripts_is_complete():
    listed = re.findall(r"^\| `(\w+)\.py`", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(ALONE | WITH_EXTRAS)
