"""Time limits: who waits too long is listed with what it waited for, the others are judged, and nothing is changed."""

import json
import signal
import threading
import time

import pytest
import torch
from torch import nn

import normscope as ns
from normscope._errors import UsageError
from normscope.checking.judging import Judging
from normscope.checking.limit import OverTimeError, TimeLimit
from normscope.evidence import examples
from normscope.modules.state import Snapshot


def set_up(wait, **options):
    """A set-up whose loss waits."""
    norm = examples.batch_norm(3, momentum=0.99)
    model = nn.Sequential(norm, nn.Linear(3, 2)).train()

    def loss_fn(model, batch):
        wait(model)
        return model(batch).square().mean()

    data = [examples.two_values(1.0, 2.0, 8, 3)] * 4
    return ns.Case(
        model,
        loss_fn,
        data,
        torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.01),
        **({"eval_loader": data} | options),
    )


def slow_in_training(model):
    if model.training:
        time.sleep(20)


def test_what_waits_too_long_is_listed_and_the_rest_is_judged():
    case = set_up(slow_in_training)
    before, state = Snapshot(case.model), case.optimizer.state_dict()
    found = ns.check(case, ["NS105", "NS123"], timeout=0.3)
    assert [finding.code for finding in found] == ["NS123"]
    waited = dict(found.not_run)
    assert found.rules == ("NS123",)
    assert waited.keys() == {"NS105", "gap"}
    assert waited["NS105"].startswith("training steps took longer than the limit of 0.3 s (test_limit.py:")
    assert "took longer than the limit of 0.3 s (test_limit.py:" in waited["gap"]
    assert f"not judged: NS105: {waited['NS105']}" in str(found)
    assert before.differences() == []
    assert case.optimizer.state_dict() == state


def test_a_measurement_that_took_too_long_is_not_waited_for_again():
    seen = []
    case = set_up(lambda model: (seen.append(1), time.sleep(20)))
    found = ns.check(case, timeout=0.2)
    own = [why for _, why in found.not_run if why.startswith("passes of its own")]
    shared = {why for _, why in found.not_run} - set(own)
    assert len(found.not_run) > len(shared) + len(own)
    assert len(seen) <= len(shared) + len(own)


@pytest.mark.parametrize("timeout", [0.0005, 0.003, 0.01, 0.02, 0.04])
def test_wherever_a_rule_is_interrupted_nothing_is_changed(timeout):
    def wait(model):
        for _ in range(20):
            time.sleep(1e-4)

    case = set_up(wait)
    before, hooks = Snapshot(case.model), [dict(m._forward_hooks) for m in case.model.modules()]
    found = ns.check(case, timeout=timeout)
    assert before.differences() == []
    assert [dict(m._forward_hooks) for m in case.model.modules()] == hooks
    assert torch.is_grad_enabled()
    assert len(found.rules) + len([code for code, _ in found.not_run if code != "gap"]) == len(ns.rules.all())


def test_an_end_of_an_object_is_not_interrupted():
    """What is raised there, Python prints and forgets: in this suite that is an error."""

    class Slow:
        def __del__(self):
            time.sleep(0.4)

    def wait(model):
        Slow()
        time.sleep(20)

    found = ns.check(set_up(wait), ["NS105"], timeout=0.1, gap=False)
    assert [code for code, _ in found.not_run] == ["NS105"]


def test_a_limit_that_is_not_reached_changes_no_finding():
    case = set_up(lambda model: None)
    without = ns.check(case)
    within = ns.check(case, timeout=600)
    assert (within.found, within.rules, within.not_run) == (without.found, without.rules, without.not_run)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "3", True])
def test_a_limit_is_a_number_of_seconds(seconds):
    with pytest.raises(UsageError, match="timeout"):
        ns.check(set_up(lambda model: None), timeout=seconds)


alarms = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarm")


@alarms
def test_a_timer_of_the_users_own_goes_on():
    heard = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    kept = signal.setitimer(signal.ITIMER_REAL, 600)
    own = signal.getsignal(signal.SIGALRM)
    try:
        with TimeLimit(30).waiting("it"):
            assert signal.getsignal(signal.SIGALRM) is not own
        assert signal.getsignal(signal.SIGALRM) is own
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 600
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        until = time.monotonic() + 20
        while not heard and time.monotonic() < until:
            time.sleep(0.01)
        assert heard == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *kept)  # of the test run: it ends what hangs


@alarms
def test_an_outer_limit_that_passed_meanwhile_is_heard_afterwards():
    heard = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    kept = signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with TimeLimit(30).waiting("it"):
            time.sleep(0.1)
            assert heard == []
        time.sleep(0.1)
        assert heard == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *kept)


def test_in_another_thread_a_rule_is_ended_when_it_asks_for_its_next_measurement():
    limit, found = TimeLimit(0.3), {}

    def slow():
        limit("one thing")
        time.sleep(0.6)
        limit("another")
        raise AssertionError

    def work():
        judging = Judging(limit)
        judging.findings("NS108", slow)
        judging.findings("NS109", lambda: (limit("another"), [])[1])
        found["not run"] = judging.not_run

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    ((code, why),) = found["not run"]
    assert code == "NS108"
    assert why.endswith("took longer than the limit of 0.3 s")


def test_nobody_on_the_way_takes_it_for_an_error_of_its_own():
    assert not issubclass(OverTimeError, Exception)

    def wait(model):
        try:
            time.sleep(20)
        except Exception:
            raise AssertionError from None

    found = ns.check(set_up(wait), ["NS105"], timeout=0.1, gap=False)
    assert [code for code, _ in found.not_run] == ["NS105"]
    assert found.unmeasured == ()


def test_the_command_lists_it_and_exits_with_2(run, write):
    path = write(
        """
        import time
        def slow(model, batch):
            time.sleep(20)

        def make():
            return ns.Case(trained(), slow, data(), None, data(2))
        """
    )
    done = run("check", f"{path}:make", "--select", "NS105,NS123", "--timeout", 0.2, code=2)
    said = " ".join(done.stdout.split())
    assert "not judged NS105" in said
    assert "training steps took longer than the limit of 0.2 s (setup.py:" in said
    assert "NS105, gap could not be judged" in done.stderr
    document = json.loads(run("check", f"{path}:make", "--select", "NS123", "--timeout", 0.2, "--json", code=2).stdout)
    assert document["rules"] == ["NS123"]
    assert [each["code"] for each in document["failed"]] == ["gap"]


def test_the_command_refuses_a_limit_that_is_none(refuse, write):
    path = write("def make():\n    raise AssertionError")
    assert "timeout=0.0 must be a number of seconds above 0" in refuse(f"{path}:make", "--timeout", 0)
