"""Rules that a scope runs while training: planted defects are told once, healthy training is left as it is."""

import copy
import json
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import normscope as ns
from kit.traces import differences, fingerprint
from normscope import rules
from normscope._errors import UsageError
from normscope.checking import FindingWarning, RuleWarning
from normscope.checking.recent_steps import joined
from normscope.evidence import examples
from normscope.evidence.listening import NormCall, Training

NOT_IN_A_SCOPE = {"NS102", "NS107", "NS109", "NS114", "NS119", "NS128"}


def step_of(case, batch):
    if case.step is not None:
        case.step(case.model, batch)
        return
    (case.optimizer or case.model).zero_grad()
    case.loss_fn(case.model, batch).backward()
    if case.optimizer is not None:
        case.optimizer.step()


def train(case, *, steps=13, every=4, watch="all", **options):
    """Train under a scope and return it with what it has told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        scope = ns.Scope(case.model, case.loss_fn, case.optimizer, rules=watch, every=every, **options)
        batches = list(case.loader)
        for index in range(steps):
            batch = batches[index % len(batches)]
            with scope.step(batch):
                step_of(case, batch)
    return scope, [one for one in told if issubclass(one.category, (FindingWarning, RuleWarning))]


PLANTED = [
    *((code, 0) for code in ("NS101", "NS105", "NS106", "NS110", "NS111", "NS112", "NS113", "NS115", "NS117")),
    *((code, 1) for code in ("NS101", "NS103", "NS106", "NS108", "NS111", "NS112", "NS116", "NS117", "NS118", "NS120")),
    *((code, 2) for code in ("NS101", "NS106", "NS108", "NS110", "NS111", "NS112", "NS118", "NS120", "NS122", "NS125")),
    *(("NS121", 3), ("NS123", 0), ("NS124", 2), ("NS126", 0), ("NS127", 0)),
]


@pytest.mark.parametrize(("code", "index"), PLANTED)
def test_a_planted_defect_is_told_once_over_many_readings(code, index):
    case = rules.get(code).SICK[index]()
    scope, told = train(case, watch=[code])
    found = scope.findings()
    assert [finding.code for finding in found] == [code]
    assert [one.category for one in told] == [FindingWarning]
    assert str(told[0].message).startswith(f"{code} ")
    assert "\n" not in str(told[0].message)
    assert told[0].filename == __file__
    steps = found[0].details
    assert steps["first_step"] <= 8
    if code != "NS126":  # 30 layers without skips: after a few steps gradients are of any size
        assert steps["last_step"] == 12
        assert steps["readings"] >= 2


@pytest.mark.parametrize("net", [examples.mlp, examples.cnn, examples.residual, examples.sequence])
def test_healthy_training_from_the_first_step_is_left_in_peace(net):
    scope, told = train(examples.healthy(net, trained=0), steps=60, every=10)
    assert [str(one.message) for one in told] == []
    found = scope.findings()
    assert len(found) == 0
    assert {code for code, _ in found.not_run} == NOT_IN_A_SCOPE
    assert set(found.rules) == {rule.CODE for rule in rules.all()} - NOT_IN_A_SCOPE
    assert all(why for _, why in found.not_run)


class Noisy(nn.Module):
    """Dropout, a norm called twice, a buffer of its own and a hook of the user's."""

    def __init__(self):
        super().__init__()
        self.inlet, self.norm, self.head = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.seen = []
        self.norm.register_forward_hook(lambda *_: self.seen.append(1))

    def forward(self, x):
        self.calls += 1
        x = nn.functional.dropout(self.inlet(x), 0.2, self.training)
        return self.head(torch.relu(self.norm(self.norm(x).relu())))


def trained_with(watch, make, steps=9):
    torch.manual_seed(3)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        scope = ns.Scope(model, examples.loss_fn, optimizer, rules=watch, every=2)
        shape = (3, 8, 8) if make is examples.residual else (12,)
        for batch in examples.data(shape, batches=steps):
            with scope.step(batch):
                optimizer.zero_grad()
                examples.loss_fn(model, batch).backward()
                optimizer.step()
    return model, optimizer, torch.get_rng_state()


