"""The GPU kernels go through Triton's compiler down to machine code, whether or not there is a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extras,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module", params=[90])
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


def test_few_variants_are_compiled(built):
    """Sizes are no part of a variant; a layout, a type and the shape of a tile are."""
    counts = Counter(said["kernel"] for said in built)
    assert counts["merge_moments"] == counts["merge_gradients"] == 1
    # Two layouts and types of large inputs, of which one is run without activation and with a residual as well.
    assert counts["partial_moments"] == 4
    assert counts["apply"] == counts["partial_gradients"] == counts["apply_backward"] == 5
    assert counts["fused_forward"] == counts["fused_backward"] == 4


def test_what_is_large_is_read_in_wide_pieces(built):
    odd = [said["kernel"] for said in built if not said["vectors"] and "merge" not in said["kernel"]]
    assert sorted(odd) == ["fused_backward", "fused_forward"]  # maps of 7 x 7: no two rows are aligned alike


def test_no_values_leave_the_registers(built):
    if "spilled" not in built[0]:
        pytest.skip("this Triton brings no tool that tells")
    assert not [said for said in built if said["spilled"]]
    assert max(said["registers"] for said in built) <= 168  # three programs of four warps on a multiprocessor
