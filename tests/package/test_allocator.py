"""The switch is tried in processes of its own: it cannot be undone."""

import subprocess
import sys

import pytest

from normscope import allocator
from normscope._errors import UsageError

# Page faults while 48 MiB tensors are made and freed eight times, once the heap has grown to hold them.
COUNT = """
import resource, sys, torch
import normscope as ns
if sys.argv[1] == "keep":
    ns.allocator.keep_large_blocks()
for _ in range(24):
    torch.ones(12 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(12 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_freed_blocks_stay_and_only_if_asked():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "leave")
    }
    assert faults["keep"] < 100
    assert faults["leave"] > 10 * faults["keep"] + 1000


def test_elsewhere_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match="glibc, and this is darwin"):
        allocator.keep_large_blocks()
