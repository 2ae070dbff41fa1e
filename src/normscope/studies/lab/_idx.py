"""Read idx files (the format of MNIST): big-endian header, then bytes; gzipped or not."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from normscope._errors import DataError
from normscope.records.reading import ordinary
from normscope.studies.lab._npz import refuse_too_large

_HIGHEST_RANK = 4
_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Read the four files of a folder, named as MNIST's.

    Returns:
        ``x_train`` and ``x_test`` (N, H, W) and ``y_train`` and ``y_test`` (N,), all uint8.

    Raises:
        DataError: A file is missing, truncated or not an idx file of bytes.
    """
    return {key: read_idx(_find(folder, name)) for key, name in _FILES.items()}


def read_idx(path: Path) -> np.ndarray:
    """Read one idx file of unsigned bytes.

    Raises:
        DataError: The file is truncated or longer than its header says, or is not an idx file of bytes.
    """
    packed = ordinary(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if head[:3] != b"\x00\x00\x08" or len(head) < 4:
                raise DataError(f"{path}: not an idx file of unsigned bytes")
            rank = head[3]
            axes = file.read(4 * rank)
            if rank == 0 or len(axes) < 4 * rank:
                raise DataError(f"{path}: truncated in its header")
            sizes = struct.unpack(f">{rank}I", axes)
            wanted = math.prod(sizes)
            if rank > _HIGHEST_RANK:
                raise DataError(f"{path}: its header promises {rank} axes, and data have {_HIGHEST_RANK} at most")
            refuse_too_large(path, wanted, packed)
            raw = file.read(wanted)
            more = file.read(1)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: truncated or damaged ({error})") from error
    if len(raw) != wanted or more:
        there = "more are there" if more else f"{len(raw)} are there"
        raise DataError(f"{path}: its header promises {wanted} bytes of data, {there}")
    return np.ndarray(sizes, np.uint8, raw)


def _find(folder: Path, name: str) -> Path:
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"):
        if os.path.lexists(folder / candidate):
            return folder / candidate
    raise DataError(f"{folder}: lacks {name}(.gz): a data folder holds the four idx files named as MNIST's")
