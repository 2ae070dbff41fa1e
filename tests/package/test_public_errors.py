"""Errors and warnings that a user may catch are names of the package."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
from torch import nn

import normscope as ns
from normscope import _errors


def test_every_error_that_all_rooms_raise_is_a_public_name():
    raised = {
        name for name, kind in inspect.getmembers(_errors, inspect.isclass) if issubclass(kind, _errors.NormscopeError)
    }
    assert {"UsageError", "DataError", "StoreError", "UnitError"} < raised
    assert raised <= set(ns.__all__)
    assert all(getattr(ns, name) is getattr(_errors, name) for name in raised)


@pytest.mark.parametrize("room", ["watching", "comparing", "checking", "evidence", "probes", "surgery", "studies"])
def test_every_warning_of_a_room_is_a_public_name(room):
    module = importlib.import_module(f"normscope.{room}")
    names = [found.name for found in pkgutil.iter_modules(module.__path__) if not found.name.startswith("__")]
    members = {
        (name, kind)
        for each in names
        for name, kind in inspect.getmembers(importlib.import_module(f"normscope.{room}.{each}"), inspect.isclass)
        if issubclass(kind, Warning) and kind.__module__.startswith("normscope.") and not name.startswith("_")
    }
    assert all(getattr(ns, name) is kind for name, kind in members)


def test_the_errors_are_caught_by_their_public_names(tmp_path):
    with pytest.raises(ns.UsageError):
        ns.study("no-such-study")
    (tmp_path / "a_file").write_text("no run", encoding="utf-8")
    with pytest.raises(ns.StoreError):
        ns.watch(nn.Linear(2, 2), record_to=tmp_path / "a_file")


def test_the_errors_come_without_torch():
    code = "import sys, normscope as ns; ns.UsageError, ns.StoreError, ns.DataError; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False\n"
