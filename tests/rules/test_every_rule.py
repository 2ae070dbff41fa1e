"""Every rule, present and future: what it finds, how near to its bounds, what it leaves alone, what its fix keeps."""

import copy
import inspect
import math
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from kit import repairs
from normscope import checking, rules
from normscope.evidence import examples
from normscope.modules.state import Snapshot
from normscope.records import Severity

RULES = rules.all()
WELL = [pytest.param(rule, make, id=f"{rule.CODE}-{i}") for rule in RULES for i, make in enumerate(rule.WELL)]
each_rule = pytest.mark.parametrize("rule", RULES, ids=[rule.CODE for rule in RULES])


def _reads_calls(rule):
    return "evidence.training" in inspect.getsource(inspect.getmodule(rule))


@each_rule
def test_a_rule_describes_itself(rule):
    page = rule.page()
    assert all(len(text) > 60 for text in page.values())
    assert rule.title().endswith(".")
    assert rule.CODE.startswith("NS1")
    assert inspect.getfile(type(rule)).endswith(rule.SLUG.replace("-", "_") + ".py")
    assert isinstance(rule.SEVERITY, Severity)
    assert rule.SOURCES
    assert all(len(source) > 5 for source in rule.SOURCES)
    assert len(rule.SICK) >= 3
    assert len(rule.WELL) >= 2
    named = [rules.get(name) for name in (rule.CODE, rule.CODE.lower(), rule.SLUG)]
    begun = [found for code in (rule.CODE, rule.CODE.lower(), rule.SLUG) for found in rules.chosen([code])]
    assert {type(found) for found in named + begun} == {type(rule)}
    assert type(rule) not in {type(left) for left in rules.chosen(None, [rule.CODE.lower()])}


@each_rule
def test_a_rule_has_its_own_tests(rule):
    name = f"test_{rule.SLUG.replace('-', '_')}.py"
    assert (Path(__file__).parent / name).is_file(), f"write tests/rules/{name}: {rule.CODE}'s numbers, done by hand"


@each_rule
def test_a_rule_says_where_its_bounds_are(rule):
    assert rule.NEAR, (
        f"{rule.CODE} has no NEAR: for each bound write examples.Near(make, found=..., quiet=...), where make(value) "
        "makes a set-up at some distance from the bound, and the two values are next to it on either side"
    )


def test_codes_and_names_are_distinct():
    assert len({rule.CODE for rule in RULES}) == len({rule.SLUG for rule in RULES}) == len(RULES) >= 28


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@each_rule
def test_a_bound_divides_two_set_ups_that_are_next_to_it(rule):
    shares = []  # measured over bound, where both sides differ by a number: a fact of structure has no value between
    for index, near in enumerate(rule.NEAR):
        found = checking.check(near.make(near.found), [rule.CODE], gap=False)
        quiet = checking.check(near.make(near.quiet), [rule.CODE], gap=False)
        assert len(found) == 1, f"NEAR[{index}]: nothing is found at {near.found}"
        assert [finding.message for finding in quiet] == [], f"NEAR[{index}]: found at {near.quiet}"
        if _number(near.found) and found[0].bound:
            shares.append(found[0].measured / found[0].bound)
            largest = max(abs(near.found), abs(near.quiet))
            allowed = max(0.25 * largest, 0.01 * found[0].bound, 1 if isinstance(near.found, int) else 0)
            assert abs(near.found - near.quiet) <= allowed, f"NEAR[{index}]: both values must be next to the bound"
    assert not shares or min(abs(share - 1) for share in shares) <= 0.3, (
        f"no set-up of NEAR has a measured value within 30 % of the bound: it is {shares} times the bound"
    )


@pytest.mark.parametrize(("rule", "make"), WELL)
def test_a_well_case_is_left_in_peace(rule, make):
    case = make()
    before = Snapshot(case.model)
    found = checking.check(case, [rule.CODE], gap=False)
    assert [finding.message for finding in found] == []
    assert before.differences() == []


#: Other ways to make the same step, and the one rule that is about it.
OTHERWISE = {"recomputed": (repairs.recompute, "NS110"), "passes without gradient": (repairs.look_twice, "NS106")}


@pytest.mark.parametrize("way", OTHERWISE)
@pytest.mark.parametrize("rule", [each for each in RULES if _reads_calls(each)], ids=lambda rule: rule.CODE)
def test_what_recomputes_or_looks_on_is_told_from_what_trains(rule, way):
    """Calls of a step that are made again in the backward pass, or without a gradient, are no further updates."""
    change, code = OTHERWISE[way]
    # A case that is trained by its loss, since that can be called in another way.
    case = next((each for each in (make() for make in rule.WELL) if each.step is None), examples.healthy(examples.mlp))
    change(case)
    found = checking.check(case, [rule.CODE], gap=False)
    assert not found.unmeasured
    assert [finding.code for finding in found] == [code] * (code == rule.CODE)


