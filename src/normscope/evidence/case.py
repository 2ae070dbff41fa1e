"""A training set-up, as it is handed to the check."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import DataError, UsageError
from normscope.modules.gradients import WithoutGradient
from normscope.modules.reach import Reach
from normscope.modules.wrapped import refuse_fixed
from normscope.usercode import defined_at

LossFn = Callable[[Any, Any], Tensor]
TrainStep = Callable[[Module, Any], Any]

_IGNORED = "_normscope_ignored"


class Case:
    """A model and how it is trained and evaluated. Nothing of it is changed by checking.

    Args:
        model: The model, in the modes in which it trains: call ``model.train()`` first, and put what is to stay frozen
            in eval mode after that, as the training loop does.
        loss_fn: ``loss_fn(model, batch) -> scalar``, the loss that training descends. It may take gradients itself.
        loader: Training batches, in the order and of the size of training. Iterated several times: a list or a
            ``DataLoader``, not an iterator.
        optimizer: What updates the parameters, if there is one.
        eval_loader: Batches of the data that evaluation uses.
        step: ``step(model, batch)`` makes one training step as the loop does, if it does more than zero the gradients,
            run ``loss_fn`` and its backward pass, and update. Its updates are undone.
        eval_loss_fn: ``eval_loss_fn(model, batch) -> scalar``, the loss in eval mode, where the model returns something
            else there than in training, as detectors do; left out, it is ``loss_fn``.
        averaged: The model of averaged weights that is evaluated (EMA, SWA), if there is one.
        exported: What is deployed, if anything: an exported program, a scripted, traced or folded module, or
            an ONNX model.
        replicas: The model as other processes of the same training have it, if they are at hand: loaded from the
            checkpoint of each, say. Not needed where the model is ``DistributedDataParallel`` and all processes check.
        ignore: Codes (or their beginnings) that are not to be reported, each with the reason.
        also: What else ``loss_fn`` or ``step`` change. Modules, optimizers, tensors, containers and objects that their
            code names are found without being given.

    Attributes:
        reach: What ``loss_fn`` and ``step`` reach beside the model.

    Raises:
        UsageError: Something is not of its kind; a reason is empty; the loader is an iterator, which can be read once.
        DataError: The loader says that it is empty.
    """

    def __init__(
        self,
        model: Module,
        loss_fn: LossFn,
        loader: Iterable[Any],
        optimizer: Optimizer | None = None,
        eval_loader: Iterable[Any] | None = None,
        *,
        step: TrainStep | None = None,
        eval_loss_fn: LossFn | None = None,
        averaged: Module | None = None,
        exported: Any = None,
        replicas: Sequence[Module] = (),
        ignore: Mapping[str, str] | None = None,
        also: Sequence[Any] = (),
    ) -> None:
        if not isinstance(model, Module):
            raise UsageError(f"Case: model must be a torch.nn.Module, not {type(model).__name__}")
        refuse_fixed(model)
        if not callable(loss_fn):
            raise UsageError("Case: loss_fn must be a function loss_fn(model, batch) that returns a scalar")
        if eval_loss_fn is not None and not callable(eval_loss_fn):
            raise UsageError("Case: eval_loss_fn must be a function eval_loss_fn(model, batch) that returns a scalar")
        if any(not isinstance(replica, Module) for replica in replicas):
            raise UsageError("Case: replicas must be torch.nn.Modules, one for each other process")
        if optimizer is not None and not hasattr(optimizer, "param_groups"):
            raise UsageError(f"Case: optimizer must be a torch optimizer, not {type(optimizer).__name__}")
        for name, given in (("loader", loader), ("eval_loader", eval_loader)):
            if given is None and name == "eval_loader":
                continue
            if not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
                raise UsageError(f"Case: {name} must give batches when it is iterated, not {type(given).__name__}")
            if hasattr(given, "__next__"):
                raise UsageError(f"Case: {name} is an iterator, which can be read once: give the loader or a list")
            if length_of(given) == 0:
                raise DataError(f"Case: {name} is empty: give at least one batch")
        self.model, self.loss_fn, self.loader = model, loss_fn, loader
        self.optimizer, self.eval_loader, self.step = optimizer, eval_loader, step
        self.averaged, self.exported, self.replicas = averaged, exported, tuple(replicas)
        self.eval_loss_fn, self.also = eval_loss_fn, tuple(also)
        self.reach = Reach(self.functions(), also)
        self._passes = {mode: WithoutGradient() for mode in ("training", "evaluation")}
        self.ignore = dict(ignore or {})
        for code, reason in self.ignore.items():
            _check_reason(code, reason)

    def functions(self) -> dict[str, Callable[..., Any] | None]:
        """Return the functions of the user's that a pass calls, by the names of their arguments."""
        return {"loss_fn": self.loss_fn, "step": self.step, "eval_loss_fn": self.eval_loss_fn}

    def tried(self, *, evaluation: bool = False) -> bool:
        """Whether it is known if the loss takes gradients itself."""
        return self._passes["evaluation" if evaluation else "training"].sure

    def loss_of(self, model: Any, batch: Any, *, evaluation: bool = False) -> float:
        """Return the loss of a batch, without gradient unless the loss takes gradients itself.

        Args:
            model: The model, in the mode that is wanted.
            batch: The batch.
            evaluation: Whether the model is in eval mode.
        """
        own = self.eval_loss_fn if evaluation and self.eval_loss_fn is not None else self.loss_fn
        passes = self._passes["evaluation" if evaluation else "training"]
        found = number_of(passes(own, model, batch), own)
        return float(found.detach() if isinstance(found, Tensor) else found)

    def ignored(self, code: str, places: Iterable[str]) -> str:
        """Return why a finding is not to be reported; empty if it is."""
        for prefix, reason in self.ignore.items():
            if code.startswith(prefix):
                return reason
        modules = dict(self.model.named_modules(remove_duplicate=False))
        reasons = [_reason(modules[place], code) if place in modules else "" for place in places]
        return reasons[0] if reasons and all(reasons) else ""


