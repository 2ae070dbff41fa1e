"""Files that are whole or absent: written under a temporary name in the same folder, synced, renamed."""

import contextlib
import errno
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from normscope._errors import StoreError

_TEMPORARY = re.compile(r"^\.tmp-(?P<host>.*)-(?P<pid>\d+)-[0-9a-f]{32}$")

_FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or the share of it that is the user's

#: After this many seconds a temporary file of another machine, whose processes cannot be seen, counts as left over.
STALE = 24 * 3600.0


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())


def write_whole(path: Path, write: Callable[[Path], None], *, replace: bool = True) -> bool:
    """Make the file ``path`` appear at once with all that ``write`` puts into it.

    Args:
        path: Where the file is to appear; its folder exists.
        write: Writes everything into the path it is given.
        replace: Whether an existing file is replaced; if not, the first of several writers wins.

    Returns:
        Whether this call's file is the one that lies there now.

    Raises:
        StoreError: The folder cannot be written, or the disk is full.
    """
    temporary = path.parent / f".tmp-{_host()}-{os.getpid()}-{uuid.uuid4().hex}"
    try:
        write(temporary)
        sync(temporary)
        if replace:
            os.replace(temporary, path)
        elif not _link(temporary, path):
            return False
        sync(path.parent)
    except OSError as error:
        advice = "make room, or choose another path" if error.errno in _FULL else "choose another path"
        raise StoreError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def write_text(path: Path, text: str, *, replace: bool = True) -> bool:
    """Write ``text`` whole, as `write_whole` does; lone surrogates, which UTF-8 cannot hold, become ``?``."""
    return write_bytes(path, text.encode("utf-8", "replace"), replace=replace)


def write_bytes(path: Path, content: bytes, *, replace: bool = True) -> bool:
    """Write bytes whole, as `write_whole` does."""
    return write_whole(path, lambda temporary: fill(temporary, content), replace=replace)


def fill(path: Path, content: bytes) -> None:
    """Write bytes into a file that nobody sees yet."""
    path.write_bytes(content)


def _link(temporary: Path, path: Path) -> bool:
    """Give the file its name unless the name is taken; say whether it was free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: the name is taken first, and the file put in its place
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    return True


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clean(folder: Path) -> list[str]:
    """Remove temporary files whose writer is gone, and return their names.

    A writer still at work in another process keeps its file.
    """
    removed = []
    for entry in sorted(folder.glob(".tmp-*")):
        match = _TEMPORARY.match(entry.name)
        if match is None:
            continue
        with contextlib.suppress(OSError):
            if match["host"] == _host():
                left = not alive(int(match["pid"]))
            else:
                left = time.time() - entry.stat().st_mtime > STALE
            if left:
                entry.unlink()
                removed.append(entry.name)
    return removed


def alive(pid: int) -> bool:
    """Return whether a process of this machine lives, as far as can be seen: True on Windows."""
    if os.name == "nt":  # signal 0 is no question there but a console event
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, but is another user's
        return True
    return _stat(pid)[:1] != ["Z"]  # a process that was killed and whose parent has not asked for it is not alive


def process_began(pid: int) -> str:
    """Return when a process began, in the system's own words; empty where that cannot be known.

    With it a process is told from a later process that was given the same number.
    """
    stat = _stat(pid)
    return stat[19] if len(stat) > 19 else ""


def _stat(pid: int) -> list[str]:
    """Return what Linux tells of a process, from its state on."""
    try:
        # Its name comes before, in brackets, and may hold any character.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
