"""Calls without gradient that move statistics: which norms, and their share of all updates."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kit.findings import finding_of, is_quiet
from normscope.evidence import Case, examples
from normscope.records import Severity
from normscope.records.numbers import counted


def stepping(extra, *, grad=False, depth=3):
    """A step in which the first ``extra`` layers are run once more before the training pass."""

    def losses(model, batch):
        with torch.set_grad_enabled(grad):
            model[:extra](batch[0])
        yield examples.loss_fn(model, batch)

    return examples.stepped(examples.healthy(examples.mlp, depth=depth, trained=0), losses)


@pytest.mark.parametrize(("extra", "places"), [(2, ["1"]), (5, ["1", "4"]), (9, ["1", "4", "7"])])
def test_the_share_is_that_of_all_updates(extra, places):
    finding = finding_of(stepping(extra), "NS106")
    assert list(finding.places) == places
    assert finding.measured == pytest.approx(len(places) / (len(places) + 3))
    assert counted(len(places), "norm changes", "norms change") in finding.message
    assert f"{finding.measured:.0%} of all updates of norms that are trained" in finding.message
    assert is_quiet(stepping(extra, grad=True), "NS106")


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_which_runs_without_gradient_and_again_is_no_such_pass(reentrant):
    case = examples.healthy(examples.mlp, trained=0)
    body = case.model[:6]
    run = partial(checkpoint, body, use_reentrant=reentrant)
    case.model.forward = lambda x: case.model[6:](run(x.clone().requires_grad_()))
    assert is_quiet(case, "NS106")


def test_a_pass_without_gradient_in_eval_mode_is_none_of_its_business():
    case = stepping(9)

    def losses(model, batch):
        model.eval()
        with torch.no_grad():
            model(batch[0])
        yield examples.loss_fn(model.train(), batch)

    assert is_quiet(examples.stepped(case, losses), "NS106")


def test_norms_that_only_run_without_gradient_are_a_teachers_and_spoken_of_by_other_rules():
    case = examples.healthy(examples.mlp, trained=0)

    def losses(model, batch):
        with torch.no_grad():
            hidden = model[:6](batch[0])
        yield torch.nn.functional.cross_entropy(model[6:](hidden), batch[1])

    assert is_quiet(examples.stepped(case, losses), "NS106")


def test_statistics_that_only_passes_without_gradient_make_are_no_mixture():
    case = examples.healthy(examples.mlp, trained=0)

    def losses(model, batch):
        with torch.no_grad():
            model.train()(batch[0])
        yield examples.loss_fn(model.eval(), batch)

    finding = finding_of(examples.stepped(case, losses), "NS106")
    assert finding.measured == 1.0
    assert "on statistics that these passes alone have made" in finding.cost


@pytest.mark.parametrize(
    ("scale", "shift", "severity"),
    [(1.0, 0.0, Severity.INFO), (1.1, 0.2, Severity.INFO), (3.0, 0.0, Severity.ERROR), (1.0, 2.0, Severity.ERROR)],
)
def test_other_data_are_an_error_and_the_same_data_an_information(scale, shift, severity):
    """A norm on the data themselves: it is given values of deviation 1, and in the other pass these times a factor."""
    model = torch.nn.Sequential(examples.batch_norm(12, mean=0.0, variance=1.0), torch.nn.Linear(12, 4)).train()
    loader = [(torch.randn(64, 12), torch.randint(4, (64,))) for _ in range(6)]
    case = Case(model, examples.loss_fn, loader, torch.optim.SGD(model.parameters(), 0.1))

    def losses(model, batch):
        with torch.no_grad():
            model(batch[0] * scale + shift)
        yield examples.loss_fn(model, batch)

    finding = finding_of(examples.stepped(case, losses), "NS106")
    assert finding.severity is severity
    assert ("alike" in finding.cost) == (severity is Severity.INFO)
