"""The GPU kernels go through Triton's compiler down to machine code, whether or not there is a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module", params=[80, 90])
def built(request, tmp_path_factory):
    where = tmp_path_factory.mktemp("compiled")
    # The interpreter, if it is on in this process, is not for this one.
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    words = [sys.executable, "-W", "error::UserWarning", str(Path(__file__).with_name("gpu_compile.py"))]
    done = subprocess.run(
        [*words, str(request.param), str(where)],
        capture_output=True,
        text=True,
        env=env | {"TRITON_CACHE_DIR": str(where)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_kernel_compiles(built):
    from_the_files = {"partial_moments", "merge_moments", "apply", "fused_forward"}
    from_the_files |= {"partial_gradients", "merge_gradients", "apply_backward", "fused_backward"}
    assert {said["kernel"] for said in built} == from_the_files


def test_what_is_large_is_read_in_pieces_of_16_bytes(built):
    assert all(said["vectors"] for said in built if "merge" not in said["kernel"])


def test_no_values_leave_the_registers(built):
    if "spilled" not in built[0]:
        pytest.skip("this Triton brings no tool that tells")
    assert not [said for said in built if said["spilled"]]
    assert max(said["registers"] for said in built) <= 168  # three programs of four warps on a multiprocessor
