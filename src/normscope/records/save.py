"""Files that appear whole or not at all."""

import os
import tempfile
from pathlib import Path

from normscope._errors import StoreError


def save(path: str | Path, text: str, *, what: str = "") -> Path:
    """Write a text; folders above it are made.

    Args:
        path: Target.
        text: What it is to hold.
        what: What that is, for the message.

    Returns:
        The path written. The file appears whole or not at all.

    Raises:
        StoreError: The path cannot be written.
    """
    target = Path(path)
    said = f"cannot write {what} to {target}" if what else f"cannot write {target}"
    if target.is_dir():
        raise StoreError(f"{said}: it is a folder; name a file in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(text)
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{said}: {error.strerror or error}; choose another path") from error
    return target
