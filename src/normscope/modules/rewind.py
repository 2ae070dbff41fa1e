"""What a loss reaches beside parameters and buffers, put back before each evaluation of a step."""

from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from normscope.modules.beside import kept_beside
from normscope.modules.reach import Binding, Reach
from normscope.modules.reaching import ReachingSnapshot
from normscope.modules.state import _other_attributes, _same_items, _values_in
from normscope.modules.tree import walk
from normscope.modules.values import Values

_OF_THE_REPLAY = {"forward", *vars(Module())}  # attributes of the model's modules that a replay exchanges itself
_TRIALS = 3


class Rewind(ReachingSnapshot):
    """What the loss reaches as a step begins, and the way back to it before each evaluation of that step.

    Of the model it keeps what a replay does not exchange itself: the other attributes of its modules.

    Args:
        reach: The functions that will be called.
        model: The model.
    """

    def __init__(self, reach: Reach, model: Module) -> None:
        self._model = model
        super().__init__(reach, streams=False)
        self._beside += [kept for each in self._generators if (kept := kept_beside("a generator", each)) is not None]
        self._times = 0
        self._moving: set[int] = set()

    def _keep_reached(self) -> None:
        for _, module in walk(self._model):
            self._known.add(id(module))
            tensors = (*module._parameters.values(), *module._buffers.values())
            self._known.update(id(tensor) for tensor in tensors if tensor is not None)
            self._walk.note_class(type(module))
            for key, value in vars(module).items():
                if key not in _OF_THE_REPLAY:
                    self._beside.append(Binding(key, vars(module), key))
                    if type(value) not in self._empty:
                        self._keep("", key, value)
        super()._keep_reached()

    def _keep_object(self, name: str, owner: Any) -> None:
        if not isinstance(owner, Optimizer):  # its state is large, every step changes it, and no loss reads it
            super()._keep_object(name, owner)

    def rewind(self) -> None:
        """Go back to how the step began; called before each evaluation.

        The first evaluations show what the loss moves, and from then on only that is looked at. A few of them, as one
        may run the loss on kept outputs, without the model.
        """
        if 0 < self._times <= _TRIALS:
            self._note_moving()
        self.restore()
        if self._times == _TRIALS:
            self._narrow()
        self._times += 1

    def _note_moving(self) -> None:
        moving = self._moving
        moving |= {id(each) for each in self._objects if _other_attributes(vars(each[1]), each[3])}
        moving |= {id(each) for each in self._contents if not _same_items(each[2], each[3])}
        moving |= {id(each) for each in self._tensors if not each.is_as_it_was()}
        moving |= {id(each) for each in self._beside if not each.is_as_it_was()}
        moving |= {id(tensor) for values in self._values for _, tensor, *_ in values.changed()}

    def _narrow(self) -> None:
        moving = self._moving
        self._values = [Values([pair for pair in _values_in(self._tensors) if id(pair[1]) in moving])]
        self._objects = [each for each in self._objects if id(each) in moving]
        self._contents = [each for each in self._contents if id(each) in moving]
        self._tensors = [each for each in self._tensors if id(each) in moving]
        self._beside = [each for each in self._beside if id(each) in moving]
