"""A finding is ignored where each of its places is marked, and nowhere else."""

import pytest
import torch
from torch import nn

import normscope as ns
from normscope import rules

CODES = [rule.CODE for rule in rules.all()]


def case(**options):
    shared = nn.BatchNorm1d(2)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2), shared), shared)
    return ns.Case(model, lambda m, b: m(b).sum(), [torch.ones(2, 2)], **options)


@pytest.mark.parametrize("code", CODES)
def test_all_places_must_be_marked(code):
    made = case()
    ns.ignore(made.model[0], code, "the stem")
    assert made.ignored(code, ["0"]) == "the stem"
    assert made.ignored(code, ["0", "1.0"]) == ""
    assert made.ignored(code, ["1.0", "0"]) == ""
    ns.ignore(made.model[1][0], code[:4], "the body")
    assert made.ignored(code, ["0", "1.0"]) == "the stem"
    assert made.ignored(code, ["0", "1.0", "no such place"]) == ""
    assert made.ignored(code, []) == made.ignored(code, [""]) == ""


def test_a_mark_is_of_its_code_and_its_module_alone():
    made = case()
    ns.ignore(made.model[1], "NS103", "the block")
    assert made.ignored("NS103", ["1.0"]) == ""
    assert made.ignored("NS104", ["1"]) == ""
    ns.ignore(made.model[2], "NS103", "shared")
    assert made.ignored("NS103", ["1.1", "2"]) == "shared"


def test_a_case_ignores_a_code_at_all_places():
    made = case(ignore={"NS10": "a recipe"})
    assert made.ignored("NS109", ["0", "1.0"]) == made.ignored("NS101", []) == "a recipe"
    assert made.ignored("NS110", ["0"]) == ""
