"""Run the updated prefix of a network once, and only the old suffix again for each layer.

The forward pass at the updated parameters is watched call by call. To evaluate the network with everything before
layer i updated and the rest old, every childless module called before layer i returns the output that it had in the
watched pass instead of computing it. What containers compute between such calls (additions, reshapes, functional
activations) runs again on those outputs, so skips and branches come out right too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree

from normscope.modules.batches import tensors
from normscope.modules.hooks import forward_replaced
from normscope.modules.rng import set_torch_streams, torch_streams
from normscope.modules.tree import is_childless, walk
from normscope.probes._replay import Replay


class NotRepeatable(Exception):  # noqa: N818  (a finding, not an error: the general way is taken)
    """The forward pass cannot be repeated from kept outputs; the reason is the message."""


@dataclass(slots=True)
class _Call:
    """One call of a childless module in the watched pass.

    Attributes:
        module: Which.
        output: What it returned, cut from any graph; a copy where it was overwritten in place afterwards.
        streams: Random streams after the call if it drew from them, else None.
        watched: The returned tensors and their version counters.
        overwriters: Calls that changed the output in place, by index.
        overwritten: Whether code between the calls changed it in place: then each use needs a copy of its own.
    """

    module: Module
    output: Any
    streams: list[Tensor] | None
    watched: list[tuple[Tensor, int]]
    overwriters: list[int] = field(default_factory=list)
    bumps: int = 0
    overwritten: bool = False


class WatchedPass:
    """The forward pass at the replay's present parameters, with every childless module's output kept.

    Attributes:
        first: For each module the number of its first call among all modules' calls, and how many calls of childless
            modules had been completed before it began.
        repeatable: None, or why the pass cannot be repeated from kept outputs.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self.first: dict[Module, tuple[int, int]] = {}
        self._calls: list[_Call] = []
        self._copy: set[int] = set()
        self.repeatable: str | None = None
        self._watch()
        changed = self._find_overwritten()
        if changed:
            # Outputs that were overwritten in place are lost: watch the pass again, and copy these outputs.
            overwriters = {index: call.overwriters for index, call in enumerate(self._calls)}
            glue = {index for index, call in enumerate(self._calls) if call.overwritten}
            self._copy, self._calls, self.first = changed, [], {}
            self._watch()
            for index, call in enumerate(self._calls):
                call.overwriters, call.overwritten = overwriters.get(index, []), index in glue
        self._judge()

    def signature(self) -> tuple[int, ...]:
        """Identify the sequence of calls."""
        return tuple(id(call.module) for call in self._calls)

    def _watch(self) -> None:
        # Random draws between two module calls are attributed to the later call: when it is skipped, the code between
        # the calls has drawn again, and the streams are then set to their state after the call.
        self._streams = torch_streams()
        with forward_replaced((module for _, module in walk(self._replay.model)), self._watching):
            self._replay.evaluate(gradient=False)
        if self._replay.draws_beside_torch:
            self.repeatable = "the forward pass draws from NumPy's or Python's stream"

    def _watching(self, module: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        childless = is_childless(module)

        def run(*args: Any, **kwargs: Any) -> Any:
            self.first.setdefault(module, (len(self.first), len(self._calls)))
            if not childless:
                return forward(*args, **kwargs)
            inputs = [(tensor, tensor._version) for tensor in tensors((args, kwargs))]
            output = forward(*args, **kwargs)
            if any(tensor.requires_grad for tensor in tensors(output)):  # no parameter does in this pass
                self.repeatable = "the loss differentiates by something else than parameters, such as its input"
            before, after = self._streams, torch_streams()
            self._streams = after
            index = len(self._calls)
            self._note_overwriting(inputs, index)
            kept = _mapped(lambda part: self._keep(part, index), output)
            watched = [(part, part._version) for part in tensors(output)]
            drew = not all(map(torch.equal, before, after))
            self._calls.append(_Call(module, kept, after if drew else None, watched))
            return output

        return run

    def _keep(self, part: Any, index: int) -> Any:
        if not _is_tensor(part):
            return part
        return part.detach().clone() if index in self._copy else part.detach()

    def _note_overwriting(self, inputs: list[tuple[Tensor, int]], index: int) -> None:
        for tensor, version in inputs:
            if tensor._version == version:
                continue
            place = tensor.untyped_storage().data_ptr()
            for call in reversed(self._calls):
                if any(part.untyped_storage().data_ptr() == place for part, _ in call.watched):
                    call.overwriters.append(index)
                    call.bumps += tensor._version - version
                    break

    def _find_overwritten(self) -> set[int]:
        changed = set()
        for index, call in enumerate(self._calls):
            bumps = max((part._version - version for part, version in call.watched), default=0)
            if bumps:
                changed.add(index)
                call.overwritten = bumps > call.bumps
        return changed

    def _judge(self) -> None:
        known = (Tensor, bool, int, float, type(None))
        modules = [call.module for call in self._calls]
        if any(modules.count(module) > 1 and module._buffers for module in set(modules)):
            self.repeatable = "a module with buffers is called more than once"
        elif not all(isinstance(part, known) for call in self._calls for part in _leaves(call.output)):
            self.repeatable = "a module returns something other than tensors"
        for call in self._calls:
            call.watched.clear()  # frees the tensors

    @contextmanager
    def skipping(self, count: int) -> Iterator[None]:
        """Have the first ``count`` calls of one evaluation return the kept outputs.

        Raises:
            NotRepeatable: The calls of the evaluation come in another order than in the watched pass.
        """
        at = 0

        def instead(module: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal at
                index, at = at, at + 1
                if index >= count:
                    return forward(*args, **kwargs)
                call = self._calls[index]
                if call.module is not module:
                    raise NotRepeatable("modules are called in another order than before")
                if call.streams is not None:
                    set_torch_streams(call.streams)
                if call.overwritten or any(other >= count for other in call.overwriters):
                    return _mapped(lambda part: part.clone() if _is_tensor(part) else part, call.output)
                return call.output

            return run

        # Only modules with a call to skip need a stand-in, as long as counting stops after the last of them.
        skipped = {call.module for call in self._calls[:count]}
        wanted = is_childless if len(skipped) < count else skipped.__contains__
        with forward_replaced([module for _, module in walk(self._replay.model) if wanted(module)], instead):
            yield


def _is_tensor(part: Any) -> bool:
    return isinstance(part, Tensor)


def _leaves(tree: Any) -> list[Any]:
    return [tree] if isinstance(tree, Tensor) else pytree.tree_leaves(tree)


def _mapped(act: Callable[[Any], Any], tree: Any) -> Any:
    return act(tree) if isinstance(tree, Tensor) else pytree.tree_map(act, tree)
