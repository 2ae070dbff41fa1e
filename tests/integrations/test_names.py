"""Names and texts that loggers take, and what is said where a package is missing."""

import importlib
import re
import sys

import pytest
import torch

import normscope as ns
from kit import varied_networks as nets
from normscope._errors import UsageError
from normscope.integrations import allowed, scalar_name, sentences
from normscope.records import Finding, Record, Severity

NEEDS = {
    "lightning": ["lightning", "pytorch_lightning"],
    "transformers": ["transformers"],
    "tensorboard": ["tensorboard", "torch.utils.tensorboard"],
    "wandb": ["wandb"],
    "mlflow": ["mlflow"],
}


@pytest.mark.parametrize("module", NEEDS)
def test_a_package_that_is_missing_is_named_with_how_to_install_it(module, monkeypatch):
    for package in NEEDS[module]:
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)  # what Python's import takes for "not there"
    monkeypatch.delitem(sys.modules, f"normscope.integrations.{module}", raising=False)
    with pytest.raises(UsageError, match=re.escape(f'pip install "normscope[{module}]"')) as raised:
        importlib.import_module(f"normscope.integrations.{module}")
    assert "\n" not in str(raised.value)


def test_names_of_all_records_stay_apart_in_the_characters_that_loggers_take():
    model = nets.make("residual")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope = ns.Scope(model, nets.loss_fn, optimizer, probes="all", every=1)
    for batch in nets.batches("residual", 1):
        with scope.step(batch):
            optimizer.zero_grad()
            nets.loss_fn(model, batch).backward()
            optimizer.step()
    records = scope.drain()
    assert len({record.probe for record in records}) >= len(ns.probes.all()) - 2  # nothing saturates, no tokens
    names = [scalar_name(record) for record in records]
    assert len(set(names)) == len({(record.probe, record.site, record.name) for record in records})
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_./:-]+", name), name
        assert "//" not in name
        assert not name.endswith("/")
        assert not any(other.startswith(f"{name}/") for other in names), name  # a file and a folder of one name
    assert "landscape/loss:s_0" in " ".join(names)


def test_a_cell_that_is_not_the_default_cell_comes_first():
    assert scalar_name(Record("scope", 3, "p", "a.b", "norm", 1.0)) == "p/norm/a.b"
    assert scalar_name(Record("scope.rank1", 3, "p", "", "norm@x=1", 1.0)) == "scope.rank1/p/norm:x_1"
    assert allowed("Größe in %") == "Gr__e_in__"


def test_a_finding_is_told_in_full():
    finding = Finding("NS1", "slug", Severity.ERROR, "Wrong.", ("a", ""), fix="Mend it.")
    assert sentences(finding) == "Wrong. [a, the whole model] Mend it."
