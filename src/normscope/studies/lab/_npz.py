"""Read arrays out of npz files, by their headers first: no file takes more memory than it may, or runs code."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from normscope._errors import DataError
from normscope.records.reading import ordinary

#: Bytes of all arrays of a file together, at most.
LARGEST = 16 << 30
#: What is compressed more than so many times, and is larger than `SMALL`, is no data but a trap.
HIGHEST_RATIO = 100
SMALL = 64 << 20
_HIGHEST_RANK = 4


def read_npz(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file by name. Pickles are never read.

    Raises:
        DataError: The file is no npz, truncated, damaged or encrypted; an array is missing, there twice, too large, or
            of objects.
    """
    ordinary(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist()]
            if missing := [key for key in keys if f"{key}.npy" not in names]:
                raise DataError(f"{path}: lacks {', '.join(missing)}: an .npz file needs {', '.join(keys)}")
            if twice := [key for key in keys if names.count(f"{key}.npy") > 1]:
                raise DataError(f"{path}: {twice[0]} is there twice: write the file anew")
            refuse_too_large(path, sum(archive.getinfo(f"{key}.npy").file_size for key in keys), path.stat().st_size)
            return {key: _array(path, key, archive) for key in keys}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise DataError(f"{path}: truncated or not an .npz file ({error})") from error


def refuse_too_large(path: Path, unpacked: int, packed: int) -> None:
    """Refuse what would take too much memory.

    Args:
        path: The file.
        unpacked: Bytes that its contents take.
        packed: Bytes of the file.

    Raises:
        DataError: There are too many bytes, or so many in so small a file that they can be no data.
    """
    if unpacked > LARGEST:
        raise DataError(f"{path}: holds {unpacked / 1e9:.0f} GB of data, and {LARGEST / 1e9:.0f} GB are read at most")
    if unpacked > max(SMALL, HIGHEST_RATIO * packed):
        raise DataError(f"{path}: would grow from {packed / 1e6:.3g} MB to {unpacked / 1e6:.3g} MB: it can be no data")


def _array(path: Path, key: str, archive: zipfile.ZipFile) -> np.ndarray:
    member = archive.getinfo(f"{key}.npy")
    if member.flag_bits & 1:
        raise DataError(f"{path}: {key} is encrypted: write the file without a password")
    with archive.open(member) as file:
        shape, in_columns, dtype = _header(path, key, file)
        if dtype.hasobject:
            raise DataError(f"{path}: {key} holds something other than plain arrays, which is not read (objects)")
        size = math.prod(shape) * dtype.itemsize
        if len(shape) > _HIGHEST_RANK or min(shape, default=0) < 0 or size > member.file_size:
            raise DataError(f"{path}: the header of {key} promises {_words(shape)}, which is not there")
        raw = file.read(size)
        if len(raw) < size or file.read(1):  # the end of the member is where its checksum is compared
            raise DataError(f"{path}: {key} has another length than its header says")
    return np.ndarray(shape, dtype, raw, order="F" if in_columns else "C")


def _header(path: Path, key: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, in_columns, dtype = read(file)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error):
        raise
    except Exception as error:  # a header is a literal of Python, and can be wrong in any way
        raise DataError(f"{path}: {key} has no header of a plain array ({type(error).__name__})") from None
    return tuple(int(size) for size in shape), bool(in_columns), dtype


def _words(shape: tuple[int, ...]) -> str:
    return f"{len(shape)} axes" if len(shape) > _HIGHEST_RANK else f"an array of {' x '.join(map(str, shape))}"
