"""What a check has to say of the set-up as a whole, beside its findings."""

from normscope.evidence.evidence import Evidence
from normscope.evidence.listening import Training
from normscope.evidence.other_norms import notes_on as notes_on_norms
from normscope.records.numbers import counted


def notes_on(evidence: Evidence) -> tuple[str, ...]:
    """Return sentences on the training steps that were made, and on norms that rules do not read."""
    training = vars(evidence).get("training")
    return (*(() if training is None else _on_training(evidence, training)), *notes_on_norms(evidence.other_norms))


def _on_training(evidence: Evidence, training: Training) -> list[str]:
    notes = []
    made = counted(training.steps, "training step")
    if training.failed:
        notes.append(f"{training.failed}: the check judged by the {made} before it")
    model = evidence.case.model
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if training.steps and training.updates and learning and not training.moved & {id(p) for p in model.parameters()}:
        held = {id(parameter) for parameter in learning} & evidence.trained
        why = "" if held else ": no optimizer of the set-up holds a parameter of the model that learns"
        notes.append(f"{made} changed no parameter of the model{why}")
    if left := _left_in_eval_mode(training):
        notes.append(
            f"from training step {left} on all norms ran in eval mode: the step leaves the model in eval mode, as "
            "after a validation, and nothing calls model.train() again"
        )
    return notes


def _left_in_eval_mode(training: Training) -> int:
    """Return the step from which on no norm is in train mode any more, where the first step had norms in it; or 0."""
    steps: dict[int, bool] = {}
    for call in training.calls:
        if call.grad:
            steps[call.step] = steps.get(call.step, False) or call.training
    trained = [step for step, was in steps.items() if was]
    later = [step for step in steps if trained and step > max(trained)]
    return min(later) if later and min(trained) == 0 else 0
