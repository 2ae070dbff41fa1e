r"""Set running statistics to those of the data.

**What it does.** The model is run over the data; every batch norm's running mean and variance become those of *all* the
values it was given, as if they had come in one batch. Batches of $n_b$ values with means $\mu_b$ and sums
of squared deviations $M_b$ are merged exactly, by the law of total variance (Chan, Golub & LeVeque, 1979),

$$\mu = \sum_b n_b \mu_b / n, \qquad \sigma^2 = \Bigl(\sum_b M_b + \sum_b n_b (\mu_b - \mu)^2\Bigr) / (n - 1),$$

in float64. So the split into batches does not matter and a short last batch weighs what it should; an average of the
batches' averages (``torch.optim.swa_utils.update_bn``) gives 2 samples the say of 64, and one that subtracts
$\mu^2$ from a mean square in float32 gives negative variances.

**What normalizes while the statistics are taken.** A choice, for every layer but the first:

- by default each norm being measured normalizes by its *batch*, as in training. One pass. The statistics are those of
  the network as it trains; they depend on the batch size, slightly for large batches. A batch of one value per channel,
  which cannot be normalized by itself, is normalized by the statistics pooled so far.
- ``sequential=True``: norms are measured one after another in order of execution, all before it using their *new*
  statistics. One pass per norm; the result is the fixed point of evaluation: no statistic depends on the batch size,
  and recalibrating again changes nothing. The loader must give the same data each time it is iterated.

**What counts.** A batch norm of this library that the model calls with a mask or lengths is given the statistics of
what the mask lets through: padding does not count. One that is called with a ``population`` is not measured there.
Options do not enter: renormalized and synchronised norms are measured like all others, merged over processes at the
end.

**Gradients.** Nothing is recorded for them, unless ``call`` takes gradients itself, as a loss with a gradient penalty
does: the first batch shows it.

**What is left alone.** Frozen norms (by ``surgery.freeze`` or ``layer.frozen``), and norms in evaluation mode in a
model that trains (someone put them there); ``frozen=True`` includes both. In a model that is in evaluation mode as a
whole, the norms are not taken to be frozen. All else is as before: modes, other buffers, gradients, hooks, random
state. If anything raises, so are the statistics.

**Replicas.** Where ``torch.distributed`` is initialised, moments are merged over all processes, in the order of ranks,
so that every replica has the same bits whatever its share of the data; loaders may differ in length or be empty. Under
``DistributedDataParallel`` the wrapped module is run, since the wrapper would wait for the others at every batch. An
error in one process is raised in all of them.

**Sources.** Izmailov et al., 2018 (arXiv:1803.05407, section 3.2) need it for averaged weights; Wu & Johnson, 2021
(arXiv:2105.07576, section 3) compare it with moving averages and with averaging moments.
"""

