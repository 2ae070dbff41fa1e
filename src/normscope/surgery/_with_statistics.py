"""Which norms are recalibrated, and why the others are not."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normscope.modules.sites import running
from normscope.records.numbers import counted
from normscope.surgery._report import Skip
from normscope.surgery._sites import BATCH, Only, Site, norms
from normscope.surgery._trying import updates
from normscope.surgery.foreign import Placed, readings, with_batch_norms
from normscope.surgery.freeze import is_frozen
from normscope.surgery.functional import without_modules

_THAWED = "frozen=True recalibrates it"


def norms_with_statistics(
    model: nn.Module, only: Only, frozen: bool
) -> tuple[list[Placed], list[Skip], tuple[str, ...]]:
    """Return the norms to be measured, those of other libraries with a known norm in their place."""
    chosen: list[Placed] = []
    skipped: list[Skip] = []
    found = norms(model, only)
    for site in found:
        why = _why_not(site, model, frozen)
        if why is None and isinstance(site.module, _BatchNorm):
            chosen.append(Placed(site, site))
        elif why is None:
            placed, left, _ = with_batch_norms([site], readings([site]))
            kept = [each for each in placed if frozen or not is_frozen(each.known.module)]
            for each in placed:
                if each not in kept:
                    each.put_back()
                    left.append(Skip(site.path, f"is frozen by its class: {_THAWED}"))
            chosen += kept
            skipped += left
        elif why or only is not None:
            skipped.append(Skip(site.path, why or f"{type(site.module).__name__} has no running statistics"))
    notes = without_modules(model, found)
    if found and not chosen and not skipped:
        kinds = ", ".join(dict.fromkeys(type(site.module).__name__ for site in found))
        notes = (f"no norm of the model has running statistics: {counted(len(found), 'norm')} ({kinds})", *notes)
    return chosen, skipped, notes


def _why_not(site: Site, model: nn.Module, frozen: bool) -> str | None:
    """Say why a norm is not recalibrated, in no words where its kind has nothing to recalibrate; None if it is."""
    module: Any = site.module
    if isinstance(module, _InstanceNorm):
        return "an instance norm's running statistics are averages over samples" if running(module) else ""
    if running(module) is None and any(
        "running" in key and value is not None for key, value in module._buffers.items()
    ):
        return f"{type(module).__name__} keeps running statistics of its own kind"
    if running(module) is None:
        return "has no running statistics" if isinstance(module, _BatchNorm) else ""
    if frozen:
        return None
    if is_frozen(module):
        return f"is frozen: {_THAWED}"
    if model.training and not module.training:
        return f"is in evaluation mode in a model that trains: {_THAWED}"
    plain = type(module) in BATCH or not isinstance(module, _BatchNorm)
    return None if plain or updates(module, training=True) is not False else f"is frozen by its class: {_THAWED}"
