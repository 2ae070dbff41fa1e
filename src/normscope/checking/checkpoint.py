"""State dicts in files: read without running what is in them, written whole or not at all."""

import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from normscope._errors import DataError, StoreError, UsageError
from normscope.records.files import write_whole
from normscope.records.reading import ordinary
from normscope.usercode import described

_TORCH = (".pt", ".pth", ".bin", ".ckpt")


def read(path: Path) -> Mapping[str, Any]:
    """Read a state dict. What kind of file it is, its first bytes say, not its name.

    Raises:
        DataError: The file is missing, truncated, or no state dict.
        UsageError: It needs code to be run, or a library that is not installed.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: give a file with a state dict")
    ordinary(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if not head:
        raise DataError(f"{path} is empty")
    found = _safetensors(path) if _is_safetensors(path, head) else _torch(path, head)
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}, not a state dict")
    return found


def writable(path: Path) -> None:
    """Refuse at once what could not be written in the end.

    Raises:
        UsageError: The suffix is none that is written, the folder is missing, the file is there, or a library is not.
    """
    if path.suffix not in (".safetensors", *_TORCH):
        raise UsageError(f"--out {path}: the name must end in .safetensors, {', '.join(_TORCH[:-1])} or {_TORCH[-1]}")
    if path.suffix == ".safetensors":
        _library()
    if path.exists():
        raise UsageError(f"--out {path} is there already: choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}")


def write(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict, whole or not at all.

    Raises:
        StoreError: It cannot be written.
    """
    # Copies, row by row: safetensors refuses tensors that share memory, and torch would save what views look into.
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}

    def save(part: Path) -> None:
        if path.suffix == ".safetensors":
            _library().save_file(tensors, str(part), metadata={"format": "pt"})
        else:
            with part.open("wb") as file:  # torch makes a name inside the archive of a path, and not of every path
                torch.save(tensors, file)

    try:
        write_whole(path, save)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"cannot write {path}: {described(error)}") from None


def _is_safetensors(path: Path, head: bytes) -> bool:
    if path.suffix == ".safetensors":
        return True
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size - 8


def _library() -> Any:
    try:
        import safetensors.torch as library
    except ImportError:
        raise UsageError("safetensors is not installed: pip install safetensors, or use a .pt file") from None
    return library


def _safetensors(path: Path) -> Any:
    try:
        return _library().load_file(str(path))
    except UsageError:
        raise
    except Exception as error:
        raise DataError(f"{path} is truncated or no safetensors file: {described(error)}") from None


def _torch(path: Path, head: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old kinds of files; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # torch names the function that it refuses to call; of newer protocols of pickle it reads nothing.
        if "GLOBAL" in str(error) or head[:1] == b"\x80":
            raise UsageError(
                f"{path} holds more than tensors, and reading it would run code: nothing was run; "
                "save model.state_dict() alone, or as safetensors"
            ) from None
        raise DataError(f"{path} is truncated or no file of torch.save") from None
    except Exception as error:
        raise DataError(f"{path} is truncated or no file of torch.save: {described(error)[:120]}") from None
