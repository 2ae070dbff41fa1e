"""Which place a path or an address means, and files that a user named.

A bucket is given by its address, ``s3://bucket/runs`` (or ``gs``, ``az``). A `Path` made of an address loses a slash,
``s3:/bucket/runs``, and still means the bucket: so a path can be carried through the package, and only the functions
that touch files ask `place_of`.
"""

import os
import re
from pathlib import Path

from normscope._errors import DataError, StoreError, UsageError
from normscope.records.buckets import Bucket
from normscope.records.places import Folder, Place
from normscope.records.reading import text_of_file

#: Kinds of buckets, by the first word of their addresses.
SCHEMES = ("s3", "gs", "az")

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)


def place_of(where: str | os.PathLike[str]) -> Place:
    """Return the place of a folder's path or a bucket's address; ``~`` stands for the user's own folder.

    Args:
        where: ``runs/mine``, ``file:///data/runs`` or ``s3://bucket/runs``; also as a path, which loses a slash.

    Raises:
        UsageError: An address of another kind, or of no bucket, or the package for buckets is not installed.
    """
    text = os.fspath(where)
    match = _ADDRESS.fullmatch(text)
    if match is None or Path(text).exists():  # a folder may have a name like an address's
        if "\0" in text:
            raise UsageError(f"{text!r} cannot be the name of a folder: it has a zero byte")
        try:
            return Folder(Path(text).expanduser())
        except RuntimeError:  # a home folder of a user who does not exist
            return Folder(Path(text))
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme == "file":
        return Folder(Path("/" + rest))
    if scheme not in SCHEMES:
        raise UsageError(
            f"{scheme}:// is no address that can be written: give a folder, or a bucket as "
            f"{', '.join(f'{each}://' for each in SCHEMES)}"
        )
    return Bucket(scheme, rest)


def require_folder(where: str | os.PathLike[str], why: str) -> Path:
    """Return the path of a folder of this machine.

    Args:
        where: As `place_of` takes it.
        why: What needs a folder, as the beginning of a sentence.

    Raises:
        UsageError: It is a bucket's address.
    """
    place = place_of(where)
    if not isinstance(place, Folder):
        raise UsageError(f"{why} needs a folder of this machine, not {place.url}")
    return place.path


def save(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write a file that a user named; folders above it are made, and an older file is replaced.

    Args:
        path: The file, in a folder or a bucket.
        content: A text, written as UTF-8, or bytes.

    Returns:
        The path. The file appears whole or not at all.

    Raises:
        StoreError: The path is a folder, or cannot be written.
    """
    parent, name = os.path.split(os.fspath(path))
    place = place_of(parent or ".")
    if isinstance(place, Folder):
        target = place.path / name
        if not name or target.is_dir():
            raise StoreError(f"cannot write {target}: it is a folder; name a file in it")
        if target.exists() and not target.is_file():  # a new file would take the place of the device for all programs
            raise StoreError(f"cannot write {target}: it is a pipe or a device; name a file")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error.strerror or error}; choose another path") from error
    place.write(name, content.encode("utf-8", "replace") if isinstance(content, str) else content)
    return place.path / name


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path or an address is that of a file."""
    place = place_of(path)
    if isinstance(place, Folder):
        return place.path.is_file()
    parent, name = os.path.split(os.fspath(path))
    return "." in name and place_of(parent).holds(name)


def text_at(path: str | os.PathLike[str]) -> str:
    """Return the text of a file in a folder or a bucket.

    Raises:
        DataError: It is no ordinary file, too large, not in UTF-8, or cannot be read.
        StoreError: The bucket cannot be read.
    """
    parent, name = os.path.split(os.fspath(path))
    place = place_of(parent or ".")
    if isinstance(place, Folder):
        return text_of_file(place.path / name)
    try:
        return place.read(name).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"cannot read {place.at(name)}: there is no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"cannot read {place.at(name)}: it is no text in UTF-8") from None


def shown(path: str | os.PathLike[str]) -> str:
    """Return how a message names a path: as it is, or as a bucket's address."""
    place = place_of(path)
    return os.fspath(path) if isinstance(place, Folder) else place.url