from collections.abc import Callable, Iterable, Sized
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from normscope._errors import DataError, UsageError, shown
from normscope.modules.call import call_batch, set_mode
from normscope.modules.gradients import WithoutGradient
from normscope.modules.state import traceless, transaction
from normscope.records.numbers import counted
from normscope.surgery._measure import Meter, Pooled, in_step
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery._sites import BATCH, Only, Site, norms
from normscope.surgery._with_statistics import norms_with_statistics


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    call: Callable[[nn.Module, Any], Any] | None = None,
    *,
    num_batches: int | None = None,
    only: Only = None,
    frozen: bool = False,
    dropout: bool = False,
    sequential: bool = False,
    unbiased: bool = True,
    preserve_rng: bool = True,
    progress: bool = False,
) -> Report:
    """Set the running statistics of batch norms to those of the data.

    Args:
        model: The model, changed in place: running mean, running variance, and ``num_batches_tracked``, which becomes
            the number of batches.
        loader: Gives batches, of whatever ``call`` takes.
        call: ``call(model, batch)`` runs the model on a batch. By default a tensor is the input, a tuple or list has
            the input first, a mapping gives keyword arguments; tensors are moved to the model's device.
        num_batches: How many batches to take; None for all. Where there are fewer, a note of the report says so.
        only: Which norms: None for all; a predicate of path and module; or names, of which ``*`` stands for anything.
        frozen: Whether frozen norms are recalibrated too. They stay frozen.
        dropout: Whether everything but the norms is in training mode meanwhile: dropout, noise, stochastic depth. Off
            gives the statistics that evaluation meets; on, those that training met.
        sequential: Whether norms are measured one after another, as described above.
        unbiased: Whether the running variance is the unbiased one, as torch's is.
        preserve_rng: Whether the random streams (torch's, NumPy's and Python's) are put back afterwards, the loader's
            shuffling included.
        progress: Whether a progress bar is shown on standard error.

    Returns:
        For each norm how far the old statistics were: ``mean_shift`` (largest and, as ``mean_shift_rms``, root mean
        square over channels, in units of the new standard deviation), ``variance_ratio_low`` and ``_high`` (new
        variance over old), ``count`` (values per channel; the fewest, where a mask has them differ). Norms skipped, and
        why. A note, where there were fewer batches than ``num_batches``.

    Raises:
        DataError: No batches, or no norm was given at least two values per channel.
        NonFiniteError: A norm was given values that are not finite.
        UsageError: ``loader`` gives no batches at all, a name in ``only`` fits no norm, or ``sequential`` over an
            iterator, which ends after one pass.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> _ = recalibrate(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[8.0]])])
        >>> model[0].running_mean, model[0].running_var
        (tensor([4.]), tensor([13.]))
    """
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise UsageError(
            f"loader gives batches of input, such as a list of tensors or a DataLoader, not {shown(loader)}"
        )
    if num_batches is not None and (not isinstance(num_batches, int) or num_batches < 1):
        raise UsageError(f"num_batches is a number of batches: give at least 1 or None, not {shown(num_batches)}")
    if sequential and iter(loader) is loader:
        raise UsageError("sequential=True passes over the data once per norm: give a list or a loader, not an iterator")
    call = call or call_batch
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    with transaction(model):
        placed, skipped, notes = norms_with_statistics(model, only, frozen)
        if not placed:
            with in_step(model, {}):
                _require(loader)
            return Report(model, (), tuple(skipped), notes)
        passes = _Passes(inner, loader, call, num_batches, dropout, preserve_rng, progress)
        chosen = [Site(each.old.path, each.known.module, each.known.slots) for each in placed]
        pooled = _one_by_one(passes, chosen, unbiased) if sequential else _at_once(passes, chosen, unbiased)
        for each in placed:
            each.put_back()
        report = _report(model, chosen, pooled, passes, skipped)
        return replace(report, notes=(*report.notes, *notes))


def _report(
    model: nn.Module, chosen: list[Site], pooled: dict[str, Pooled], passes: "_Passes", skipped: list[Skip]
) -> Report:
    measured = [site for site in chosen if pooled[site.path].moments is not None]
    if not measured:
        raise DataError("no norm was called with the data: is this the model that call() runs?")
    skipped += [
        Skip(site.path, "was not called with this data, or with fewer than two values per channel")
        for site in chosen
        if site not in measured
    ]
    done = tuple(_change(site, pooled[site.path], passes.old) for site in measured)
    return Report(model, done, tuple(skipped), passes.notes())


