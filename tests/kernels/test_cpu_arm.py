"""The CPU kernel without Python: for ARM, on an emulator, and here under sanitizers.

The NEON build runs on no machine that these tests usually run on, so it is compiled by a cross-compiler and emulated.
What it is held to is in ``driver.cpp``; that its arrays end where a page does that nobody may touch finds reads past an
end wherever it runs.
"""

import ast
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
ROOM = ROOT / "src/normscope/kernels/cpu"
CROSS = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
OWN = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
# At a lower level: it takes half the time, and what these look for is in every level.
SANITIZERS = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.long


def flags():
    """Return what ``setup.py`` compiles every build with; it is read, since running it would build."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLAGS":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no FLAGS")


def compiled(compiler, more, where):
    program = where / "driver"
    words = [compiler, *flags(), *more, f"-I{ROOM}"]
    sources = [str(HERE / "driver.cpp"), str(ROOM / "kernel.cpp")]
    done = subprocess.run([*words, *sources, "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return str(program)


def holds(command):
    # Leaks are not looked for: that needs rights over processes that a container may not give.
    env = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[:3000]}\n{done.stderr[-3000:]}"
    assert " cases are right" in done.stdout
    return done.stdout


def links(compiler, more, where):
    (where / "empty.cpp").write_text("int main() { return 0; }\n", encoding="utf-8")
    words = [compiler, *more, str(where / "empty.cpp"), "-o", str(where / "empty")]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        return False
    return subprocess.run([str(where / "empty")], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(CROSS is None, reason="no aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)")
@pytest.mark.skipif(EMULATOR is None, reason="no qemu-aarch64 (Debian: qemu-user)")
def test_neon_is_the_formula(tmp_path):
    program = compiled(CROSS, ["-static"], tmp_path)  # with its libraries: the emulator has none
    assert "(NEON)" in holds([EMULATOR, program])


@pytest.mark.skipif(OWN is None, reason="no C++ compiler")
@pytest.mark.parametrize("more", [[], SANITIZERS], ids=["plain", "sanitizers"])
def test_the_baseline_is_the_formula_and_keeps_within_its_arrays(more, tmp_path):
    if not links(OWN, more, tmp_path):
        pytest.skip("the compiler has no sanitizers")
    holds([compiled(OWN, more, tmp_path)])
