"""Files that are not what they should be: data, checkpoints, JSON, TOML. Each maker writes into a path."""

import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile

import numpy as np
import torch

from kit.odd_paths import make_sparse

# -- data -------------------------------------------------------------------------------------------------------------


def _arrays(**changes):
    arrays = {
        "x_train": np.zeros((40, 8, 8), np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": np.ones((40, 8, 8), np.uint8),
        "y_test": np.arange(40) % 4,
    }
    return arrays | changes


def _npz(**changes):
    def make(path):
        with path.open("wb") as file:
            np.savez(file, **{key: value for key, value in _arrays(**changes).items() if value is not None})

    return make


def _member(header, name="x_train.npy", size=None, flags=0, content=b"", compress=zipfile.ZIP_DEFLATED):
    """Make an npz of which one member is as given; its declared size and flags can be false."""

    def make(path):
        _npz()(path)
        with zipfile.ZipFile(path) as archive:
            kept = {each: archive.read(each) for each in archive.namelist() if each != name}
        with zipfile.ZipFile(path, "w", compress) as archive:
            for each, raw in kept.items():
                archive.writestr(each, raw)
            archive.writestr(name, header + content)
        raw = bytearray(path.read_bytes())
        at = raw.rindex(name.encode())
        record = raw.rindex(b"PK\x01\x02", 0, at)
        if flags:
            raw[record + 8 : record + 10] = struct.pack("<H", flags)
            local = struct.unpack_from("<I", raw, record + 42)[0]
            raw[local + 6 : local + 8] = struct.pack("<H", flags)
        if size is not None:
            raw[record + 24 : record + 28] = struct.pack("<I", size)
        path.write_bytes(raw)

    return make


def _header(shape, dtype="|u1", order=False, length=None):
    text = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 16) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) if length is None else length) + text.encode()


def _bomb(path):
    """A gigabyte of zeros in a megabyte of zip."""
    _member(_header((1 << 30,)), content=bytes(1 << 20) * 1024)(path)


def _many_members(path):
    _npz()(path)
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(5000):
            archive.writestr(f"{number}.npy", b"")


def _twice(path):
    _npz()(path)
    with zipfile.ZipFile(path, "a") as archive, np.errstate(all="ignore"):
        buffer = io.BytesIO()
        np.save(buffer, np.ones((40, 2)))
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr("x_train.npy", buffer.getvalue())


class _Calls:
    def __reduce__(self):
        return os.system, ("touch stolen",)


def _pickled(path):
    with path.open("wb") as file:
        np.savez(file, **_arrays(x_train=np.array([_Calls()] * 40, dtype=object)), allow_pickle=True)


def _truncated(part):
    def make(path):
        _npz()(path)
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * part)])

    return make


def _flipped(path):
    _npz()(path)
    raw = bytearray(path.read_bytes())
    for at in range(60, len(raw), 97):
        raw[at] ^= 255
    path.write_bytes(raw)