class _Passes:
    """Passes over the data that leave nothing behind but moments."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        call: Callable[[nn.Module, Any], Any],
        num_batches: int | None,
        dropout: bool,
        preserve_rng: bool,
        progress: bool,
    ) -> None:
        self.model, self.loader, self.call, self.num_batches = model, loader, call, num_batches
        self.dropout, self.preserve_rng, self.progress = dropout, preserve_rng, progress
        self.old: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        self.order: list[str] = []
        self.taken = 0
        self.without_gradient = WithoutGradient()

    def measure(self, chosen: list[Site], *, first_batch: bool = False, settled: bool = False) -> dict[str, Pooled]:
        """Return the moments of what each chosen norm is given.

        Args:
            chosen: The norms.
            first_batch: Whether one batch is enough: to see the order of execution.
            settled: Whether the norms, too, normalize by their running statistics.
        """
        meters = {site.path: Meter(site.path, site.module, settled=settled) for site in chosen}

        def anew() -> None:
            for meter in meters.values():
                meter.moments = None
            self.order.clear()

        with in_step(self.model, meters) as step, traceless(self.model, streams=self.preserve_rng), torch.no_grad():
            self._modes()
            for meter in meters.values():
                meter.attach(self.order)
            limit = 1 if first_batch else self.num_batches
            for number, batch in enumerate(self._batches(limit)):
                step.batch = number
                self.without_gradient(self.call, self.model, batch, again=anew)
                step.batches = number + 1
        self.taken = step.batches
        return step.pooled

    def notes(self) -> tuple[str, ...]:
        """Say whether the last pass had fewer batches than were asked for."""
        if self.num_batches is None or self.taken >= self.num_batches:
            return ()
        return (f"the loader gave {counted(self.taken, 'batch', 'batches')} of the {self.num_batches} asked for",)

    def _modes(self) -> None:
        """Put everything into the mode asked for and each norm into evaluation; the meters choose for their own."""
        set_mode(self.model, self.dropout)
        for site in norms(self.model):
            site.module.training = False

    def _batches(self, limit: int | None) -> Iterable[Any]:
        batches = self.loader
        if self.progress:
            from rich.console import Console
            from rich.progress import track

            total = limit if limit is not None else len(batches) if isinstance(batches, Sized) else None
            batches = track(batches, "recalibrating", total, console=Console(stderr=True))
        for number, batch in enumerate(batches):
            yield batch
            if limit is not None and number + 1 >= limit:
                return


def _at_once(passes: _Passes, chosen: list[Site], unbiased: bool) -> dict[str, Pooled]:
    pooled = passes.measure(chosen)
    for site in chosen:
        _write(site.module, pooled[site.path], unbiased, passes.old)
    return pooled


def _one_by_one(passes: _Passes, chosen: list[Site], unbiased: bool) -> dict[str, Pooled]:
    first = passes.measure(chosen, first_batch=True, settled=True)
    # Ranks whose loader is empty saw no order; those that saw one agree to that of the lowest rank that did.
    order = next(iter(first.values())).order
    by_path = {site.path: site for site in chosen}
    pooled = {path: Pooled(None, 0, order) for path in by_path}
    for path in order:
        pooled |= passes.measure([by_path[path]], settled=True)
        _write(by_path[path].module, pooled[path], unbiased, passes.old)
    return pooled


def _require(loader: Iterable[Any]) -> None:
    if isinstance(loader, Sized) and len(loader) == 0:
        raise DataError("the loader gave no batches: there are no statistics to take")


@torch.no_grad()
def _write(module: Any, pooled: Pooled, unbiased: bool, old: dict[nn.Module, Any]) -> None:
    if pooled.moments is None:
        return
    old.setdefault(module, (module.running_mean.clone(), module.running_var.clone()))
    moments = pooled.moments
    module.running_mean.copy_(moments.mean + moments.low)
    module.running_var.copy_(moments.variance(unbiased=unbiased))
    if module.num_batches_tracked is not None:
        module.num_batches_tracked.fill_(pooled.batches)


def _change(site: Site, pooled: Pooled, old: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]) -> Change:
    moments, eps = pooled.moments, site.module.eps
    assert moments is not None
    mean, var = (value.double() for value in old[site.module])
    new = moments.variance()
    shift = (moments.mean + moments.low - mean).abs() / (new + eps).sqrt()  # type: ignore[operator]
    ratio = (new + eps) / (var + eps)  # type: ignore[operator]
    numbers = {
        "mean_shift": shift.max().item(),
        "mean_shift_rms": shift.square().mean().sqrt().item(),
        "variance_ratio_low": ratio.min().item(),
        "variance_ratio_high": ratio.max().item(),
        "count": float(torch.as_tensor(moments.count).min()),
    }
    kept = "" if type(site.module) in BATCH else f"a {type(site.module).__name__}: the values it was given are pooled"
    return Change(site.path, "recalibrated", kept, numbers)