#: Parts that a case may lack; "loop" and "gradient" are made of what it always has.
PARTS = {
    "averaged": ("averaged", None),
    "evaluation": ("eval_loader", None),
    "exported": ("exported", None),
    "replicas": ("replicas", ()),
}
INSTEAD = dict.fromkeys([("NS102", "evaluation"), ("NS130", "evaluation")], "it evaluates the training batches")


@each_rule
def test_a_rule_judges_by_what_it_needs_and_by_nothing_else(rule):
    """Without a part that it needs a rule is silent; without all others it finds the same at the same places."""
    assert set(rule.NEEDS) <= PARTS.keys() | {"loop", "gradient"}
    make, needed = rule.SICK[0], [part for part in PARTS if part in rule.NEEDS and (rule.CODE, part) not in INSTEAD]
    for without in ([part for part in PARTS if part not in rule.NEEDS], *([part] for part in needed)):
        case = make()
        for part in without:
            setattr(case, *PARTS[part])
        found = [finding.places for finding in checking.check(case, [rule.CODE], gap=False)]
        assert found == ([] if without[0] in needed else [tuple(_places(case, make))]), f"without {without}"


def _tensors(case):
    return [leaf.clone() for leaf in pytree.tree_leaves(case.loader) if isinstance(leaf, torch.Tensor)]


def _places(case, make):
    """Return where a planted defect is: at every batch norm, or where its author says."""
    planted = getattr(make, "places", None)
    if planted is not None:
        return list(planted)
    return [path for path, module in case.model.named_modules() if isinstance(module, _BatchNorm)]


MODES = {"training": True, "evaluation": False}


@each_rule
def test_a_planted_defect_is_found_where_it_is_and_a_fix_keeps_what_it_says_and_training_goes_on(rule, subtests):
    assert set(rule.KEEPS) <= MODES.keys()
    assert not rule.SAFE or set(rule.KEEPS) == MODES.keys(), "a safe fix keeps both outputs of the model"
    changed = set()
    for index, make in enumerate(rule.SICK):
        with subtests.test(index=index):
            case = make()
            places, held = _places(case, make), list(case.model.parameters())
            state = repairs.give_adam(case) if case.optimizer is not None else {}
            finding = _found_and_left_as_it_was(rule, case, places)
            if rule.fixable():
                settings = repairs.settings_of(case)
                changed |= _changed_by_its_fix(rule, case, finding)
                repairs.settings_are_kept(case, settings, finding.places)
                repairs.loads_its_own_state_dict(case)
            if rule.fixable() and state:
                repairs.optimizer_holds_what_it_should(case, held, state)
                repairs.a_step_moves_every_parameter_with_a_gradient(case)
    if rule.fixable():
        assert changed == MODES.keys() - set(rule.KEEPS), f"{rule.CODE}: KEEPS must name what no fix changes"


def _found_and_left_as_it_was(rule, case, places):
    """Check a set-up that Adam trains: one finding with all that it must say, and every bit as it was."""
    before, loaded = Snapshot(case.model), _tensors(case)
    state = copy.deepcopy(case.optimizer.state_dict()) if case.optimizer is not None else None
    found = checking.check(case, [rule.CODE], gap=False)
    assert before.differences() == []
    if state is not None:
        after = case.optimizer.state_dict()
        assert pytree.tree_structure(state) == pytree.tree_structure(after)
        for a, b in zip(pytree.tree_leaves(state), pytree.tree_leaves(after), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert all(torch.equal(a, b) for a, b in zip(loaded, _tensors(case), strict=True))
    assert len(found) == 1, "one cause is one finding"
    (finding,) = found
    assert (finding.code, finding.safe, finding.fixable) == (rule.CODE, rule.SAFE, rule.fixable())
    assert list(finding.places) == places, (
        f"{rule.CODE} is found at {list(finding.places)}: if the defect is not planted at every batch norm, write "
        "examples.Planted(make, [places]) in SICK"
    )
    assert finding.message
    assert finding.fix
    assert finding.quantity
    assert math.isfinite(finding.measured)
    assert math.isfinite(finding.bound)
    assert finding.measured != finding.bound, "a set-up of SICK lies on the bound itself; NEAR is for that"
    assert all(math.isfinite(value) for value in finding.details.values())
    return finding


def _changed_by_its_fix(rule, case, finding):
    """Fix a set-up and return which of the model's outputs have changed; what the rule keeps must not."""
    batch = repairs.batch_of(case)
    old = {mode: repairs.outputs(case.model, case, batch, training=training) for mode, training in MODES.items()}
    before = Snapshot(case.model)
    if not rule.SAFE:
        (made,) = checking.fix(case, [finding])
        assert made.why_not
        assert not made.done
        assert before.differences() == []
    (made,) = checking.fix(case, [finding], unsafe=True, measure=False)
    assert made.done
    assert not made.why_not
    changed = set()
    for mode, training in MODES.items():
        if not repairs.same(repairs.outputs(case.model, case, batch, training=training), old[mode]):
            changed.add(mode)
    assert not changed & set(rule.KEEPS), f"the fix of {rule.CODE} changes the outputs in {changed & set(rule.KEEPS)}"
    assert [finding.message for finding in checking.check(case, [rule.CODE], gap=False)] == []
    return changed
