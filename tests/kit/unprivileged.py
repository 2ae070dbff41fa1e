"""Permission checks that see something also where the tests run as root."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def folder_of_nobody() -> Iterator[Path]:
    """Yield a new folder that belongs to an unprivileged user, whoever runs the tests.

    Unlike pytest's own folders it does not lie below a folder that only root may enter.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        if _is_root():
            os.chown(folder, _NOBODY, _NOBODY)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be an unprivileged user meanwhile. What must be imported has to be imported before."""
    if not _is_root():
        yield
        return
    # The real identity too, which os.access asks for; root is kept as the saved one, to come back.
    os.setresgid(_NOBODY, _NOBODY, 0)
    os.setresuid(_NOBODY, _NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
