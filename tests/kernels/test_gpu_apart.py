"""Where Triton was imported without its interpreter before these tests came up, they run in a process of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_oracle import INTERPRETED


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(not INTERPRETED, reason="there is a GPU: the kernels are tested on it")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="test_gpu_batch_norm.py runs in this process")
def test_the_kernels_under_the_interpreter():
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    file = Path(__file__).with_name("test_gpu_batch_norm.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        capture_output=True,
        text=True,
        env=env | {"TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
