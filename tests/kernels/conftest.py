"""The builds of the CPU kernel that this machine runs."""

import pytest

from normscope.kernels import cpu


def builds():
    if cpu.why_not():
        return []
    runs = cpu.build("_baseline").supports()
    return [name for name in ("_avx512", "_avx2", "_baseline") if runs.get(name, True)]


@pytest.fixture(params=builds())
def build(request, monkeypatch):
    try:
        module = cpu.build(request.param)
    except ImportError:
        pytest.skip("the compiler had no such instruction set")
    # white box: nothing public makes the kernel run with another instruction set than the best
    monkeypatch.setattr(cpu, "_kernel", lambda: module)
    return request.param
