"""Freeze norms so that they stay frozen, and thaw them.

**What it does.** A frozen norm normalizes with its running statistics and updates them no more, *whatever mode the
model is put in*: ``model.train()`` at the start of each epoch, which undoes the customary ``norm.eval()``, passes it
by. With ``affine=True`` its gain and shift take no gradient either. A batch norm of this library may also be frozen by
its own switches (``layer.frozen = True``): that is the same to all of surgery, and is thawed here too.

**How.** The module keeps its class, parameters, buffers and state dict; its ``train`` method is replaced on the
instance by one that remembers the mode asked for and stays in evaluation. That travels with ``copy.deepcopy`` and
``pickle`` (not with a state dict: freeze again after loading one into a new model). ``repr`` shows it.

**What it does not do.** It cannot stop code that writes ``norm.training = True`` or calls
``norm.reset_running_stats()`` (``torch.optim.swa_utils.update_bn`` does the latter; ``surgery.recalibrate`` does
neither). Norms without running statistics have nothing to freeze but gain and shift, and those of other libraries that
never move their statistics are frozen already.

Freezing the statistics alone, or the gain and shift alone, leaves the other half drifting: freezing only the affine
part is the usual mistake in fine-tuning. A norm whose statistics are still the initial 0 and 1 is frozen all the same,
and the report says so.
"""

from typing import Any

from torch import nn

from normscope.layers import AbstractBatchNorm
from normscope.modules.sites import is_known_norm, running
from normscope.modules.state import transaction
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery._sites import BATCH, INSTANCE, Only, Site, norms
from normscope.surgery._trying import ignores_scale, inputs, updates
from normscope.surgery.functional import without_modules

# The attribute of a frozen module that holds the mode last asked for, under "asked", and what parameters required a
# gradient before, under their names. A plain dictionary, so that a failed operation restores it with the module.
_STATE = "_before_freeze"


class _Frozen:
    """Stands in for ``train`` on one instance: a callable object, so that copies and pickles carry it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        vars(self.module)[_STATE]["asked"] = mode
        type(self.module).train(self.module, False)
        return self.module


class _FrozenRepr:
    """Stands in for ``extra_repr`` on one instance."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self) -> str:
        shown = type(self.module).extra_repr(self.module)
        return f"{shown}, frozen" if shown else "frozen"


def is_frozen(module: nn.Module) -> bool:
    """Say whether a module was frozen, by :func:`freeze` or by its own switches.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> model = nn.Sequential(norm)
        >>> _ = freeze(model)
        >>> is_frozen(norm), model.train()[0].training
        (True, False)
    """
    return _is_marked(module) or _is_switched(module)


def freeze(model: nn.Module, *, only: Only = None, affine: bool = False) -> Report:
    """Freeze the running statistics of norms, and on request their gain and shift.

    Args:
        model: The model, changed in place; a norm by itself is a model too.
        only: Which norms: None for all; a predicate of path and module; or names, of which ``*`` stands for anything.
        affine: Whether gain and shift are frozen too (``requires_grad=False``). An optimizer that decays the weights
            of parameters without a gradient does not exist in torch: those are passed over.

    Returns:
        What was frozen, and what was skipped and why.

    Raises:
        UsageError: A name in ``only`` fits no norm.
    """
    done: list[Change] = []
    skipped: list[Skip] = []
    with transaction(model):
        chosen = norms(model, only)
        for site in chosen:
            module = site.module
            why = _why_not(module)
            if is_frozen(module) and not (affine and _learns(module)):
                skipped.append(Skip(site.path, "is frozen already"))
            elif not why:
                done.append(_freeze(site, affine))
            elif affine and _learns(module):
                done.append(_freeze(site, affine, statistics=False))
            else:
                skipped.append(Skip(site.path, why))
    return Report(model, tuple(done), tuple(skipped), without_modules(model, chosen))


