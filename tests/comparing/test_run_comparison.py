"""A comparison is run: arms that begin alike, the same batches, records that depend on the seed alone."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import polars as pl
import pytest
import torch
from torch import nn

import normscope as ns
from kit import set_ups
from normscope._errors import StoreError, UsageError
from normscope.comparing import Comparison, ComparisonWarning
from normscope.modules.sites import is_known_norm

QUICK = {"seeds": 2, "steps": 8, "workers": 1, "questions": ["speed"]}


def frame_of(comparison):
    return comparison.evidence.frame.filter(pl.col("probe") != "cost")


def test_records_do_not_depend_on_workers_nor_on_interruptions(tmp_path):
    whole = ns.compare(set_ups.make_case, out=tmp_path / "whole", rates=[0.5, 1], **QUICK)
    shared = ns.compare(set_ups.make_case, out=tmp_path / "shared", rates=[0.5, 1], **QUICK | {"workers": 2})
    ns.compare(set_ups.make_case, out=tmp_path / "later", rates=[0.5, 1], **QUICK | {"seeds": 1})
    later = ns.compare(set_ups.make_case, out=tmp_path / "later", rates=[0.5, 1], **QUICK)
    assert frame_of(whole).equals(frame_of(shared))
    assert frame_of(whole).equals(frame_of(later))
    assert frame_of(whole)["seed"].unique().sort().to_list() == [0, 1]


def test_the_callers_random_streams_stay_where_they_are(tmp_path):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    ns.compare(set_ups.make_case, out=tmp_path, **QUICK)
    assert torch.equal(torch.randn(3), expected)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    script = tmp_path / "go.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            import normscope as ns
            from kit import set_ups
            ns.compare(set_ups.make_case, seeds=3, steps=30, workers=1, questions=["speed"], out=sys.argv[1])
        """)
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, script, tmp_path / "run"], env=environment) as running:
        end = time.monotonic() + 120
        while not list((tmp_path / "run").glob("cell-*.json")) and time.monotonic() < end:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    done = len(list((tmp_path / "run").glob("cell-*.json")))
    assert done >= 1
    options = {"seeds": 3, "steps": 30, "workers": 1, "questions": ["speed"]}
    resumed = ns.compare(set_ups.make_case, out=tmp_path / "run", **options)
    alone = ns.compare(set_ups.make_case, out=tmp_path / "alone", **options)
    assert frame_of(resumed).equals(frame_of(alone))


def test_arms_of_a_seed_begin_from_one_network_and_see_the_same_batches(tmp_path):
    seen = {}

    def make():
        case = set_ups.make_case()
        kept = case.model[0].weight.detach().clone()
        batches = []

        def loss_fn(model, batch):
            if model.training and torch.is_grad_enabled():
                batches.append(batch[0].sum().item())
            return set_ups.entropy(model, batch)

        made = ns.Case(case.model, loss_fn, case.loader, case.optimizer, case.eval_loader)
        seen.setdefault("runs", []).append((kept, batches, made.model))
        return made

    # The arm without dropout draws other numbers, and is given the same batches all the same.
    def without_dropout(model):
        model[3].p = 0.0

    ns.compare(make, {"own": "own", "none": "none", "dry": without_dropout}, out=tmp_path, **QUICK | {"seeds": 1})
    runs = [run for run in seen["runs"] if len(run[1]) == QUICK["steps"]]
    assert len(runs) == 3
    assert all(torch.equal(kept, runs[0][0]) for kept, *_ in runs)
    assert runs[0][1] == runs[1][1] == runs[2][1]
    assert len(set(runs[0][1])) == QUICK["steps"]  # a new epoch has another order
    norms = [[module for module in model.modules() if is_known_norm(module)] for *_, model in runs]
    assert [len(found) for found in norms] == [2, 0, 2]


def test_a_network_without_norms_has_nothing_to_compare(tmp_path):
    with pytest.raises(UsageError, match=r"nothing to compare: none: a model without norms"):
        ns.compare(set_ups.make_case_without_norms, out=tmp_path, **QUICK)
    assert not (tmp_path / "run.json").exists()


def test_an_arm_that_is_the_network_itself_is_left_out_and_named(tmp_path):
    with pytest.warns(ComparisonWarning, match="batch: the norms of the model are of this kind already"):
        found = ns.compare(set_ups.make_case, ["own", "none", "batch"], out=tmp_path, **QUICK)
    assert list(found.arms) == ["own", "none"]
    assert any("left out" in note for note in found.notes)


def test_a_factory_that_gives_one_model_twice_is_refused(tmp_path):
    case = set_ups.make_case()
    with pytest.raises(UsageError, match="returned the same model twice"):
        ns.compare(lambda: case, out=tmp_path, **QUICK)


def test_a_factory_that_seeds_itself_is_told(tmp_path):
    with pytest.warns(ComparisonWarning, match="the first weights are the same at every seed"):
        ns.compare(set_ups.make_seeded_case, out=tmp_path, **QUICK)


def test_a_factory_may_take_the_seed(tmp_path):
    given = []

    def make(seed):
        given.append(seed)
        return set_ups.make_case()

    ns.compare(make, out=tmp_path, **QUICK)
    assert {0, 1} == set(given)


def test_several_factories_are_arms(tmp_path):
    found = ns.compare(
        {"bn": set_ups.make_case, "plain": set_ups.make_case_without_norms}, out=tmp_path, **QUICK | {"seeds": 3}
    )
    assert list(found.arms.values()) == ["in bn", "in plain"]
    assert "in bn" in found.answers_in_order[0].sentence


