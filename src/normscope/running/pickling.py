"""Pickles that carry the classes of a user's own files: a worker cannot import a file that lies anywhere."""

import importlib
import pickle
from types import ModuleType
from typing import Any

from normscope._errors import UsageError
from normscope.usercode import described


def register_by_value(*modules: ModuleType) -> None:
    """Have workers get the classes of modules by value.

    Args:
        modules: Modules that workers cannot import.
    """
    for module in modules:
        _cloudpickle().register_pickle_by_value(module)


def dumps(value: object) -> bytes:
    """Return a value as bytes, with the classes of registered modules.

    Raises:
        UsageError: The value holds what no pickle takes, such as an open file.
    """
    try:
        found: bytes = _cloudpickle().dumps(value)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"the work cannot be sent to other machines ({described(error)}): leave out what cannot be pickled, or "
            "give a factory by its path, such as train.py:make_case"
        ) from error
    return found


def loads(data: bytes) -> Any:
    """Return the value of the bytes that `dumps` made."""
    return pickle.loads(data)


def _cloudpickle() -> Any:
    try:  # joblib has a copy of its own in older versions
        return importlib.import_module("joblib.externals.cloudpickle")
    except ImportError:
        return importlib.import_module("cloudpickle")