@pytest.mark.parametrize("make", [examples.mlp, examples.residual, Noisy])
def test_training_is_bit_identical_with_all_rules(make):
    (mine, optimizer, stream), (plain, other, untouched) = (trained_with(watch, make) for watch in ("all", None))
    for (name, value), expected in zip(mine.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    for value, expected in zip(mine.parameters(), plain.parameters(), strict=True):
        assert torch.equal(value.grad, expected.grad)
    torch.testing.assert_close(optimizer.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert torch.equal(stream, untouched)
    for module, twin in zip(mine.modules(), plain.modules(), strict=True):
        assert vars(module).keys() == vars(twin).keys()
        assert len(module._forward_hooks) == len(twin._forward_hooks)
        assert module.training == twin.training
    assert getattr(mine, "seen", None) == getattr(plain, "seen", None)


@pytest.mark.parametrize("every", [1, 3])
def test_a_step_that_raises_leaves_no_hook_and_is_not_judged(every):
    case = examples.healthy(examples.mlp)
    scope, _ = train(case, steps=2 * every, every=every)
    before = fingerprint(model=case.model, optimizer=case.optimizer)
    with pytest.raises(RuntimeError, match="shapes"), scope.step(case.loader[0]):
        case.model(torch.ones(4, 5))
    assert differences(before, fingerprint(model=case.model, optimizer=case.optimizer)) == []
    with scope.step(case.loader[0]):
        step_of(case, case.loader[0])
    assert len(scope.findings()) == 0


def test_a_rule_that_raises_is_switched_off_told_once_and_training_goes_on(monkeypatch):
    def fail(self, evidence):
        raise RuntimeError("not today")

    monkeypatch.setattr(type(rules.get("NS108")), "examine", fail)
    case = rules.get("NS123").SICK[0]()
    scope, told = train(case)
    assert [one.category for one in told] == [RuleWarning, FindingWarning]
    assert str(told[0].message) == ("NS108 failed at step 0, switched off; training goes on: RuntimeError: not today")
    assert dict(scope.findings().not_run)["NS108"] == "RuntimeError: not today"
    assert [finding.code for finding in scope.findings()] == ["NS123"]


def test_a_loss_that_cannot_be_evaluated_again_is_told_in_one_line():
    def once(model, batch):
        raise ValueError("only\nonce")

    case = examples.healthy(examples.mlp)
    case.step = lambda model, batch: examples.loss_fn(model, batch).backward()
    case.loss_fn = once
    scope, told = train(case)
    (line,) = {str(one.message) for one in told if one.category is RuleWarning}
    assert "\n" not in line
    assert "ValueError: only once" in line
    assert "NS101" in scope.findings().rules


def test_an_exception_in_what_listens_does_not_reach_the_users_pass(monkeypatch):
    monkeypatch.setattr("normscope.evidence.listening.channels", lambda x: 1 / 0)
    case = examples.healthy(examples.mlp)
    before = fingerprint(model=case.model)
    scope, told = train(case, steps=1)
    assert [one.category for one in told] == [RuleWarning]
    assert not [path for path in differences(before, fingerprint(model=case.model)) if "hooks" in path]
    assert scope.findings().rules == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("NS9", "'NS9' fits no rule: they are NS101 to NS1"),
        (["NS101", "nonsense"], "'nonsense' fits no rule"),
        ("", "rules must be"),
        ([], "rules must be"),
        ([3], "rules must be"),
        (["NS107", "NS128"], "none of these rules can run while training; NS107 judges averaged weights"),
    ],
)
def test_a_wrong_choice_is_refused_before_a_folder_is_made(tmp_path, given, words):
    with pytest.raises(UsageError, match=words):
        ns.Scope(examples.mlp(), examples.loss_fn, rules=given, record_to=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="runs no rules"):
        ns.Scope(examples.mlp(), examples.loss_fn).findings()


def test_the_page_and_the_run_folder_hold_the_findings(tmp_path):
    case = rules.get("NS123").SICK[0]()
    scope, _ = train(case, probes=["gradient_flow"], record_to=tmp_path / "run")
    page = scope.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "What the rules found while training" in page
    assert "NS123" in page
    assert "gradient-flow" in page
    scope.close()
    written = json.loads((tmp_path / "run" / "findings-scope.json").read_text(encoding="utf-8"))
    assert [finding["code"] for finding in written["findings"]] == ["NS123"]
    assert written["findings"][0]["details"]["last_step"] == 12
    alone, _ = train(examples.healthy(examples.mlp))
    assert "rules looked for defects of normalization and found nothing" in alone.report(
        tmp_path / "other.html"
    ).read_text("utf-8")


def test_small_batches_are_told_while_training():
    case = examples.healthy(examples.cnn, size=32)
    last = [tensor[:3] for tensor in case.loader[-1]]
    case.loader = [*case.loader, last]
    scope, told = train(case, steps=14, every=13, watch=["NS104"])
    assert "1 of 14 batches has 3 samples, where 32 are usual" in str(told[0].message)
    assert len(scope.findings()) == 1