@pytest.mark.parametrize("make", [set_ups.make_case, set_ups.make_scheduled_case])
def test_the_loss_of_a_step_is_that_of_the_loop(make, tmp_path):
    found = ns.compare(make, out=tmp_path, **QUICK)
    losses = found.evidence.select(probe="training", name="loss")
    assert losses["value"].is_finite().all()
    assert losses.group_by("arm", "seed").len()["len"].to_list() == [8] * 4
    first = found.evidence.select(probe="training", name="loss", arm="own").filter(pl.col("step") == 0)["value"]
    assert 0.7 < first.mean() < 2.0  # near ln 3


def test_averaged_weights_and_schedules_follow_the_arm(tmp_path):
    found = ns.compare(set_ups.make_scheduled_case, out=tmp_path, **QUICK | {"seeds": 1})
    assert "averaged" in str(found.reports["none"])
    assert len(found.evidence.select(probe="gap", name="averaged weights", arm="none")) == 1


def test_a_run_that_diverges_ends_and_says_so(tmp_path):
    def make():
        case = set_ups.make_case()
        case.optimizer.param_groups[0]["lr"] = 1e30
        return case

    found = ns.compare(make, out=tmp_path, **QUICK | {"seeds": 3})
    diverged = found.evidence.select(probe="training", name="diverged", arm="none")["value"]
    assert diverged.to_list() == [1.0] * 3
    assert "NaN" not in str(found)
    assert "nan" not in str(found)


def test_a_step_without_a_loss_is_refused(tmp_path):
    def make():
        case = set_ups.make_case()

        def step(model, batch):
            case.optimizer.zero_grad()
            gradients = torch.autograd.grad(set_ups.entropy(model, batch), list(model.parameters()))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            case.optimizer.step()

        return ns.Case(case.model, set_ups.entropy, case.loader, case.optimizer, step=step)

    with pytest.raises(UsageError, match="let step return the loss"):
        ns.compare(make, out=tmp_path, **QUICK)


def test_what_does_not_train_is_refused(tmp_path):
    def make():
        return set_ups.dense(), set_ups.entropy, set_ups.loaders()[0]

    with pytest.raises(UsageError, match="give the set-up an optimizer"):
        ns.compare(make, out=tmp_path, **QUICK)


def test_another_configuration_in_the_folder_is_refused(tmp_path):
    ns.compare(set_ups.make_case, out=tmp_path, **QUICK)
    with pytest.raises(StoreError, match="holds another comparison"):
        ns.compare(set_ups.make_case, out=tmp_path, **QUICK | {"steps": 9})


def test_fewer_seeds_than_lie_there_are_read_alone(tmp_path):
    ns.compare(set_ups.make_case, out=tmp_path, **QUICK)
    assert ns.compare(set_ups.make_case, out=tmp_path, **QUICK | {"seeds": 1}).evidence.seeds == (0,)
    assert Comparison(tmp_path).evidence.seeds == (0, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arms": ["own", "nine"]}, "no arm 'nine': did you mean none"),
        ({"arms": ["own"]}, "at least two arms"),
        ({"arms": {"own": "own", "x": 3}}, "arm 'x' is 3"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"steps": 1}, "--steps must be at least 2"),
        ({"rates": [0.0]}, "--rates are factors"),
        ({"batches": 0}, "--batches must be at least 1"),
        ({"questions": ["sped"]}, "no question 'sped': did you mean speed"),
        ({"questions": []}, "at least one question"),
        ({"budget": "soon"}, "a budget is a time such as 90s"),
        ({"workers": 0}, "--workers must be at least 1"),
    ],
)
def test_bad_input_gets_one_line(options, said, tmp_path):
    with pytest.raises(UsageError, match=said) as raised:
        ns.compare(set_ups.make_case, out=tmp_path, **QUICK | options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run.json").exists()


def test_the_users_exception_has_the_users_line(tmp_path):
    file = tmp_path / "train.py"
    file.write_text("def make_case():\n    raise KeyError('data')\n")
    with pytest.raises(UsageError, match=r"make_case\(\) raised KeyError: 'data' \(train.py:2\)"):
        ns.compare(f"{file}:make_case", out=tmp_path / "run", **QUICK)


def test_a_change_that_returns_another_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match="change the model in place"):
        ns.compare(set_ups.make_case, {"own": "own", "x": lambda model: nn.Linear(2, 2)}, out=tmp_path, **QUICK)


def test_one_seed_is_described_and_not_judged(tmp_path):
    found = ns.compare(set_ups.make_case, out=tmp_path, **QUICK | {"seeds": 1})
    assert found.described
    assert "Described, not judged (1 seed):" in str(found)
    assert found.answers()["word"].to_list() == [""]


def test_warnings_of_the_instruments_are_kept_with_the_run(tmp_path):
    def make():
        case = set_ups.make_case()
        other = lambda model, batch: set_ups.entropy(model, batch) / 4  # noqa: E731

        def step(model, batch):
            case.optimizer.zero_grad()
            loss = set_ups.entropy(model, batch)
            loss.backward()
            case.optimizer.step()
            return loss

        return ns.Case(case.model, other, case.loader, case.optimizer, case.eval_loader, step=step)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ComparisonWarning)
        found = ns.compare(make, out=tmp_path, **QUICK | {"seeds": 1, "questions": None})
    assert any("4 times" in text for text in found.said_in_runs)
