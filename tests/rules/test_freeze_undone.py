"""Norms handed over in eval mode that the step puts back: which, how often, and what the fix keeps."""

import pytest
import torch

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking
from normscope.evidence import Case, examples


def stepping(held, *, undo=True, trained=0, **options):
    """A dense net whose norms at some places are handed over in eval mode, and a step that undoes that or does not."""
    case = examples.healthy(examples.mlp, trained=trained, **options)
    norms = dict(case.model.named_modules())
    for path in held:
        norms[path].eval()

    def losses(model, batch):
        model.train()
        if not undo:
            for path in held:
                norms[path].eval()
        yield examples.loss_fn(model, batch)

    return examples.stepped(case, losses)


@pytest.mark.parametrize("held", [["1"], ["4", "7"], ["1", "4", "7"]])
def test_the_norms_that_were_handed_over_in_eval_mode_are_named_and_their_updates_counted(held):
    finding = finding_of(stepping(held), "NS133")
    assert list(finding.places) == held
    assert finding.measured == 4 * len(held)  # four steps, a call of each norm in each
    assert finding.message.startswith("1 norm was in" if len(held) == 1 else f"{len(held)} norms were in")
    assert f"changed at {4 * len(held)} calls of 4 training steps" in finding.message
    assert is_quiet(stepping(held, undo=False), "NS133")


def test_the_fix_keeps_statistics_through_train_and_other_norms_go_on():
    case = stepping(["1", "7"], trained=20)
    kept = {key: value.clone() for key, value in case.model.state_dict().items()}
    assert repaired(case, "NS133") == "froze 2 norms, with the running statistics as they were handed over"
    assert all(torch.equal(value, kept[key]) for key, value in case.model.state_dict().items())
    case.step(case.model, case.loader[0])
    moved = {key for key, value in case.model.named_buffers() if not torch.equal(value, kept[key])}
    assert {key.partition(".")[0] for key in moved} == {"4"}


def test_a_norm_without_trained_parameters_is_one_finding():
    case = stepping(["1", "4"])
    case.model[1].requires_grad_(False)
    found = checking.check(case, ["NS101", "NS133"], gap=False)
    assert [(finding.code, finding.places) for finding in found] == [("NS133", ("1", "4"))]


def test_a_model_that_is_handed_over_in_eval_mode_as_a_whole_says_nothing_about_its_norms():
    case = stepping([])
    case.model.eval()
    assert is_quiet(case, "NS133")


def far_off():
    """A net whose first norm holds statistics of other data, in eval mode when handed over."""
    case = stepping(["1"], trained=40)
    norm = case.model[1]
    norm.running_mean += 3 * norm.running_var.sqrt()
    return case


def test_no_fix_recalibrates_the_statistics_that_were_to_be_kept():
    case = far_off()
    kept = case.model[1].running_mean.clone()
    found = checking.check(case)
    assert [finding.code for finding in found] == ["NS133"]
    checking.fix(case, found, unsafe=True)
    assert torch.equal(case.model[1].running_mean, kept)
    case.model[1].train(True)
    assert not case.model[1].training


def test_the_loss_of_training_is_that_of_the_modes_in_which_the_step_trains():
    case = far_off()
    found = checking.check(case)
    batches = [case.loader[index] for index in range(found.gap.batches)]
    with torch.no_grad():
        case.model.train()
        losses = [float(examples.loss_fn(case.model, batch)) for batch in batches]
    assert found.gap.train == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_statistics_that_the_step_keeps_are_not_those_of_a_gap():
    """Handed over in train mode, kept in eval mode by the step: its norms are not judged by the data's statistics."""
    case = stepping(["1"], undo=False, trained=40)
    norm = case.model[1]
    norm.train()
    norm.running_mean += 3 * norm.running_var.sqrt()
    assert [finding.code for finding in checking.check(case, ["NS101", "NS102", "NS109", "NS133"])] == []
    case.step = None
    assert "1" in finding_of(case, "NS102").places


def test_a_step_that_cannot_be_made_leaves_the_modes_of_the_hand_over():
    case = stepping(["1"])
    case.step = lambda model, batch: model.nothing

    assert isinstance(case, Case)
    with pytest.raises(Exception, match="nothing"):
        checking.check(case, ["NS133"], gap=False)