#: Files ``data.npz``, by what is wrong with them.
NPZ = {
    "truncated": _truncated(0.5),
    "truncated head": _truncated(0.01),
    "truncated tail": _truncated(0.99),
    "flipped": _flipped,
    "bomb": _bomb,
    "encrypted": _member(_header((40, 8, 8)), flags=1, content=bytes(2560)),
    "size that lies": _member(_header((40, 8, 8)), size=0xFFFFFFF0, content=bytes(2560)),
    "huge header": _member(b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0)),
    "huge shape": _member(_header((1 << 40, 8, 8))),
    "overflowing shape": _member(_header((1 << 33, 1 << 33, 2))),
    "negative shape": _member(_header((-40, 8, 8))),
    "rank 255": _member(_header((1,) * 255)),
    "shape of text": _member(_header("'abc'")),
    "header of code": _member(b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').system('touch stolen')".ljust(64)),
    "deep header": _member(b"\x93NUMPY\x02\x00" + struct.pack("<I", 60000) + b"(" * 60000),
    "strange dtype": _member(_header((40, 8, 8), dtype="|O")),
    "dtype of objects": _member(_header((40,), dtype="[('a', '|O')]")),
    "pickle": _pickled,
    "many members": _many_members,
    "member twice": _twice,
    "lacks a key": _npz(y_test=None),
    "labels of 2^31": _npz(y_train=np.full(40, 2**31)),
    "labels of 2^62": _npz(y_train=np.full(40, 2**62)),
    "labels of 10^6": _npz(y_train=np.full(40, 10**6)),
    "labels of uint64": _npz(y_train=np.full(40, 2**64 - 1, np.uint64)),
    "labels negative": _npz(y_train=np.full(40, -1)),
    "labels float": _npz(y_train=np.zeros(40)),
    "labels bool": _npz(y_train=np.zeros(40, bool)),
    "labels missing in training": _npz(y_train=np.zeros(40, int), y_test=np.full(40, 3)),
    "no dimension": _npz(x_train=np.array(3.0)),
    "x text": _npz(x_train=np.full((40, 8), "a")),
    "x complex": _npz(x_train=np.zeros((40, 8), complex)),
    "x int64": _npz(x_train=np.zeros((40, 8), int)),
    "x float128": _npz(x_train=np.zeros((40, 8, 8), np.longdouble)),
    "x nan": _npz(x_train=np.full((40, 8), np.nan)),
    "x infinite": _npz(x_test=np.full((40, 8, 8), np.inf)),
    "x huge numbers": _npz(x_train=np.full((40, 8, 8), 1e308), x_test=np.full((40, 8, 8), 1e308)),
    "x constant": _npz(x_train=np.ones((40, 8, 8), np.float32)),
    "x without features": _npz(x_train=np.zeros((40, 0)), x_test=np.zeros((40, 0))),
    "rank 5": _npz(x_train=np.zeros((40, 2, 2, 2, 2))),
    "no examples": _npz(x_train=np.zeros((0, 8, 8)), y_train=np.zeros(0, int)),
    "one example": _npz(x_train=np.zeros((1, 8, 8)), y_train=np.zeros(1, int)),
    "lengths differ": _npz(y_train=np.arange(39) % 4),
    "shapes differ": _npz(x_test=np.zeros((40, 9, 9), np.uint8)),
    "dates": _npz(y_train=np.zeros(40, "datetime64[s]")),
    "an npy": lambda path: path.write_bytes(_header((3,)) + b"abc"),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(_Calls())),
    "an empty zip": lambda path: zipfile.ZipFile(path, "w").close(),
    "text": lambda path: path.write_text("x_train", encoding="utf-8"),
    "empty": lambda path: path.touch(),
    "fifo": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "sparse": make_sparse,
}

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _idx_folder(odd=None, suffix="", name=_IDX[0]):
    """Make a folder of four idx files, of which one holds other bytes or is made otherwise."""

    def make(path):
        path.mkdir()
        images, labels = np.zeros((40, 6, 5), np.uint8), (np.arange(40) % 4).astype(np.uint8)
        for each, array in zip(_IDX, (images, labels, images, labels), strict=True):
            (path / each).write_bytes(_idx(array))
        if odd is not None:
            (path / name).unlink()
            target = path / (name + suffix)
            odd(target) if callable(odd) else target.write_bytes(odd)

    return make


#: Folders of idx files, by what is wrong with them.
IDX = {
    "whole": _idx_folder(),
    "empty": _idx_folder(b""),
    "head alone": _idx_folder(b"\x00\x00\x08\x03"),
    "truncated": _idx_folder(_idx(np.zeros((40, 6, 5), np.uint8))[:-7]),
    "longer": _idx_folder(_idx(np.zeros((40, 6, 5), np.uint8)) + b"more"),
    "floats": _idx_folder(b"\x00\x00\x0d\x03" + bytes(20)),
    "rank 255": _idx_folder(b"\x00\x00\x08\xff" + struct.pack(">255I", *[1] * 255) + b"\x00"),
    "rank 0": _idx_folder(b"\x00\x00\x08\x00"),
    "overflowing": _idx_folder(b"\x00\x00\x08\x04" + struct.pack(">4I", 1 << 31, 1 << 31, 4, 1)),
    "huge": _idx_folder(b"\x00\x00\x08\x03" + struct.pack(">3I", 0xFFFFFFFF, 28, 28)),
    "zeros": _idx_folder(b"\x00\x00\x08\x03" + struct.pack(">3I", 0, 0, 0)),
    "labels of images": _idx_folder(_idx(np.zeros((40, 6, 5), np.uint8)), name=_IDX[1]),
    "gz bomb": _idx_folder(lambda path: path.write_bytes(_gz_bomb()), suffix=".gz"),
    "gz truncated": _idx_folder(gzip.compress(_idx(np.zeros((40, 6, 5), np.uint8)))[:-9], suffix=".gz"),
    "gz of text": _idx_folder(b"not gzip at all", suffix=".gz"),
    "gz with more": _idx_folder(gzip.compress(_idx(np.zeros((40, 6, 5), np.uint8))) + b"more", suffix=".gz"),
    "gz crc": _idx_folder(gzip.compress(_idx(np.zeros((40, 6, 5), np.uint8)))[:-8] + bytes(8), suffix=".gz"),
    "fifo": _idx_folder(os.mkfifo),
    "endless": _idx_folder(lambda path: path.symlink_to("/dev/zero")),
    "sparse": _idx_folder(make_sparse),
    "loop": _idx_folder(lambda path: path.symlink_to(path.name)),
    "folder": _idx_folder(lambda path: path.mkdir()),
    "missing": _idx_folder(lambda path: None),
}


