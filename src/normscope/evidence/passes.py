"""Forward passes over the user's batches, watched at chosen modules, that leave nothing behind."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.evidence.case import Case
from normscope.evidence.losses import is_refused
from normscope.evidence.places import Places
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.batches import leading_tensor
from normscope.modules.hooks import Hook
from normscope.usercode import users_code

Seen = Callable[[str, Tensor, Any], None]


def look(
    case: Case,
    modules: Mapping[str, Module],
    count: int | Sequence[int],
    *,
    before: Seen | None = None,
    after: Seen | None = None,
    repeat: int = 1,
    told: Callable[[int], None] | None = None,
    places: Places | None = None,
) -> None:
    """Run the loss on training batches, without gradient and in the modes of training, and look on at some modules.

    A loss that takes gradients itself is first seen to do so at a batch on which nobody looks.

    Args:
        case: The set-up; left as it was.
        modules: What to look at, by name.
        count: Number of batches that are run, from the first on; or the numbers of batches, in order.
        before: Called with a module's name, its leading input and all its arguments before its forward.
        after: Called with its name, its output (the first tensor of it) and its leading input.
        repeat: How often each is run.
        told: Called with the number of the batch before it is run, each time.
        places: Told where each run and each pass of the whole model begins.

    Raises:
        UsageError: The loader or the loss raises.
    """

    def enter(path: str, _module: Module, args: Any, kwargs: Any) -> None:
        x = leading_tensor((*args, *kwargs.values()))
        if before is not None and x is not None:
            before(path, x.detach(), (*args, *kwargs.values()))

    def leave(path: str, _module: Module, args: Any, output: Any) -> None:
        if after is not None and isinstance(output, Tensor):
            after(path, output.detach(), leading_tensor(args))

    wanted = range(count) if isinstance(count, int) else count
    with sandbox(case), ExitStack() as hooks:
        if not case.tried():
            with sandbox(case):
                _run(case, 0, next(batches(case.loader, 1)))
        if places is not None:
            hooks.callback(case.model.register_forward_pre_hook(places.begin_pass).remove)
        for path, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(Hook(partial(enter, path)), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(Hook(partial(leave, path))).remove)
        for index, batch in enumerate(batches(case.loader, wanted[-1] + 1)):
            if index not in wanted:
                continue
            for _ in range(repeat):
                if told is not None:
                    told(index)
                if places is not None:
                    places.begin_step()
                _run(case, index, batch)


def _run(case: Case, index: int, batch: Any) -> None:
    try:
        with users_code(f"the loss of batch {index} of the loader"):
            case.loss_of(case.model, batch)
    except UsageError as error:
        if not index or not is_refused(error):
            raise


def example(model: Module, inputs: tuple[tuple[Any, ...], Mapping[str, Any]]) -> Any:
    """Return the arguments of a call as ``surgery`` takes an example: a tuple, or a mapping of keywords.

    Raises:
        UsageError: They are mixed, and cannot all be keywords.
    """
    args, kwargs = inputs
    if not args or not kwargs:
        return dict(kwargs) or args
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    kinds = {p.kind for name, p in bound.signature.parameters.items() if name in bound.arguments}
    if kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise UsageError("the model is called with positional arguments that have no names, and with keywords too")
    return dict(bound.arguments)


def replace_module(model: Module, path: str, new: Module) -> None:
    """Put ``new`` wherever the module of that name hangs in the model."""
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def take_out(optimizer: Any, parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Take parameters out of an optimizer's groups.

    Returns:
        For each group that had any: its options, with ``params`` (and ``param_names``, if it has names) those taken.
    """
    wanted = {id(parameter) for parameter in parameters}
    taken = []
    for group in optimizer.param_groups:
        moved = [index for index, parameter in enumerate(group["params"]) if id(parameter) in wanted]
        if not moved:
            continue
        lists = [key for key in ("params", "param_names") if key in group]
        taken.append(dict(group) | {key: [group[key][index] for index in moved] for key in lists})
        for key in lists:
            group[key] = [value for index, value in enumerate(group[key]) if index not in set(moved)]
    return taken
