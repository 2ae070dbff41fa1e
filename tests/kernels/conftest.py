"""The builds of the CPU kernel that this machine runs."""

import pytest
import torch

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


@pytest.fixture(params=["exchange", "attributes"])
def reading(request, monkeypatch):
    """How builds read tensors: by DLPack's exchange, or as with a torch that has none."""
    if request.param == "attributes":
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", None, raising=False)
    elif not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch has no exchange")
    for name in builds():
        cpu.build(name)  # learns anew
    yield request.param
    monkeypatch.undo()
    for name in builds():
        cpu.build(name)