@pytest.mark.parametrize(("steps", "every"), [(3, 2), (9, 4), (33, 2)])
def test_a_rule_is_given_the_last_batches_listened_to_ten_at_most(monkeypatch, steps, every):
    given = []
    monkeypatch.setattr(
        type(rules.get("NS108")), "examine", lambda self, evidence: given.append(list(evidence.case.loader)) or ()
    )
    case = examples.healthy(examples.mlp, trained=0)
    case.loader = examples.data((12,), batches=steps)
    train(case, steps=steps, every=every, watch=["NS108"])
    heard = [index for index in range(steps) if -index % every < 4]  # up to four steps, the last of them due
    last_due = (steps - 1) // every * every
    expected = [case.loader[index] for index in heard if index <= last_due][-10:]
    assert len(given[-1]) == len(expected)
    assert all(a is b for a, b in zip(given[-1], expected, strict=True))


def test_new_places_of_a_known_cause_are_added_without_a_word():
    case = examples.healthy(examples.mlp)
    case.optimizer = torch.optim.SGD(case.model[0:3].parameters(), lr=0.1, weight_decay=0.1)
    scope = ns.Scope(case.model, case.loss_fn, case.optimizer, rules="NS123", every=1)
    with pytest.warns(FindingWarning, match="NS123"), scope.step(case.loader[0]):
        step_of(case, case.loader[0])
    case.optimizer.add_param_group({"params": list(case.model[4].parameters())})
    with scope.step(case.loader[1]):
        step_of(case, case.loader[1])
    (finding,) = scope.findings()
    assert finding.places == ("1", "4")
    assert (finding.details["first_step"], finding.details["last_step"]) == (0, 1)


def test_what_is_on_purpose_is_not_told():
    case = rules.get("NS123").SICK[0]()
    for path in ("1", "4", "7"):
        ns.ignore(case.model.get_submodule(path), "NS123", "a recipe")
    scope, told = train(case, watch="NS123")
    assert told == []
    assert [reason for _, reason in scope.findings().ignored] == ["a recipe"]


def test_micro_batches_several_optimizers_and_autocast_are_followed():
    torch.manual_seed(0)
    model = examples.mlp()
    parameters = list(model.parameters())
    optimizers = [torch.optim.SGD(part, lr=0.1) for part in (parameters[:4], parameters[4:])]
    dtypes = set()

    def loss_fn(model, batch):
        dtypes.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return examples.loss_fn(model, batch)

    scope = ns.Scope(model, loss_fn, optimizers, rules=["NS113", "NS105", "NS120"], every=4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in examples.data((12,), batches=9):
            with scope.step(batch):
                for part in zip(*(tensor.chunk(4) for tensor in batch), strict=True):
                    scope.micro_batch(part)
                    with torch.autocast("cpu", torch.bfloat16):
                        loss_fn(model, part).backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
    assert "NS113" in {finding.code for finding in scope.findings()}
    assert dtypes == {torch.bfloat16}
    assert not [one for one in told if one.category is RuleWarning]


def test_a_compiled_model_is_judged_by_eager_passes():
    plain = examples.healthy(examples.mlp, change=partial(_momentum, value=0.9))
    compiled = torch.compile(plain.model, backend="eager")
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.1)
    scope = ns.Scope(compiled, examples.loss_fn, optimizer, rules="all", every=2)
    twin = copy.deepcopy(plain.model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in plain.loader[:5]:
            with scope.step(batch):
                optimizer.zero_grad()
                examples.loss_fn(compiled, batch).backward()
                optimizer.step()
    assert [str(one.message)[:5] for one in told if one.category is FindingWarning] == ["NS108"]
    assert not [one for one in told if one.category is RuleWarning]
    follow = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in plain.loader[:5]:
        follow.zero_grad()
        examples.loss_fn(twin, batch).backward()
        follow.step()
    for mine, expected in zip(plain.model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, expected)
    why = dict(scope.findings().not_run)
    assert all("compiled" in why[code] for code in ("NS106", "NS110", "NS111", "NS112", "NS113"))


def _momentum(model, value):
    for norm in examples.norms(model):
        norm.momentum = value


def test_steps_heard_apart_are_joined_in_order():
    def piece(updates):
        return Training(calls=[NormCall("a", 0, 0, 0, True, True, False, forward=1)], updates=updates, steps=1)

    whole = joined([piece(0), piece(1), piece(1)])
    assert [(call.step, call.update, call.order, call.forward) for call in whole.calls] == [
        (0, 0, 0, 1),
        (1, 0, 1, 2),
        (2, 1, 2, 3),
    ]
    assert (whole.steps, whole.updates) == (3, 2)
    assert [call.update for call in joined([piece(0), piece(0)], counted=False).calls] == [0, 1]
