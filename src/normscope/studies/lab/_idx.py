"""Read idx files (the format of MNIST): big-endian header, then bytes; gzipped or not."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from normscope._errors import DataError

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
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read()
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: truncated or damaged ({error})") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: not an idx file of unsigned bytes")
    rank = raw[3]
    start = 4 + 4 * rank
    if rank == 0 or len(raw) < start:
        raise DataError(f"{path}: truncated in its header")
    sizes = struct.unpack(f">{rank}I", raw[4:start])
    wanted = int(np.prod(sizes, dtype=np.int64))
    if len(raw) - start != wanted:
        raise DataError(f"{path}: its header promises {wanted} bytes of data, {len(raw) - start} are there")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(sizes)


def _find(folder: Path, name: str) -> Path:
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(f"{folder}: lacks {name}(.gz): a data folder holds the four idx files named as MNIST's")
