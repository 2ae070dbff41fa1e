"""Every replica gets the same statistics, those of all data together, whatever each one saw."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

DATA = np.random.default_rng(0).normal([0.0, 100.0], [1.0, 3.0], (23, 2))
SHARES = {
    "uneven": [[5, 9, 1], [8]],
    "one empty": [[], [10, 13]],
    "other empty": [[20, 3], []],
}


def loaders(shares):
    ends = np.cumsum([size for share in shares for size in share])[:-1]
    parts = iter(np.split(DATA, ends))
    return [[torch.from_numpy(next(parts)) for _ in share] for share in shares]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 4), nn.SyncBatchNorm(4)).double()


def replica(rank, folder):
    import torch.distributed as dist

    from normscope import surgery
    from normscope._errors import DataError

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, shares in SHARES.items():
        for sequential in (False, True):
            here = model()
            surgery.recalibrate(here, loaders(shares)[rank], sequential=sequential)
            found[name, sequential] = here.state_dict()
    plain = nn.Sequential(nn.BatchNorm1d(2)).double()
    wrapped = nn.parallel.DistributedDataParallel(plain)
    surgery.recalibrate(wrapped, loaders(SHARES["uneven"])[rank])
    found["wrapped", False] = plain.state_dict()

    def failing():
        yield from loaders(SHARES["uneven"])[rank]
        if rank == 1:
            raise OSError("disk")

    for loader in (failing(), []):
        before = {k: v.clone() for k, v in plain.state_dict().items()}
        try:
            surgery.recalibrate(plain, loader)
        except (DataError, OSError) as error:
            found["error", bool(loader)] = type(error).__name__, str(error)
        assert all(torch.equal(before[k], v) for k, v in plain.state_dict().items())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found():
    if not torch.distributed.is_available() or sys.platform == "win32":
        pytest.skip("needs gloo")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(replica, (folder,), nprocs=2, start_method="spawn")
        yield [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("shares", SHARES)
def test_both_replicas_have_the_bits_of_all_data(found, shares, sequential):
    a, b = (one[shares, sequential] for one in found)
    assert all(torch.equal(a[name], b[name]) for name in a)
    np.testing.assert_allclose(a["0.running_mean"].numpy(), DATA.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a["0.running_var"].numpy(), DATA.var(0, ddof=1), rtol=1e-12)
    assert a["0.num_batches_tracked"] == sum(map(len, SHARES[shares]))
    if sequential:
        here = model().eval()
        here.load_state_dict(a)
        with torch.no_grad():
            h = here[1](here[0](torch.from_numpy(DATA)))
        torch.testing.assert_close(a["2.running_var"], h.var(0), rtol=1e-10, atol=1e-10)


def test_wrapped_models_and_errors(found):
    np.testing.assert_allclose(found[0]["wrapped", False]["0.running_var"].numpy(), DATA.var(0, ddof=1), rtol=1e-12)
    assert found[1]["error", True] == ("OSError", "disk")
    kind, text = found[0]["error", True]
    assert kind == "DataError"
    assert "1: OSError" in text
    assert all("no batches" in one["error", False][1] for one in found)
