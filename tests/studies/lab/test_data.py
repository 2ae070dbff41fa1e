"""Data: what is read is what was written; what is broken is named in one line."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from normscope._errors import DataError, NormscopeError
from normscope.studies.lab import data as lab_data
from normscope.studies.lab.data import load


@pytest.fixture(autouse=True)
def _forget_loaded_data():
    load.cache_clear()


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_folder(folder: Path, *, zipped: bool, train: int = 40, test: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (train, 6, 5), dtype=np.uint8),
        "train-labels-idx1-ubyte": (np.arange(train) % 3).astype(np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (test, 6, 5), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": (np.arange(test) % 3).astype(np.uint8),
    }
    folder.mkdir(exist_ok=True)
    for name, array in parts.items():
        raw = idx_bytes(array)
        (folder / (name + ".gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)
    return parts


def npz_arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = {
        "x_train": rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(30) % 4,
        "x_test": rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(10) % 4,
    }
    return arrays | changes


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_folder_is_read_as_written(tmp_path, zipped):
    parts = write_folder(tmp_path / "d", zipped=zipped)
    data = load(str(tmp_path / "d"))
    assert np.array_equal(data.x_train[:, 0], parts["train-images-idx3-ubyte"])
    assert np.array_equal(data.y_test, parts["t10k-labels-idx1-ubyte"])
    assert (data.shape, data.classes) == ((1, 6, 5), 3)


def test_npz_channels_last_and_first_hold_the_same_images(tmp_path):
    arrays = npz_arrays()
    np.savez(tmp_path / "last.npz", **arrays)
    turned = {k: np.moveaxis(v, -1, 1) if v.ndim == 4 else v for k, v in arrays.items()}
    np.savez(tmp_path / "first.npz", **turned)
    last, first = load(str(tmp_path / "last.npz")), load(str(tmp_path / "first.npz"))
    assert np.array_equal(last.x_train, first.x_train)
    assert last.fingerprint() == first.fingerprint()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y_train": np.arange(29)}, "30 examples and y_train 29"),
        ({"x_train": np.empty((0, 8, 8, 3), np.uint8), "y_train": np.empty(0, int)}, "empty"),
        ({"x_test": np.full((10, 8, 8, 3), np.nan, np.float32)}, "NaN"),
        ({"x_train": np.zeros((30, 9, 8, 3), np.uint8)}, "training inputs are"),
        ({"y_test": np.full(10, -1)}, "class numbers"),
        ({"x_train": np.array([object()] * 30)}, "plain arrays"),
        ({"x_train": np.zeros((30, 8, 8, 3), np.int64)}, "uint8 or float"),
    ],
)
def test_bad_npz_is_named_in_one_line(tmp_path, changes, says):
    np.savez(tmp_path / "bad.npz", **npz_arrays(**changes))
    with pytest.raises(DataError, match=says) as caught:
        load(str(tmp_path / "bad.npz"))
    assert "\n" not in str(caught.value)


def test_missing_keys_are_listed(tmp_path):
    arrays = npz_arrays()
    del arrays["y_test"]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match="lacks y_test"):
        load(str(tmp_path / "bad.npz"))


@pytest.mark.parametrize("keep", [0, 10, 400, -40])
def test_truncated_npz(tmp_path, keep):
    np.savez(tmp_path / "whole.npz", **npz_arrays())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut\.npz"):
        load(str(tmp_path / "cut.npz"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0, 3, 9, -7])
def test_truncated_idx(tmp_path, zipped, keep):
    write_folder(tmp_path / "d", zipped=zipped)
    path = tmp_path / "d" / ("train-images-idx3-ubyte" + (".gz" if zipped else ""))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="train-images") as caught:
        load(str(tmp_path / "d"))
    assert "\n" not in str(caught.value)


def test_idx_of_another_type_is_refused(tmp_path):
    write_folder(tmp_path / "d", zipped=False)
    path = tmp_path / "d" / "train-labels-idx1-ubyte"
    path.write_bytes(b"\x00\x00\x0d\x01" + path.read_bytes()[4:])
    with pytest.raises(DataError, match="not an idx file"):
        load(str(tmp_path / "d"))


@pytest.mark.parametrize("source", ["no-such-data", "", "empty-folder", "file.txt"])
def test_what_is_not_there_is_said(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(NormscopeError) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_failed_download_is_one_line(monkeypatch, tmp_path):
    import pooch

    def refuse(*args: object, **options: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(DataError, match="could not be fetched") as caught:
        load("fashion-mnist")
    assert "\n" not in str(caught.value)


def test_cifar_archive_is_read_in_order(monkeypatch, tmp_path):
    import io
    import tarfile

    rng = np.random.default_rng(3)
    files = {
        f"cifar-10-batches-bin/{name}.bin": rng.integers(0, 10, (4, 3073), dtype=np.uint8)
        for name in ("data_batch_2", "data_batch_1", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
    }
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        for name, rows in files.items():
            info = tarfile.TarInfo(name)
            info.size = rows.nbytes
            archive.addfile(info, io.BytesIO(rows.tobytes()))
    monkeypatch.setattr(lab_data, "_fetch", lambda *a: tmp_path / "c.tar.gz")  # white box: no download
    data = load("cifar10")
    assert data.x_train.shape == (20, 3, 32, 32)
    first = files["cifar-10-batches-bin/data_batch_1.bin"][0]
    assert data.y_train[0] == first[0]
    assert np.array_equal(data.x_train[0].reshape(-1), first[1:])


def test_digits_split_by_seed():
    data = load("digits")
    one, again, other = data.split(0), data.split(0), data.split(1)
    assert (len(one.y_train), len(one.y_val) + len(one.y_test)) == (1347, 450)
    assert torch.equal(one.x_train, again.x_train)
    assert not torch.equal(one.y_train, other.y_train)
    x = one.x_train.double()
    raw_mean = x.mean(0)
    assert raw_mean.abs().max() < 1e-5
    # Standardised by std + 1e-2: a pixel of spread s keeps s / (s + 0.01), below one; dead pixels stay zero.
    assert x.std(0, correction=0).max() < 1
    assert x.std(0, correction=0).max() > 0.99


def test_parts_of_a_split_are_disjoint(tmp_path):
    arrays = npz_arrays(x_train=np.arange(30, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32))
    arrays["x_test"] = np.zeros((10, 4), np.float32)
    np.savez(tmp_path / "v.npz", **arrays)
    split = load(str(tmp_path / "v.npz")).split(5)
    seen = torch.cat([split.x_train[:, 0], split.x_val[:, 0]])
    assert len(seen.unique()) == 30
    limited = load(str(tmp_path / "v.npz")).split(5, train=8, test=4)
    assert (len(limited.y_train), len(limited.y_test)) == (8, 4)
    assert torch.equal(limited.y_train, split.y_train[:8])


def test_too_few_examples(tmp_path):
    arrays = {k: v[:1] for k, v in npz_arrays().items()}
    np.savez(tmp_path / "one.npz", **arrays)
    with pytest.raises(DataError, match="too few"):
        load(str(tmp_path / "one.npz")).split(0)
