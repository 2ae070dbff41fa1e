"""What the repairs of several rules do."""

from contextlib import suppress
from typing import Any

from torch.utils.data import DataLoader

from normscope._errors import NormscopeError, UsageError
from normscope.evidence.arms import example_of
from normscope.evidence.case import Case
from normscope.evidence.noise import noisy_modules, quiet_call
from normscope.records import Finding
from normscope.surgery import convert, recalibrate

_LOADER_OPTIONS = (
    "batch_size",
    "sampler",
    "num_workers",
    "collate_fn",
    "pin_memory",
    "drop_last",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
)


class RefusedFixError(NormscopeError):
    """A fix that cannot be made, or would harm; the message is the reason."""


def modules_of(case: Case, finding: Finding) -> list[Any]:
    """Return the modules at the places of a finding."""
    modules = dict(case.model.named_modules())
    return [modules[place] for place in finding.places]


def convert_places(case: Case, finding: Finding, to: str, **options: Any) -> int:
    """Convert the norms of a finding as ``surgery.convert`` does, and return how many were.

    Raises:
        RefusedFixError: None could be.
    """
    with suppress(UsageError):  # it may be called with what surgery takes for no example: then its classes have to do
        options |= {"example": example_of(case)}
    report = convert(case.model, to, only=list(finding.places), **options)
    if not report.done:
        raise RefusedFixError("; ".join(map(str, report.skipped[:3])))
    return len(report.done)


def recalibrate_places(case: Case, finding: Finding, *, frozen: bool = True) -> int:
    """Take the running statistics at the places of a finding anew from the training data, noise off.

    A norm in eval mode in a model that trains is left as it is: somebody wants its statistics kept. Those of a new
    layer, mean 0 and variance 1, are not worth it.

    Args:
        case: The set-up, in the modes in which it was handed over.
        finding: Its places must be norms.
        frozen: Whether norms that are frozen are recalibrated too, where they hold the statistics of a new layer.

    Returns:
        How many norms were recalibrated.

    Raises:
        RefusedFixError: All are to be left as they are.
    """
    modules = dict(zip(finding.places, modules_of(case, finding), strict=True))
    trains = any(module.training for module in case.model.modules())
    places = [path for path, module in modules.items() if not (trains and not module.training) or _new(module)]
    if not places:
        raise RefusedFixError(
            "in evaluation mode in a model that trains, so their statistics are to stay: normscope.surgery.freeze "
            "holds them through model.train()"
        )
    call = quiet_call(case, noisy_modules(case))
    return len(recalibrate(case.model, case.loader, call, only=places, frozen=frozen).done)


def _new(module: Any) -> bool:
    return not bool(module.running_mean.any()) and bool((module.running_var == 1).all())


def loader_anew(loader: Any, **changed: Any) -> DataLoader[Any]:
    """Make a ``DataLoader`` like another one, with some options changed; ``shuffle`` takes the place of its sampler."""
    options = {name: getattr(loader, name) for name in _LOADER_OPTIONS if name != "sampler" or "shuffle" not in changed}
    return DataLoader(loader.dataset, **(options | changed))
