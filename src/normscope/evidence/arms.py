"""An arm of a comparison from a user's training set-up: the same set-up, with the norms of its model changed.

The set-up is changed in place, and so it must have been made for this arm: call the factory anew for each arm, under
the same seed. A step, a loss or a scheduler holds its model and its optimizer in ways that no copy could follow; in
place they hold the changed ones. What follows the model is made to follow: optimizers drop the parameters that went
and take the new ones into the groups of the old; lists of parameters likewise; copies of the model (averaged weights, a
teacher) get the same norms. One training step is then tried, and undone, and must move the model.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from normscope._errors import UsageError
from normscope.evidence.case import Case
from normscope.evidence.followers import copies_of, follow_copies, follow_parameters, parameters_by_site, still_held
from normscope.evidence.passes import example as as_example
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.reaching import ReachingSnapshot
from normscope.modules.state import Snapshot
from normscope.surgery import ArmReport, make_arm, norm_sites, plan
from normscope.usercode import described, place_of, users_code

POPULATION = 4
"""Batches whose inputs are joined where an arm takes statistics of a population."""


def plan_arm(case: Case, name: str, *, example: Any = None, seed: int = 0, groups: int = 32) -> ArmReport:
    """Say what an arm of a set-up would be; nothing is changed.

    Args:
        case: The set-up.
        name: A name of ``surgery.ARMS``.
        example: A batch of input to the model; by default what the loss gives it for the loader's first batch, or for
            the first ``POPULATION`` batches where the arm is one of ``"population"`` and ``"frozen"``.
        seed: Of what is drawn for the arm.
        groups: Of group norms.

    Raises:
        UsageError: No such arm; the loader or the loss raises, or the loss does not call the model.
    """
    found = _example(case, name) if example is None else example
    return plan(case.model, name, example=found, seed=seed, groups=groups)


def case_arm(
    case: Case, name: str, *, example: Any = None, seed: int = 0, groups: int = 32, trial: bool = True
) -> ArmReport:
    """Turn a set-up, made for this arm, into the arm; all or nothing.

    Args:
        case: The set-up, changed in place: model, optimizers, copies of the model.
        name: A name of ``surgery.ARMS``.
        example: A batch of input to the model; by default what the loss gives it for the loader's first batch, or for
            the first ``POPULATION`` batches where the arm is one of ``"population"`` and ``"frozen"``.
        seed: Of what is drawn for the arm.
        groups: Of group norms.
        trial: Whether one training step is made and undone, to see that it still runs and moves the model.

    Returns:
        What was done; its notes say what follows the model.

    Raises:
        UsageError: As of ``plan_arm``; or the step fails with the changed model, or trains another.
    """
    found = _example(case, name) if example is None else example
    snapshot, unseen = _reached(case)
    try:
        objects, containers = snapshot.kept()
        before, norms = parameters_by_site(case.model), {site.module: site.path for site in norm_sites(case.model)}
        copies = copies_of(case.model, [("averaged", case.averaged), *objects])
        report = make_arm(case.model, name, example=found, seed=seed, groups=groups)
        notes = [unseen] if unseen else []
        if report.changes:
            notes += follow_parameters(case.model, before, [*objects, ("optimizer", case.optimizer)], containers)
            notes += follow_copies(case.model, copies, report)
            notes += still_held(case.model, norms, containers)
        if trial and not unseen:
            try_step(case, name)
    except BaseException:
        snapshot.restore()
        raise
    return report.with_notes(notes)


def example_of(case: Case, count: int = 1) -> Any:
    """Return what the loss calls the model with for the first batches of the loader, as surgery takes an example.

    Args:
        case: The set-up; left as it was.
        count: Number of batches. Those whose inputs have the shapes of the first's, but for the number of samples, are
            joined.

    Raises:
        UsageError: The loader or the loss raises, or the loss does not call the model.
    """
    calls: list[Any] = []
    with sandbox(case), torch.enable_grad(), _first_calls(case.model, calls):  # a loss may take gradients itself
        for index, batch in enumerate(batches(case.loader, count)):
            known = len(calls)
            with users_code(f"the loss of batch {index} of the loader"):
                case.loss_fn(case.model, batch)
            if len(calls) == known:
                raise UsageError("loss_fn does not call the model that it is given: take the model from its argument")
            del calls[known + 1 :]
    examples = [as_example(case.model, call) for call in calls]
    return examples[0] if len(examples) == 1 else _joined(examples)


def _example(case: Case, name: str) -> Any:
    return example_of(case, POPULATION if name in ("population", "frozen") else 1)


def reached_objects(case: Case) -> list[tuple[str, Any]]:
    """Return what the functions of a set-up reach beside the model, by name: optimizers, schedulers, other modules."""
    return list(_reached(case)[0].kept()[0])


def try_step(case: Case, name: str) -> None:
    """Make one training step and undo it.

    Raises:
        UsageError: The step raises; does not call the model that it is given; or moves none of its parameters.
    """
    learning = {key: p for key, p in case.model.named_parameters() if p.requires_grad}
    calls: list[Any] = []
    with sandbox(case), _first_calls(case.model, calls):
        values = {key: p.detach().clone() for key, p in learning.items()}
        (batch,) = batches(case.loader, 1)
        try:
            with torch.enable_grad():
                _step(case, batch)
        except UsageError:
            raise
        except Exception as error:
            where = f" ({place})" if (place := place_of(error)) else ""
            if name == "own":  # nothing was changed
                raise UsageError(f"the training step fails: {described(error)}{where}") from error
            raise UsageError(
                f"{name}: the training step fails with the changed model: {described(error)}{where}. What rests on the "
                "model's parameters or norms by name or number must be made from the model when it is used, not in the "
                "factory"
            ) from error
        moved = [key for key, p in learning.items() if not torch.equal(p.detach(), values[key])]
    if not calls:
        raise UsageError(f"{name}: the step does not call the model that it is given: take the model from its argument")
    trains = case.optimizer is not None or case.step is not None
    # One step may move nothing: a warm-up from 0, gradients gathered over steps, a scaler that skips the first.
    if learning and not moved and trains and not _is_held(case, learning.values()):
        raise UsageError(
            f"{name}: a training step moves no parameter of the model: its optimizer holds other parameters. Build the "
            "optimizer in the factory, from the model that the factory returns"
        )


def _step(case: Case, batch: Any) -> None:
    if case.step is not None:
        case.step(case.model, batch)
        return
    case.model.zero_grad()
    loss = case.loss_fn(case.model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UsageError(f"loss_fn returns {kind}: it must return a scalar tensor")
    if isinstance(case.optimizer, LBFGS):
        raise UsageError(
            "LBFGS needs a closure: give the set-up a step(model, batch) that calls optimizer.step(closure)"
        )
    if loss.requires_grad:
        loss.backward()
    if case.optimizer is not None:
        case.optimizer.step()


def _is_held(case: Case, parameters: Iterable[Tensor]) -> bool:
    """Say whether an optimizer that the set-up reaches holds one of some parameters."""
    wanted = {id(parameter) for parameter in parameters}
    optimizers = [case.optimizer, *(each for _, each in reached_objects(case))]
    groups = [group for each in optimizers if isinstance(each, Optimizer) for group in each.param_groups]
    return any(id(parameter) in wanted for group in groups for parameter in group["params"])


@contextlib.contextmanager
def _first_calls(model: Module, calls: list[Any]) -> Iterator[None]:
    def note(_: Module, args: Any, kwargs: Any) -> None:
        calls.append(tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs)))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _joined(examples: list[Any]) -> Any:
    """Join examples along the samples; tensors only, each of the first's shape but for the first axis."""
    leaves, form = tree_flatten(examples[0])
    if not all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves):
        return examples[0]
    columns = [[leaf] for leaf in leaves]
    for other in examples[1:]:
        more, same = tree_flatten(other)
        if same == form and all(a.shape[1:] == b.shape[1:] for a, b in zip(leaves, more, strict=True)):
            for column, leaf in zip(columns, more, strict=True):
                column.append(leaf)
    return tree_unflatten([torch.cat(column) for column in columns], form)


def _reached(case: Case) -> tuple[Snapshot, str]:
    """Keep the set-up and all that its functions reach; where that cannot be, the set-up alone, and say why."""
    models = [model for model in (case.model, case.averaged) if model is not None]
    optimizers = [] if case.optimizer is None else [case.optimizer]
    case.reach.set_functions(case.functions())
    try:
        return ReachingSnapshot(case.reach, *models, optimizers=optimizers), ""
    except UsageError as error:
        return Snapshot(*models, optimizers=optimizers), f"what the step holds was not looked into: {error}"