def length_of(loader: Any) -> int | None:
    """Return how many batches a loader says it has; None if it does not know, as over a stream of data."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader has a length only if its data have
        return None


def number_of(found: Any, function: Callable[..., Any], *, descended: bool = False) -> Any:
    """Return what a loss function returned, if it is a number.

    Args:
        found: What it returned.
        function: The function.
        descended: Whether gradients are taken of it.

    Raises:
        UsageError: It is none; the message says what it is.
    """
    wrong = ""
    if isinstance(found, Tensor):
        if found.numel() != 1:
            wrong = f"a tensor of shape {tuple(found.shape)}: it must return one number, such as the mean"
        elif found.is_complex() or (descended and not found.is_floating_point()):
            wrong = f"a tensor of {found.dtype}: it must return a real number, of a floating dtype"
        elif descended and not found.requires_grad:
            wrong = "a tensor without gradient: leave out detach, item and no_grad"
    elif descended or isinstance(found, str) or not hasattr(found, "__float__"):
        what = "None" if found is None else f"an object of type {type(found).__name__}"
        wrong = f"{what}: it must return the loss alone, a tensor with one number"
    if wrong:
        place = defined_at(function)
        raise UsageError(f"the loss function returned {wrong}" + (f" ({place})" if place else ""))
    return found


def ignore(module: Module, code: str, reason: str) -> Module:
    """Say at a module that a rule's finding there is on purpose, and why.

    Args:
        module: The module. Modules inside it are not meant: mark each by itself.
        code: A code such as ``NS105`` or its beginning.
        reason: Why it is on purpose.

    Returns:
        The module.

    Raises:
        UsageError: The reason is empty, or the code is none.

    Example:
        >>> layer = ignore(nn.BatchNorm1d(8), "NS105", "ghost batches on purpose")
    """
    _check_reason(code, reason)
    vars(module).setdefault(_IGNORED, {})[code] = reason
    return module


def _reason(module: Module, code: str) -> str:
    said: Mapping[str, str] = vars(module).get(_IGNORED, {})
    return next((reason for prefix, reason in said.items() if code.startswith(prefix)), "")


def _check_reason(code: str, reason: str) -> None:
    if not code.startswith("NS"):
        raise UsageError(f"{code!r} is no rule's code: they begin with NS")
    if not isinstance(reason, str) or not reason.strip():
        raise UsageError(f"say why {code} is to be ignored: a reason in words")
