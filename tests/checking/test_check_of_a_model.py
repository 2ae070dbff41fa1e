"""A model is checked without a case, and the findings are printed."""

import pytest
import torch
from torch import nn

import normscope as ns
from normscope._errors import UsageError
from normscope.checking.target import open_target
from normscope.evidence import examples


def parts():
    """Return a model whose frozen norm drifts (NS101), and its set-up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[1].requires_grad_(False)
    stream = torch.Generator().manual_seed(1)
    loader = [(torch.randn(16, 6, generator=stream), torch.randint(0, 3, (16,), generator=stream)) for _ in range(4)]
    return model, examples.loss_fn, loader, torch.optim.SGD(model.parameters(), 0.1)


def test_a_model_and_its_set_up_give_what_a_case_gives():
    by_case = ns.check(ns.Case(*parts()), gap=False)
    by_parts = ns.check(*parts(), gap=False)
    model, loss_fn, loader, optimizer = parts()
    by_name = ns.check(model, loss_fn=loss_fn, loader=loader, optimizer=optimizer, gap=False)
    assert [found.code for found in by_case] == [found.code for found in by_parts] == [found.code for found in by_name]
    assert "NS101" in [found.code for found in by_case]
    assert [found.code for found in ns.check(*parts(), select=["NS122"], gap=False)] == ["NS122"]


def test_findings_are_printed():
    said = str(ns.check(*parts(), gap=False)).splitlines()
    assert said[0].startswith(("1 finding of ", "2 findings of "))
    assert any(line.startswith("error NS101 ") for line in said)
    assert "Findings(" not in "".join(said)


@pytest.mark.parametrize("given", [0, 1])
def test_a_model_alone_is_refused(given):
    with pytest.raises(UsageError, match=r"ns\.check\(model, loss_fn, loader\)"):
        ns.check(*parts()[: 1 + given])


def test_a_part_of_what_has_no_parts_is_refused_in_one_line(tmp_path):
    (tmp_path / "train.py").write_text("make = 3\n")
    with pytest.raises(UsageError, match=r"train\.py has no attribute 'part'$"):
        open_target(f"{tmp_path / 'train.py'}:make.part")
