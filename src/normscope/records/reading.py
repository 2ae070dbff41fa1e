"""Files that a user names: reached with ``~`` expanded, and read only if they are ordinary and of a sane size."""

import os
import stat
from pathlib import Path

from normscope._errors import DataError, UsageError

#: Bytes of a text that is read at once: a set of verdicts has a hundred kilobytes.
LARGEST_TEXT = 200_000_000


def reached(name: str | os.PathLike[str]) -> Path:
    """Return the path of a name, with ``~`` expanded; nothing need lie there.

    Args:
        name: As a user typed it.

    Raises:
        UsageError: It is empty, no file can be called so, or the folders above it cannot be entered.
    """
    text = os.fspath(name)
    if not text:
        raise UsageError("an empty name is no path: give a name, or . for the current folder")
    try:
        path = Path(text).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError:
        raise UsageError(f"{text}: there is no such user: write ./{text} for a folder of that name") from None
    except ValueError:
        raise UsageError(f"{text!r} can be no path") from None
    except OSError as error:
        raise UsageError(f"cannot reach {text}: {error.strerror}") from None
    return path


def ordinary(path: Path) -> int:
    """Return the size of an ordinary file in bytes.

    Raises:
        DataError: There is no file, it cannot be reached, or it is a folder, a pipe or a device, of which reading might
            never end.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"cannot read {path}: it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"cannot read {path}: it is a pipe or a device, no file")
    return status.st_size


def text_of_file(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Return the text of an ordinary file in UTF-8, with or without its mark.

    Args:
        path: The file.
        largest: Bytes that it may have.

    Raises:
        DataError: It is no ordinary file, too large, not in UTF-8, or cannot be read.
    """
    if ordinary(path) > largest:
        raise DataError(f"cannot read {path}: it is larger than {largest / 1e6:g} MB")
    try:
        with path.open("rb") as file:
            return file.read(largest + 1)[:largest].decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"cannot read {path}: it is no text in UTF-8") from None