def _gz_bomb():
    raw, buffer = bytes(1 << 20), io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        file.write(b"\x00\x00\x08\x03" + struct.pack(">3I", 1 << 11, 1 << 11, 1 << 10))
        for _ in range(4096):
            file.write(raw)
    return buffer.getvalue()


# -- checkpoints ------------------------------------------------------------------------------------------------------


def _saved(value):
    return lambda path: torch.save(value, path)


def _torch_truncated(path):
    torch.save({"weight": torch.zeros(400)}, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


_NORM = {"running_mean": torch.zeros(3), "running_var": torch.ones(3), "num_batches_tracked": torch.tensor(4)}


def _norm(**changes):
    return _saved({f"bn.{key}": value for key, value in (_NORM | changes).items()})


def _safe(header, content=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + content)


#: Checkpoints, by what is wrong with them; a name that ends in a suffix names the file's.
CHECKPOINTS = {
    "pickle": lambda path: path.write_bytes(pickle.dumps(_Calls())),
    "pickle in torch": _saved({"a": _Calls()}),
    "old pickle": lambda path: torch.save({"a": _Calls()}, path, _use_new_zipfile_serialization=False),
    "whole model": _saved(torch.nn.Linear(2, 2)),
    "truncated": _torch_truncated,
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("weights", encoding="utf-8"),
    "tensor": _saved(torch.zeros(3)),
    "list": _saved([1, 2]),
    "numbers as keys": _saved({1: torch.zeros(2), None: 3}),
    "no norms": _saved({"weight": torch.zeros(3)}),
    "nested": _saved({"state_dict": {"model": {"bn.running_mean": torch.zeros(3)}}}),
    "deep": _saved(__import__("functools").reduce(lambda inner, _: {"state_dict": inner}, range(200), {})),
    "keys of escapes": _saved({f"\x1b[31m\n.{key}": value for key, value in _NORM.items()}),
    "keys of surrogates": _saved({"\ud800.running_mean": torch.zeros(3), "\ud800.running_var": torch.zeros(3)}),
    "key long": _saved({"a" * 100_000 + ".running_mean": torch.zeros(3)}),
    "mean of text": _norm(running_mean="zero"),
    "mean of none": _norm(running_mean=None),
    "mean of rank 3": _norm(running_mean=torch.zeros(2, 2, 2)),
    "mean empty": _norm(running_mean=torch.zeros(0), running_var=torch.zeros(0)),
    "mean complex": _norm(running_mean=torch.zeros(3, dtype=torch.complex64)),
    "mean bool": _norm(running_mean=torch.zeros(3, dtype=torch.bool)),
    "mean meta": _norm(running_mean=torch.zeros(3, device="meta")),
    "mean sparse": _norm(running_mean=torch.zeros(3).to_sparse()),
    "mean nan": _norm(running_mean=torch.full((3,), float("nan"))),
    "variance negative": _norm(running_var=torch.full((3,), -1.0)),
    "variance longer": _norm(running_var=torch.ones(4)),
    "count of text": _norm(num_batches_tracked="many"),
    "count of rank 1": _norm(num_batches_tracked=torch.zeros(5)),
    "count negative": _norm(num_batches_tracked=torch.tensor(-(2**62))),
    "count nan": _norm(num_batches_tracked=torch.tensor(float("nan"))),
    "fifo": lambda path: os.mkfifo(path),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "sparse": make_sparse,
    "empty.safetensors": lambda path: path.touch(),
    "short.safetensors": lambda path: path.write_bytes(b"\x01"),
    "huge header.safetensors": _safe({}, length=1 << 60),
    "no json.safetensors": _safe(b"{not json"),
    "deep json.safetensors": _safe(b"[" * 100_000),
    "offsets.safetensors": _safe({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    "offsets back.safetensors": _safe({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
    "dtype.safetensors": _safe({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "fifo.safetensors": lambda path: os.mkfifo(path),
}

# -- settings ---------------------------------------------------------------------------------------------------------

#: Texts of a TOML file, by what is wrong with them.
SETTINGS = {
    "no toml": "[tool.normscope\n",
    "binary": "\0\1\2",
    "bom": "\ufeffselect = ['NS1']\n",
    "twice": "select = ['NS1']\nselect = ['NS1']\n",
    "unknown": "nothing = 1\n",
    "unknown escapes": '"\\u001b[31m" = 1\n',
    "select text": "select = 'NS1'\n",
    "select numbers": "select = [1]\n",
    "select deep": "select = " + "[" * 5000 + "]" * 5000 + "\n",
    "select empty": "select = []\n",
    "select nothing": "select = ['NS999']\n",
    "ignore table": "[ignore]\nNS1 = 3\n",
    "ignore date": "ignore = 1979-05-27\n",
    "level": "level = 'loud'\n",
    "level number": "level = 3\n",
    "paths": "per-path-ignores = 'x'\n",
    "paths pattern": "[per-path-ignores]\n'[' = {NS1 = 'why'}\n",
    "paths nul": "[per-path-ignores]\n'a' = {NS1 = '\\u001b[31m'}\n",
    "huge number": "level = " + "9" * 5000 + "\n",
    "tool number": "tool = 3\n",
    "tool table": "[tool]\nnormscope = 3\n",
}

# -- JSON -------------------------------------------------------------------------------------------------------------

_ODD = [None, True, -1, 0, 1.5, 10**400, 2**63, "", "x", "\x1b[31m\n", "\ud800", "a/../../b", [], [None], {}, {"a": []}]


def places_in(document, path=()):
    """Yield the path of every value of a JSON document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places_in(value, (*path, key))


def changed_json(text, chance: random.Random):
    """Return what was done to a JSON document, and its text afterwards: a value lost, of another type, or odd."""
    document = json.loads(text)
    *way, last = chance.choice(list(places_in(document)))
    inner = document
    for key in way:
        inner = inner[key]
    where = ".".join(map(str, [*way, last]))
    if chance.random() < 0.3:
        del inner[last]
        return f"without {where}", json.dumps(document)
    inner[last] = chance.choice(_ODD)
    return f"{where} = {ascii(inner[last])[:20]}", json.dumps(document)


def broken_json(text, chance: random.Random):
    """Return what was done to the text of a JSON document, and its bytes afterwards: no JSON, or not of one meaning."""
    raw = text.encode()
    return chance.choice(
        [
            ("empty", b""),
            ("truncated", raw[: chance.randrange(1, len(raw))]),
            ("binary", bytes(range(256))),
            ("bom", b"\xef\xbb\xbf" + raw),
            ("utf-16", text.encode("utf-16")),
            ("not utf-8", raw[:-3] + b"\xff\xfe" + raw[-3:]),
            ("deep", b"[" * 100_000),
            ("deep objects", b'{"a":' * 100_000),
            ("deep and whole", b"[" * 100_000 + b"]" * 100_000),
            ("nan", raw.replace(b": ", b": NaN, ", 1)),
            ("long number", b"9" * 100_000),
            ("twice", raw.rstrip()[:-1] + b', "config": {}, "format": 1, "cell": 3, "version": 9}'),
            ("a list", b"[]"),
            ("a text", b'"x"'),
            ("a number", b"3"),
            ("null", b"null"),
            ("two documents", raw + raw),
            ("spaces", b" " * 1_000_000),
        ]
    )
