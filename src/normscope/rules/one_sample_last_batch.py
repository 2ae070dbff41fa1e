"""A last batch of one sample."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from normscope.evidence import Case, Evidence, Finding, Severity, examples, loader_anew
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_STEPS, _USUAL = 8, 0.8  # batches from which on a size is usual, and their share that has it


def _loader(samples: int, batch: int, shape: tuple[int, ...], *, drop_last: bool = False) -> DataLoader[Any]:
    stream = torch.Generator().manual_seed(5)
    x, y = torch.randn(samples, *shape, generator=stream), torch.randint(4, (samples,), generator=stream)
    return DataLoader(TensorDataset(x, y), batch_size=batch, drop_last=drop_last)


def _case(net: Any, samples: int, batch: int, *, drop_last: bool = False, **options: Any) -> Case:
    return examples.healthy(net, loader=_loader(samples, batch, examples.SHAPES[net], drop_last=drop_last), **options)


class OneSampleLastBatch(AbstractRule):
    r"""The last batch of an epoch has one sample, or few.

    ## Finds
    The loader's ``batch_size`` and the length of its data leave a remainder: of one sample, with a norm in train mode
    that is given one value a channel for each sample (an error: torch raises there, at the end of the first epoch); or
    of less than a quarter of a batch (a warning). Loaders that say neither their length nor their batch are not judged.
    While training goes on, a batch of less than a quarter of the usual size.

    ## Why it hurts
    The variance of one value is zero: torch refuses it with "Expected more than 1 value per channel", hours into an
    epoch. A few samples give statistics that are mostly noise, and they enter the running statistics with the weight of
    a full batch.

    ## Fix
    Unsafe: the loader is made anew with ``drop_last=True``, so that an epoch leaves out the remainder (other samples
    each time if it shuffles); not if that would leave no batch.
    """

    CODE = "NS104"
    SLUG = "one-sample-last-batch"
    SEVERITY = Severity.ERROR
    KEEPS = ("training", "evaluation")
    SOURCES = ("fastai/fastai#1352", "RasmussenLab/vamb#425")
    SICK = (
        partial(_case, examples.mlp, 65, 16),
        partial(_case, examples.mlp, 97, 32, depth=2),
        partial(_case, examples.cnn, 66, 16),
        partial(_case, examples.residual, 97, 32),
    )
    WELL = (
        partial(_case, examples.mlp, 64, 16),
        partial(_case, examples.mlp, 65, 16, drop_last=True),
        partial(_case, examples.cnn, 72, 16),
    )
    NEAR = (
        examples.Near(lambda rest: _case(examples.mlp, 64 + rest, 16, trained=0), found=3, quiet=4),
        examples.Near(lambda rest: _case(examples.mlp, 64 + rest, 16, trained=0), found=1, quiet=0),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Divide the number of samples by the batch size; while training goes on, look at the batches so far."""
        if evidence.under_way:
            yield from self._seen(evidence)
            return
        loader = evidence.case.loader
        size, samples = getattr(loader, "batch_size", None), _length(loader)
        if not size or not samples or getattr(loader, "drop_last", True) or samples < size:
            return
        rest = samples % size
        if not rest or rest >= size / 4 or not evidence.updating:
            return
        calls = [call for call in evidence.training.calls if call.training]
        single = sorted({call.path for call in calls if call.positions == 1 and call.samples == size})
        places = single if rest == 1 and single else list(evidence.updating)
        breaks = rest == 1 and bool(single)
        yield self.finding(
            f"{counted(samples, 'sample')} in batches of {size} leave a last batch of {rest}"
            + (": training raises there" if breaks else ""),
            places,
            quantity="samples in the last batch",
            measured=float(rest),
            bound=size / 4,
            cost="training stops with an error at the end of the first epoch"
            if breaks
            else f"{counted(rest, 'sample enters', 'samples enter')} the running statistics with the weight of {size}",
            fix="give the loader drop_last=True",
            severity=Severity.ERROR if breaks else Severity.WARNING,
        )

    def _seen(self, evidence: Evidence) -> Iterable[Finding]:
        total = sum(evidence.sizes.values())
        if total < _STEPS or not evidence.updating:
            return
        usual, rest = max(evidence.sizes, key=evidence.sizes.__getitem__), min(evidence.sizes)
        # Where sizes vary by design, as with a budget of words, no size is the usual one.
        if evidence.sizes[usual] < _USUAL * total or rest >= usual / 4:
            return
        yield self.finding(
            f"{evidence.sizes[rest]} of {counted(total, 'batch', 'batches')} "
            f"{'has' if evidence.sizes[rest] == 1 else 'have'} {counted(rest, 'sample')}, where "
            f"{usual} are usual",
            list(evidence.updating),
            quantity="samples in the smallest batch",
            measured=float(rest),
            bound=usual / 4,
            cost=f"{counted(rest, 'sample enters', 'samples enter')} the running statistics with the weight of {usual}",
            fix="give the loader drop_last=True",
            severity=Severity.WARNING,
            fixable=False,
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Make the loader anew, without the remainder."""
        case.loader = loader_anew(case.loader, drop_last=True)
        return "made the loader anew with drop_last=True: take it from case.loader"


def _length(loader: Any) -> int | None:
    sampler = getattr(loader, "sampler", None)
    try:
        return len(sampler) if sampler is not None else None
    except TypeError:
        return None
