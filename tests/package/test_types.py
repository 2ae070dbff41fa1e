"""Type checkers and editors see the names of the package, those that are imported at their first use included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import normscope as ns
from normscope._unit import discover

FILE = """
import torch
from torch import nn

import normscope as ns
from normscope.probes import Curvature

model = nn.Sequential(nn.Linear(3, 3), ns.layers.BatchNorm1d(3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scope: ns.Scope = ns.watch(model, optimizer, probes=[ns.probes.GradientFlow(trim=1), Curvature(), "loss"])
said: str = scope.summary()
claim: str = ns.study("vanishing-at-init").CLAIM
severity: str = ns.rules.get("NS102").SEVERITY
"""
WRONG = (
    "ns.probes.GradientFlow(trimm=1)",
    "ns.probes.GradientFlows",
    "ns.layers.BatchNorm1d(3, statistics='gost')",
    "ns.watchh",
)


def test_probes_stand_where_type_checkers_look():
    text = Path(ns.probes.__file__).read_text(encoding="utf-8")
    wanted = {f"from {probe.__module__} import {probe.__name__} as {probe.__name__}" for probe in ns.probes.all()}
    missing = wanted - {line.strip() for line in text.splitlines()}
    assert not missing, f"the block TYPE_CHECKING of {ns.probes.__file__} lacks {sorted(missing)}"


def test_layers_stand_where_type_checkers_look():
    assert {layer.__name__ for layer in discover(ns.layers, ns.layers.AbstractLayer)} <= set(ns.layers.__all__)


@pytest.mark.long
def test_mypy_knows_every_name_in_a_users_file(tmp_path):
    names = [
        *(f"ns.{name}" for name in ns.__all__),
        *(f"ns.probes.{probe.__name__}" for probe in ns.probes.all()),
        *(f"ns.layers.{layer.__name__}" for layer in discover(ns.layers, ns.layers.AbstractLayer)),
    ]
    lines = FILE.splitlines()
    right = len(lines)
    lines += [f"reveal_type({name})" for name in names] + list(WRONG)
    file = tmp_path / "users_file.py"
    file.write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(file)]
    environment = {**os.environ, "PYTHONPATH": str(Path(ns.__file__).parents[1])}  # as a package, not as a user's file
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = {int(line.split(":")[1]): line for line in run.stdout.splitlines() if ": note: Revealed" in line}
    faults = {int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error:" in line}
    assert run.stderr == ""
    assert faults == {right + len(names) + number for number in range(1, len(WRONG) + 1)}, run.stdout
    for number, name in enumerate(names, right + 1):
        assert '"Any"' not in said[number], name
