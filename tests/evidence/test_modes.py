"""In which mode norms are in the steps, and which of them are to keep their statistics."""

import pytest
import torch
from torch import nn

from normscope import surgery
from normscope.evidence import Evidence, RefusedFixError, examples, recalibrate_places
from normscope.evidence.sandbox import sandbox
from normscope.records import Finding, Severity

NORMS = ("1", "4", "7")


def evidence_of(*modes, hand_over=lambda model: None):
    """Steps that run one pass after another, each in modes that a function sets, gradients recorded or not."""

    def losses(model, batch):
        for change, grad in modes:
            change(model)
            with torch.set_grad_enabled(grad):
                loss = examples.loss_fn(model, batch)
            if grad:
                yield loss

    case = examples.healthy(examples.mlp, trained=0)
    case = examples.stepped(case, losses) if modes else case
    hand_over(case.model)
    return Evidence(case)


def train(model):
    model.train()


def evaluate(model):
    model.eval()


def evaluate_first(model):
    model.train()
    model[1].eval()


@pytest.mark.parametrize(
    ("modes", "hand_over", "updating", "held"),
    [
        ([], train, NORMS, ()),
        ([], evaluate, (), ()),  # a model that is handed over in eval mode as a whole: nothing is known
        ([], evaluate_first, NORMS[1:], ("1",)),
        ([(train, True)], evaluate, NORMS, ()),
        ([(train, True)], evaluate_first, NORMS, ("1",)),
        ([(evaluate_first, True)], train, NORMS[1:], ("1",)),
        ([(evaluate, True), (train, True)], train, NORMS, ()),  # as where an attack is made first
        ([(evaluate, False), (train, True)], train, NORMS, ()),
        ([(train, False), (evaluate, True)], train, NORMS, ()),
    ],
)
def test_norms_update_as_the_steps_have_them_and_are_held_by_either_mode(modes, hand_over, updating, held):
    evidence = evidence_of(*modes, hand_over=hand_over)
    assert tuple(evidence.updating) == updating
    assert evidence.held == set(held)


def test_frozen_norms_are_held_and_do_not_update():
    evidence = evidence_of((train, True), hand_over=lambda model: surgery.freeze(model, only=["4"]))
    assert tuple(evidence.updating) == ("1", "7")
    assert evidence.held == {"4"}
    assert evidence.frozen_by_mode == set()


def test_the_modes_of_training_are_those_of_passes_with_gradients():
    evidence = evidence_of((train, False), (evaluate_first, True), hand_over=evaluate)
    with sandbox(evidence.case):
        evidence.take_modes()
        off = {path for path, module in evidence.modules.items() if not module.training}
    assert off == {"1"}
    assert not any(module.training for module in evidence.case.model.modules())


def test_a_norm_that_is_not_called_is_taken_by_its_mode_at_the_hand_over():
    evidence = evidence_of((train, True))
    spare = nn.ModuleDict({"net": evidence.case.model, "spare": nn.BatchNorm1d(3)}).train()
    spare.forward = evidence.case.model.forward
    evidence.case.model = spare
    assert "spare" in Evidence(evidence.case).updating


def recalibrated(case, places):
    finding = Finding("NS102", "train-eval-gap", Severity.ERROR, "", tuple(places))
    return recalibrate_places(case, finding)


def test_no_repair_recalibrates_a_norm_in_eval_mode_in_a_model_that_trains():
    case = examples.healthy(examples.mlp, trained=5)
    for path in ("1", "4"):
        case.model.get_submodule(path).eval()
    kept = {path: case.model.get_submodule(path).running_mean.clone() for path in NORMS}
    assert recalibrated(case, NORMS) == 1
    same = [torch.equal(case.model.get_submodule(path).running_mean, kept[path]) for path in NORMS]
    assert same == [True, True, False]
    with pytest.raises(RefusedFixError, match="their statistics are to stay"):
        recalibrated(case, ["1", "4"])
    case.model.get_submodule("1").reset_running_stats()  # a new layer's are not worth it
    assert recalibrated(case, ["1", "4"]) == 1
    case.model.eval()
    assert recalibrated(case, NORMS) == 3
