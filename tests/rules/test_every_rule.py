"""Every rule finds what it is made for, stays silent where nothing is wrong, and repairs what it found."""

import copy
import inspect

import pytest
import torch
from torch.utils import _pytree as pytree

from normscope import checking, rules
from normscope.modules.state import Snapshot
from normscope.records import Severity

RULES = rules.all()
SICK = [pytest.param(rule, make, id=f"{rule.CODE}-{i}") for rule in RULES for i, make in enumerate(rule.SICK)]
WELL = [pytest.param(rule, make, id=f"{rule.CODE}-{i}") for rule in RULES for i, make in enumerate(rule.WELL)]


@pytest.mark.parametrize("rule", RULES, ids=[rule.CODE for rule in RULES])
def test_a_rule_describes_itself(rule):
    page = rule.page()
    assert all(len(text) > 60 for text in page.values())
    assert rule.title().endswith(".")
    assert rule.CODE.startswith("NS1")
    assert inspect.getfile(type(rule)).endswith(rule.SLUG.replace("-", "_") + ".py")
    assert isinstance(rule.SEVERITY, Severity)
    assert len(rule.SICK) >= 3
    assert len(rule.WELL) >= 2
    assert rules.get(rule.CODE).SLUG == rules.get(rule.SLUG).SLUG


def test_codes_and_names_are_distinct():
    assert len({rule.CODE for rule in RULES}) == len({rule.SLUG for rule in RULES}) == len(RULES)


def _tensors(case):
    return [leaf.clone() for leaf in pytree.tree_leaves(case.loader) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(("rule", "make"), SICK)
def test_a_sick_case_is_found_named_repaired_and_left_as_it_was(rule, make):
    case = make()
    before = Snapshot(case.model)
    state = copy.deepcopy(case.optimizer.state_dict()) if case.optimizer is not None else None
    loaded = _tensors(case)
    found = checking.check(case, [rule.CODE], gap=False)
    assert [finding.code for finding in found] == [rule.CODE] * len(found)
    assert len(found) >= 1
    assert before.differences() == []
    if state is not None:
        after = case.optimizer.state_dict()
        assert pytree.tree_structure(state) == pytree.tree_structure(after)
        for a, b in zip(pytree.tree_leaves(state), pytree.tree_leaves(after), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert all(torch.equal(a, b) for a, b in zip(loaded, _tensors(case), strict=True))
    for finding in found:
        assert finding.message
        assert finding.fix
        modules = dict(case.model.named_modules())
        assert all(place in modules for place in finding.places)
    if not any(finding.fixable for finding in found):
        return
    if not rule.SAFE:
        assert all(made.why_not for made in checking.fix(case, found))
        assert before.differences() == []
    made = checking.fix(case, found, unsafe=True)
    assert any(one.done for one in made)
    assert not [finding for finding in checking.check(case, [rule.CODE], gap=False) if finding.fixable]


@pytest.mark.parametrize(("rule", "make"), WELL)
def test_a_well_case_is_left_in_peace(rule, make):
    case = make()
    before = Snapshot(case.model)
    found = checking.check(case, [rule.CODE], gap=False)
    assert [finding.message for finding in found] == []
    assert before.differences() == []
