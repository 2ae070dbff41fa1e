"""The engine: set-ups refused, rules chosen, findings ignored and sorted, failures told, fixes dispatched."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from normscope import checking, evidence, rules
from normscope._errors import DataError, UsageError
from normscope.evidence import examples
from normscope.evidence.exported import quiet
from normscope.modules.state import Snapshot


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self):
        for x, y in examples.data((12,)):
            yield from zip(x, y, strict=True)


def test_a_loader_over_a_stream_has_no_length_and_is_checked():
    case = examples.healthy(examples.mlp, loader=DataLoader(Stream(), batch_size=32))
    assert not [one for one in checking.check(case) if one.code != "NS123"]


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"replicas": [3]}, UsageError, "replicas must be"),
        ({"loader": []}, DataError, "loader is empty"),
        ({"loader": iter([1])}, UsageError, "can be read once"),
        ({"optimizer": 3}, UsageError, "optimizer must be"),
        ({"ignore": {"NS101": ""}}, UsageError, "say why"),
    ],
)
def test_what_is_no_set_up_is_refused(given, kind, words):
    with pytest.raises(kind, match=words) as caught:
        evidence.Case(**{"model": nn.Linear(1, 1), "loss_fn": examples.loss_fn, "loader": [1], **given})
    assert "\n" not in str(caught.value)


def test_an_error_of_the_loss_is_one_line():
    def wrong(model, batch):
        raise RuntimeError("two\nlines")

    case = evidence.Case(examples.mlp(), wrong, examples.data((12,)))
    with pytest.raises(UsageError, match="RuntimeError: two lines") as caught:
        checking.check(case)
    assert "\n" not in str(caught.value)


def test_a_check_of_a_model_that_cannot_be_exported_prints_nothing(capfd):
    checking.check(rules.get("NS116").SICK[0]())
    assert capfd.readouterr() == ("", "")


class OnePass:
    """Gives its batches to the first pass only."""

    def __init__(self):
        self.batches = iter(examples.data((12,)))

    def __iter__(self):
        yield from self.batches


def test_a_loader_for_one_pass_is_named_as_such():
    with pytest.raises(UsageError, match="it must begin anew each time it is iterated"):
        checking.check(evidence.Case(examples.mlp(), examples.loss_fn, OnePass()))


def test_a_scripted_model_is_refused():
    with quiet():  # torch's notice that tracing is on its way out
        model = torch.jit.trace(examples.mlp(), torch.ones(4, 12), check_trace=False)
    with pytest.raises(UsageError, match="give the module it is made of"):
        evidence.Case(model, examples.loss_fn, [1])


@pytest.mark.parametrize("inner", [False, True])
def test_a_compiled_model_is_checked_as_it_is_written(inner, capfd):
    model = examples.healthy(examples.mlp).model
    if inner:
        model[0] = torch.compile(model[0], backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    before = Snapshot(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    found = checking.check(evidence.Case(model, examples.loss_fn, examples.data((12,), seed=1), optimizer))
    assert [finding.code for finding in found] == ["NS123"]
    assert before.differences() == []
    assert capfd.readouterr().err == ""


def three_kinds():
    """Three norms, of which two have the momentum of another framework and the last has an impossible variance."""
    norms = [examples.batch_norm(3, momentum=momentum) for momentum in (0.99, 0.99, 0.1)]
    norms[2].running_var[1] = -1.0
    case = examples.alone(norms[0], [examples.two_values(1.0, 2.0, 8, 3)] * 3, then=norms[1:])
    case.optimizer = torch.optim.SGD(case.model.parameters(), lr=0.01, weight_decay=0.1)
    return case


def codes(findings):
    return [finding.code for finding in findings]


def test_findings_come_worst_first_and_then_by_code():
    found = checking.check(three_kinds(), gap=False)
    assert codes(found) == ["NS103", "NS108", "NS123"]
    assert [finding.severity for finding in found] == ["error", "error", "info"]
    assert found.worst == "error"
    assert found[1].code == "NS108"
    assert len(found.found) == len(found) == 3
    assert checking.check(three_kinds(), ["NS123"], gap=False).worst == "info"
    assert checking.check(three_kinds(), ["NS101"], gap=False).worst is None


def test_a_warning_comes_after_an_error_of_a_higher_code():
    case = three_kinds()
    case.loader = DataLoader(examples.two_values(1.0, 2.0, 38, 3), batch_size=16)  # a remainder of 6, then of 3
    assert codes(checking.check(case, ["NS104", "NS108"], gap=False)) == ["NS108"]
    case.loader = DataLoader(examples.two_values(1.0, 2.0, 36, 3)[:35], batch_size=16)
    assert codes(checking.check(case, ["NS104", "NS108"], gap=False)) == ["NS108", "NS104"]


@pytest.mark.parametrize(
    ("select", "ignore", "found"),
    [
        (["NS10"], None, ["NS103", "NS108"]),
        (["NS1"], ["NS12"], ["NS103", "NS108"]),
        (["NS108", "decayed-affine"], None, ["NS108", "NS123"]),
        (["NS12", "NS103"], ["decayed-affine"], ["NS103"]),
        (["NS"], ["NS10"], ["NS123"]),
        ([], None, []),
    ],
)
def test_rules_are_chosen_by_beginnings_codes_and_names(select, ignore, found):
    result = checking.check(three_kinds(), select, ignore, gap=False)
    assert codes(result) == found
    assert set(found) <= set(result.rules)
    chosen = [prefix for prefix in select if prefix.startswith("NS")]
    assert all(rules.get(code).SLUG in select or code.startswith(tuple(chosen)) for code in result.rules)


@pytest.mark.parametrize("prefix", ["NS2", "no-rule", "ns2", ""])
def test_a_beginning_that_fits_no_rule_is_refused(prefix):
    for options in ({"select": [prefix]}, {"ignore": [prefix]}):
        if not prefix:
            continue
        with pytest.raises(UsageError, match="fits no rule"):
            checking.check(three_kinds(), **options)


def test_a_rule_is_given_by_a_text():
    for wrong in (3, torch.zeros(500)):
        with pytest.raises(UsageError, match=r"^rules are given by codes or names.{,60}$"):
            checking.check(three_kinds(), select=[wrong])


def test_ignoring_one_of_several_places_leaves_the_finding_as_it_is():
    case = three_kinds()
    evidence.ignore(case.model[0], "NS108", "the last batch on purpose")
    found = checking.check(case, ["NS108"], gap=False)
    assert [finding.places for finding in found] == [("0", "1")]
    assert found.ignored == ()
    evidence.ignore(case.model[1], "NS10", "this one too")
    found = checking.check(case, ["NS108"], gap=False)
    assert codes(found) == []
    assert [(finding.code, reason) for finding, reason in found.ignored] == [("NS108", "the last batch on purpose")]


@pytest.mark.parametrize("by", ["NS108", "NS10", "NS"])
def test_what_a_case_ignores_is_kept_apart_with_its_reason(by):
    case = three_kinds()
    case.ignore = {by: "as it was published"}
    found = checking.check(case, ["NS108", "NS123"], gap=False)
    assert codes(found) == ([] if by == "NS" else ["NS123"])
    assert ("NS108", "as it was published") in [(finding.code, reason) for finding, reason in found.ignored]


def test_an_ignore_for_another_rule_or_above_the_place_says_nothing():
    case = three_kinds()
    evidence.ignore(case.model, "NS108", "said at the container")
    evidence.ignore(case.model[0], "NS103", "another rule")
    evidence.ignore(case.model[1], "NS103", "another rule")
    assert codes(checking.check(case, ["NS108"], gap=False)) == ["NS108"]


@pytest.mark.parametrize(("code", "reason"), [("E501", "why"), ("NS108", " "), ("NS108", None), ("NS108", 3)])
def test_an_ignore_needs_a_code_and_a_reason(code, reason):
    with pytest.raises(UsageError):
        evidence.ignore(nn.Identity(), code, reason)


def test_a_rule_that_raises_is_listed_and_told_to_whom_listens_and_else_warned_of(monkeypatch):
    def broken(self, evidence):
        yield from ()
        raise KeyError("planted")

    monkeypatch.setattr(type(rules.get("NS108")), "examine", broken)
    told = []
    found = checking.check(
        three_kinds(), ["NS10"], gap=False, on_failure=lambda code, error: told.append((code, error))
    )
    assert [(code, type(error)) for code, error in told] == [("NS108", KeyError)]
    assert codes(found) == ["NS103"]
    (listed,) = found.unmeasured
    assert listed[0] == "NS108"
    assert listed[1].startswith("KeyError: 'planted' (test_checks.py:")
    with pytest.warns(checking.RuleWarning, match="NS108 could not be judged; the others were: NS108: KeyError"):
        again = checking.check(three_kinds(), ["NS10"], gap=False)
    assert again.unmeasured == found.unmeasured
    assert codes(again) == codes(found)
    assert "not judged: NS108: KeyError: 'planted'" in str(again)
    with pytest.raises(checking.RuleWarning) as warned:  # where warnings are errors, as in this suite
        checking.check(three_kinds(), ["NS108"], gap=False)
    assert isinstance(warned.value.__cause__, KeyError)


def test_a_rule_that_raises_over_a_checkpoint_is_told_by_its_code(monkeypatch):
    def broken(self, norms):
        raise KeyError("planted")

    monkeypatch.setattr(type(rules.get("NS103")), "examine_buffers", broken)
    told, state = [], three_kinds().model.state_dict()
    found = checking.check_state(state, on_failure=lambda code, error: told.append((code, type(error))))
    assert told == [("NS103", KeyError)]
    assert len(found.rules) > 1
    assert [code for code, _ in found.unmeasured] == ["NS103"]
    with pytest.raises(checking.RuleWarning, match="NS103 could not be judged"):
        checking.check_state(state)


def test_a_rule_that_cannot_measure_what_is_not_finite_is_listed():
    case = three_kinds()
    case.loader = [torch.full((8, 3), torch.nan)] * 3
    case.eval_loader = case.loader
    for norm in case.model:
        norm.running_var.fill_(3.0)
        norm.momentum = 0.1
    found = checking.check(case, ["NS102", "NS103"])
    assert codes(found) == ["NS103"]
    assert dict(found.unmeasured).keys() >= {"NS102"}
    assert found.rules == ("NS102", "NS103")


def test_every_rule_is_told_before_it_runs():
    said = []
    checking.check(three_kinds(), ["NS103", "NS108"], gap=False, progress=said.append)
    assert [words for words in said if words.startswith("NS")] == [
        "NS103 non-finite-statistics", "NS108 momentum-convention",
    ]  # fmt: skip


@pytest.mark.parametrize("batches", [0, -3])
def test_a_number_of_batches_below_one_is_refused(batches):
    with pytest.raises(UsageError, match="must be 1 or more"):
        checking.check(three_kinds(), batches=batches)


def test_the_gap_is_taken_only_where_it_is_asked_for_and_can_be():
    case = examples.healthy(examples.mlp, trained=2)
    assert checking.check(case, ["NS108"], gap=False).gap is None
    assert checking.check(case, ["NS108"]).gap is not None
    case.eval_loader = None
    assert checking.check(case, ["NS108"]).gap is None


def test_a_fix_says_of_each_finding_what_was_done_or_why_not():
    case = three_kinds()
    found = checking.check(case, gap=False)
    made = checking.fix(case, found)
    assert [(one.finding.code, one.done) for one in made] == [("NS103", ""), ("NS108", ""), ("NS123", "")]
    assert all("unsafe" in one.why_not for one in made)
    made = checking.fix(case, found[1:2], unsafe=True)
    assert [one.done for one in made] == [
        "set momentum to 0.01 in 2 norms; the running statistics are as they were: recalibrate them"
    ]
    assert made[0].why_not == ""
    odd = rules.get("NS115").NEAR[0].make(1.0)
    (made,) = checking.fix(odd, checking.check(odd, ["NS115"], gap=False), unsafe=True)
    assert made.why_not.startswith("no mechanical fix: convert with the library")


def test_safe_fixes_are_made_without_being_asked_twice():
    case = rules.get("NS118").NEAR[0].make(torch.bfloat16)
    (made,) = checking.fix(case, checking.check(case, ["NS118"], gap=False))
    assert made.done


def test_a_checkpoint_of_several_models_is_looked_through():
    state = {
        "epoch": 3,
        "student": {"a": {"bn.running_mean": torch.tensor([torch.nan]), "bn.running_var": torch.ones(1)}},
    }
    state["teacher.bn.running_mean"], state["teacher.bn.running_var"] = torch.ones(2), torch.tensor([-1.0, 1.0])
    (finding,) = checking.check_state(state, ["NS103"])
    assert finding.places == ("student.a.bn", "teacher.bn")
    assert finding.measured == 2
    assert checking.check_state(state, ["NS103"], ["NS10"]).rules == ()
    with pytest.raises(UsageError, match="no batch norm in it"):
        checking.check_state({"weight": torch.ones(2)})
