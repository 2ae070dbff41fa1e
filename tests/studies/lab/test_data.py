"""Data: what is read is what was written; what is broken is named in one line."""

import gzip
import os
import re
import struct
import tracemalloc
import zipfile
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


def npz_with(path: Path, member: bytes) -> None:
    """Write an npz file whose ``x_train`` is any bytes."""
    np.savez(path, **{key: value for key, value in npz_arrays().items() if key != "x_train"})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", member)


def header(shape: object, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (header((1 << 62, 1 << 62)), "promises an array of 4611686018427387904 x 4611686018427387904"),
        (header((30, 7)) + bytes(100), "promises an array of 30 x 7"),
        (header((30, 7)) + bytes(209), "another length"),
        (header((30, 7)) + bytes(211), "another length"),
        (header((1,) * 40), "promises 40 axes"),
        (header((-30, 7)), "promises an array of -30 x 7"),
        (header("()") + b"\0", "must be"),
        (header((30,), "|O"), "plain arrays"),
        (header((30,), "nonsense"), "no header of a plain array"),
        (header("len([1])"), "no header of a plain array"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31), "no header of a plain array"),
        (b"\x93NUMPY\x09\x00" + bytes(40), "no header of a plain array"),
        (header("(" * 9000), "no header of a plain array"),
        (b"", "no header of a plain array"),
    ],
)
def test_an_array_is_not_what_its_header_says(tmp_path, member, says):
    npz_with(tmp_path / "bad.npz", member)
    with pytest.raises(DataError, match=says) as caught:
        load(str(tmp_path / "bad.npz"))
    assert "\n" not in str(caught.value)


def test_columns_first_are_read_as_they_were(tmp_path):
    arrays = npz_arrays(x_train=np.asfortranarray(np.random.default_rng(3).random((30, 8, 8))))
    np.savez_compressed(tmp_path / "columns.npz", **arrays | {"x_test": arrays["x_train"][:10]})
    assert np.array_equal(load(str(tmp_path / "columns.npz")).x_train[:, 0], arrays["x_train"])


def peak_of(source: str) -> int:
    """Return the most bytes of memory that Python held while data were refused."""
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        load(source)
    assert "\n" not in str(caught.value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    size = 80 << 20  # of zeros, which are less than 400 kB in the file
    npz_with(tmp_path / "bomb.npz", header((30, size // 30)) + bytes(size))
    assert peak_of(str(tmp_path / "bomb.npz")) < 8 << 20
    write_folder(tmp_path / "d", zipped=True)
    path = tmp_path / "d" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x02" + struct.pack(">2I", 80, 1 << 20) + bytes(size), 1))
    assert peak_of(str(tmp_path / "d")) < 8 << 20
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x03" + struct.pack(">3I", *[0xFFFFFFFF] * 3)))
    assert peak_of(str(tmp_path / "d")) < 8 << 20
    path.write_bytes(gzip.compress(b"\x00\x00\x08\xfe" + struct.pack(">254I", *[2] * 254)))
    assert peak_of(str(tmp_path / "d")) < 8 << 20


def test_data_that_compress_well_are_no_bomb(tmp_path):
    arrays = npz_arrays(x_train=np.zeros((6000, 28, 28), np.uint8), y_train=np.arange(6000) % 4)
    np.savez_compressed(tmp_path / "dark.npz", **arrays | {"x_test": arrays["x_train"][:10]})
    assert load(str(tmp_path / "dark.npz")).x_train.shape == (6000, 1, 28, 28)


def test_an_encrypted_member_and_a_member_that_is_there_twice(tmp_path):
    np.savez(tmp_path / "locked.npz", **npz_arrays())
    raw = bytearray((tmp_path / "locked.npz").read_bytes())
    for record in re.finditer(rb"PK\x01\x02", bytes(raw)):
        raw[record.start() + 8] |= 1
    (tmp_path / "locked.npz").write_bytes(raw)
    with pytest.raises(DataError, match="x_train is encrypted"):
        load(str(tmp_path / "locked.npz"))
    np.savez(tmp_path / "twice.npz", **npz_arrays())
    with zipfile.ZipFile(tmp_path / "twice.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("y_test.npy", b"")
    with pytest.raises(DataError, match="y_test is there twice"):
        load(str(tmp_path / "twice.npz"))


def test_pipes_and_folders_in_the_place_of_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    write_folder(tmp_path / "d", zipped=False)
    (tmp_path / "d" / "t10k-labels-idx1-ubyte").unlink()
    os.mkfifo(tmp_path / "d" / "t10k-labels-idx1-ubyte")
    for name, says in (("pipe.npz", "a pipe"), ("folder.npz", "lacks"), ("d", "a pipe")):
        with pytest.raises(DataError, match=says):
            load(str(tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y_train": np.full(30, 2**32)}, "class number 4294967296"),
        ({"y_test": np.full(10, 2**63, np.uint64)}, "class number 9223372036854775808"),
        ({"x_train": np.full((30, 8, 8, 3), -1e200)}, "beyond 1e"),
        ({"x_test": np.full((10, 8, 8, 3), np.finfo(np.float32).max, np.float32)}, "beyond 1e"),
    ],
)
def test_numbers_that_no_network_can_take(tmp_path, changes, says):
    np.savez(tmp_path / "bad.npz", **npz_arrays(**changes))
    with pytest.raises(DataError, match=says):
        load(str(tmp_path / "bad.npz"))


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
