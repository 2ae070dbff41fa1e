"""Whether a set-up still trains after a fix: its step runs, and second models are still built as the model is."""

from torch.nn import Module

from normscope import evidence
from normscope._errors import NormscopeError
from normscope.evidence import Case
from normscope.evidence.steps import watch_training

Form = tuple[tuple[str, tuple[int, ...]], ...]


class Pairing:
    """A set-up before a fix: the second models that are built as its model is, and whether its step runs.

    A target, a teacher or averaged weights take the values of the model name by name, or one after the other. Where a
    fix drops a parameter of the model alone, the values would go to other parameters, perhaps without an error; where
    it changes the kind of a norm, the second model would compute something else with the same values.

    Args:
        case: The set-up.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._form = _form_of(case.model)
        outside = evidence.Evidence(case).outside
        self._second = {name: each for name, each in evidence.modules_in(outside) if _form_of(each) == self._form}
        self._ran = not _raised_in_a_step(case)

    def lost(self) -> str:
        """Say what no longer fits; nothing if all does."""
        if _form_of(self._case.model) != self._form:
            left = [name for name, each in self._second.items() if _form_of(each) == self._form]
            if left:
                return (
                    f"the model has other parameters or buffers now than {' and '.join(left)}, which was built as the "
                    "model is: where the values of one go to the other, change both in the code that builds them"
                )
        raised = _raised_in_a_step(self._case) if self._ran else ""
        return f"a training step no longer runs: {raised}" if raised else ""


def _form_of(model: Module) -> Form:
    named = (*model.named_parameters(), *model.named_buffers())
    return tuple((name, tuple(tensor.shape)) for name, tensor in named)


def _raised_in_a_step(case: Case) -> str:
    try:
        watch_training(case, 1)
    except NormscopeError as error:
        return str(error)
    return ""
