"""The source distribution is whole, and a wheel that lacks a kernel is one that no index takes.

A script stands in for the compiler: it writes empty files, at once, and fails at the option that it is told to fail at.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("setuptools", minversion="77", reason="setuptools is missing or older than 77")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(sys.platform == "win32", reason="no kernels are built on Windows"),
]


def python(words, where, **environment):
    words = [sys.executable, *map(str, words)]
    done = subprocess.run(
        words, cwd=where, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def wheel(tmp_path):
    """Build a wheel of a copy of the package, by a compiler that fails at an option."""

    def wheel(fails_at):
        where = tmp_path / "copy"
        shutil.copytree(ROOT / "src", where / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
        for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            shutil.copy(ROOT / name, where)
        compiler = tmp_path / "compiler"
        compiler.write_text(
            f'#!/bin/sh\ncase " $* " in *" {fails_at} "*) exit 1 ;; esac\n'
            'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done\nexit 0\n',
            encoding="utf-8",
        )
        compiler.chmod(0o755)
        stand_in = dict.fromkeys(("CC", "CXX", "LDSHARED", "LDCXXSHARED"), str(compiler))
        # As pip does it: metadata first, then the wheel. pip needs no network for it, without isolation.
        words = ["-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path / "dist", "."]
        said = python(words, where, **stand_in)
        (built,) = (tmp_path / "dist").iterdir()
        with zipfile.ZipFile(built) as files:
            (metadata,) = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
            classifiers = Parser().parsestr(files.read(metadata).decode()).get_all("Classifier")
            kernels = {Path(name).name.split(".")[0] for name in files.namelist() if name.endswith(".so")}
        return built.name, kernels, "Private :: Do Not Upload" in classifiers, said

    return wheel


def test_a_wheel_with_all_kernels_is_for_every_python_and_may_be_published(wheel):
    name, kernels, private, said = wheel(fails_at="--no-such-option")
    assert "_baseline" in kernels
    assert not private
    assert "private" not in said
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):  # there a Python has no stable ABI
        assert "-cp311-abi3-" in name


@pytest.mark.parametrize("option", ["-O3", "-mavx512f"], ids=["all", "one"])
def test_a_wheel_that_lacks_a_kernel_is_private(wheel, option):
    if option == "-mavx512f" and sysconfig.get_platform().partition("-")[2] not in ("x86_64", "amd64"):
        pytest.skip("this machine has one build alone")
    _, kernels, private, said = wheel(fails_at=option)
    assert "_avx512" not in kernels
    assert ("_baseline" in kernels) == (option != "-O3")
    assert private
    assert "lacks the compiled kernels" in said


def test_the_source_distribution_has_every_file_of_the_repository(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout: which files belong to it is not known")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = {name for name in tracked.split("\0") if name and (ROOT / name).exists()}
    python(["setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path / "dist"], ROOT)
    (built,) = (tmp_path / "dist").iterdir()
    with tarfile.open(built) as files:
        packed = {name.partition("/")[2] for name in files.getnames()}
    assert wanted <= packed, sorted(wanted - packed)
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]