def _why_not(module: Any) -> str:
    """Say why there are no running statistics to freeze, or nothing if there are."""
    name = type(module).__name__
    if running(module) is None and any(
        "running" in key and value is not None for key, value in module._buffers.items()
    ):
        return f"{name} keeps running statistics of its own kind"
    if running(module) is None or not getattr(module, "track_running_stats", True):
        return f"{name} has no running statistics to freeze"
    if type(module) in (*BATCH, *INSTANCE):
        return ""
    moved = {training: updates(module, training=training) for training in (True, False)}
    if moved[False]:
        return f"{name} updates its running statistics in evaluation too: a mode does not freeze it"
    return f"{name} is frozen by its class: its running statistics never move" if moved[True] is False else ""


def unfreeze(model: nn.Module, *, only: Only = None) -> Report:
    """Thaw norms: back to the mode that was last asked of them, gain and shift learning again if they did.

    Args:
        model: The model, changed in place.
        only: As for :func:`freeze`.

    Returns:
        What was thawed, and what was not frozen.

    Raises:
        UsageError: A name in ``only`` fits no norm.
    """
    done: list[Change] = []
    skipped: list[Skip] = []
    with transaction(model):
        for site in norms(model, only):
            module: Any = site.module
            if not is_frozen(module):
                skipped.append(Skip(site.path, "is not frozen"))
                continue
            switched = _is_switched(module)
            if _is_marked(module):
                thaw(module)
            if switched:
                module.frozen = False
            done.append(Change(site.path, "thawed", f"in {'training' if module.training else 'evaluation'} mode"))
    return Report(model, tuple(done), tuple(skipped))


def thaw(module: nn.Module) -> None:
    """Undo the freezing of one module by :func:`freeze`."""
    before = vars(module).pop(_STATE)
    del vars(module)["train"]
    vars(module).pop("extra_repr", None)
    for name, parameter in module._parameters.items():
        if parameter is not None and name in before:
            parameter.requires_grad_(before[name])
    if before.get("unused") and isinstance(module, AbstractBatchNorm):
        module.use_running = False
    module.train(before["asked"])


def refreeze(old: nn.Module, new: nn.Module) -> None:
    """Freeze ``new``, which takes the place of the frozen ``old``, as that was frozen."""
    if _is_marked(old):
        _install(new).update(vars(old)[_STATE])
    elif not _is_switched(new):
        _install(new)


def _is_marked(module: nn.Module) -> bool:
    return isinstance(vars(module).get("train"), _Frozen)


def _is_switched(module: Any) -> bool:
    return isinstance(module, AbstractBatchNorm) and module.frozen


def _install(module: nn.Module) -> dict[str, bool]:
    if not _is_marked(module):
        # Into __dict__ directly: for torch these are no submodules, and a subclass's __setattr__ is not our business.
        vars(module)[_STATE] = {"asked": module.training}
        vars(module)["train"] = mark = _Frozen(module)
        vars(module)["extra_repr"] = _FrozenRepr(module)
        mark(module.training)
        if isinstance(module, AbstractBatchNorm) and module.use_running is False and module.running_mean is not None:
            module.use_running = None  # else it would normalize by the batch in evaluation too
            vars(module)[_STATE]["unused"] = True
    return vars(module)[_STATE]


def _freeze(site: Site, affine: bool, *, statistics: bool = True) -> Change:
    module = site.module
    parts = ["running statistics"] if statistics else []
    before = _install(module)
    if affine:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                before.setdefault(name, parameter.requires_grad)
                parameter.requires_grad_(False)
        parts += ["gain and shift"] * any(p is not None for p in module._parameters.values())
    detail = ""
    if statistics and _initial(module):
        detail = "its statistics are the initial mean 0 and variance 1: recalibrate before relying on them"
    return Change(site.path, "frozen: " + ", ".join(parts), detail)


def _initial(module: nn.Module) -> bool:
    mean, var = (module.get_buffer(name) for name in running(module) or ())
    return bool((mean == 0).all()) and bool((var == 1).all())


def _learns(module: nn.Module) -> bool:
    # GRN, say, is named a norm and is none.
    norm = is_known_norm(module) or running(module) is not None or any(ignores_scale(module, x) for x in inputs(module))
    return norm and any(p is not None and p.requires_grad for p in module._parameters.values())
