"""Running statistics that are not those of the data."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn

from normscope.evidence import Case, Evidence, Finding, Severity, examples, recalibrate_places
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_SHIFT, _RATIO, _CHANNELS, _LOSS = 0.5, (0.5, 2.0), 0.1, 1.2
# Where no norm is off by itself. Running statistics follow weights that move, at some cost: in 43 healthy set-ups of
# two seeds up to 1.58 times the loss. A share of three standard errors over four batches is chance in 3 of 100.
_SUM, _ERRORS = 2.0, 3.0


def _spoil(model: nn.Module, *, mean: float = 0.0, factor: float = 1.0) -> None:
    with torch.no_grad():
        for norm in examples.norms(model):
            norm.running_mean.add_(mean * norm.running_var.sqrt())
            norm.running_var.mul_(factor)


def _spoil_one_more(model: nn.Module) -> None:
    """Have all norms lag a little, and one of them so far that it is off by itself."""
    _spoil(model, factor=0.7)
    _spoil(examples.norms(model)[3], factor=0.5)


def _planted(*, shift: float = 0.0, factor: float = 1.0, off: int = 20, constant: float = 0.0) -> Case:
    """A norm on the data whose running statistics are wrong by known amounts, and a loss that shows it.

    Args:
        shift: Distance of the running means from the data's, in standard deviations.
        factor: Running variance over that of the data.
        off: How many of 20 channels are wrong.
        constant: What is added to the loss, which is 1 where the output has a mean square of 1.
    """
    pooled = 4.0 * 320 / 319  # of ten batches of 32
    norm = examples.batch_norm(20, mean=3.0, variance=pooled, momentum=0.0)
    norm.running_mean[:off] += shift * (pooled + norm.eps) ** 0.5
    norm.running_var[:off] *= factor

    def loss_fn(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return 1 + constant + 10 * examples.mean_square(model, batch).log().square()

    return examples.alone(norm, [examples.two_values(3.0, 2.0, channels=20)] * 10, loss_fn=loss_fn)


def _chain(constant: float, *, norms: int = 8, factor: float = 0.9) -> Case:
    """Norms one behind another, none of them far off, whose outputs grow by ``1 / factor`` in mean square at each."""
    pooled = 4.0 * 320 / 319
    several = [examples.batch_norm(variance=factor * (pooled if index == 0 else 320 / 319)) for index in range(norms)]
    for norm in several:
        norm.momentum = 0.0

    def loss_fn(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return examples.mean_square(model, batch) + constant

    return examples.alone(several[0], [examples.two_values(0.0, 2.0)] * 10, then=several[1:], loss_fn=loss_fn)


class TrainEvalGap(AbstractRule):
    r"""Running statistics are not those of the data, and evaluation pays for it.

    ## Finds
    Over at least ten training batches the statistics of what each norm is given are pooled by the law of total
    variance, dropout off, at the present weights. A channel is off if its running mean lies more than 0.5 standard
    deviations from the pooled one, or its running variance outside half to twice the pooled one. A norm is off if more
    than 10 % of its channels are. It is reported if, besides, the loss in eval mode falls to less than 1/1.2 when the
    pooled statistics are put in the place of the running ones, so that a shift without consequence stays silent. Where
    no norm is off by itself, small lags of several norms, or of a norm that a pass calls several times, can still
    multiply: they are reported together if the loss falls to less than half, and by more than three standard errors of
    the fall over batches; so are all where one or a few are off and recalibrating these alone would leave the loss more
    than twice as high. A network in which nothing shows training (every norm as made, an optimizer without state) is
    left alone; so are norms whose statistics are to stay: frozen ones, and those that are in eval mode, as handed over
    or in the steps, in a model that trains.

    ## Why it hurts
    Evaluation normalizes by numbers that the network was not trained with: every following layer gets inputs of
    another mean and scale. Running statistics lag behind the weights at high learning rates and small momentum, are
    left behind by weights that are loaded, averaged or set otherwise, and are spoilt by batches of other data.

    ## Fix
    Unsafe: ``surgery.recalibrate`` on the training data, which changes what evaluation computes; the weights stay.
    """

    CODE = "NS102"
    SLUG = "train-eval-gap"
    SEVERITY = Severity.ERROR
    NEEDS = ("evaluation",)
    KEEPS = ("training",)
    SOURCES = ("pytorch/pytorch#4741", "pytorch/pytorch#5406", "keras-team/keras#6977", "keras-team/keras#7265")
    SICK = (
        partial(examples.healthy, examples.mlp, change=partial(_spoil, mean=2.0)),
        partial(examples.healthy, examples.cnn, change=partial(_spoil, factor=30.0)),
        partial(examples.healthy, examples.residual, change=partial(_spoil, mean=-1.5, factor=0.05)),
        partial(examples.healthy, examples.mlp, depth=20, change=partial(_spoil, factor=0.7)),
        partial(examples.healthy, examples.mlp, depth=20, change=_spoil_one_more),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn),
        partial(examples.healthy, examples.residual, change=partial(_spoil, factor=1.3)),
    )
    NEAR = (
        examples.Near(lambda shift: _planted(shift=shift), found=0.51, quiet=0.49),
        examples.Near(lambda factor: _planted(factor=factor), found=0.49, quiet=0.51),
        examples.Near(lambda factor: _planted(factor=factor), found=2.04, quiet=1.96),
        examples.Near(lambda off: _planted(shift=3.0, off=off), found=3, quiet=2),
        examples.Near(lambda constant: _planted(shift=1.0, constant=constant), found=22.0, quiet=24.0),
        examples.Near(_chain, found=0.3, quiet=0.34),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Hold the buffers against the pooled statistics, then the losses against each other."""
        if not evidence.tracking or evidence.untrained:
            return
        together = [path for path in evidence.tracking if path not in evidence.held]
        if not together:
            return
        seen = evidence.statistics
        places, worst, off_most = [], 0.0, 0.0
        for path in together:
            shift, ratio = seen.shift[path].abs(), seen.ratio[path]
            off = (shift > _SHIFT) | (ratio < _RATIO[0]) | (ratio > _RATIO[1]) | ~torch.isfinite(shift + ratio)
            share = float(off.double().mean())
            if share > _CHANNELS:
                places.append(path)
                worst, off_most = max(worst, float(shift.max())), max(off_most, share)
        if not places and len(together) < 2 and not _is_called_again(evidence):  # nothing to add up
            return
        gap = evidence.gap
        paid = gap.of("running statistics")
        with_pooled = gap.eval - paid - gap.of("averaged weights") - gap.of("evaluation depends on the batch")
        if evidence.held or len(evidence.updating) < len(together):
            # The statistics of held norms stay, and the gap leaves those of norms that were handed over in eval mode.
            with_pooled = evidence.loss_with_pooled(together)
            paid = evidence.loss_with_pooled(()) - with_pooled
        with_running = with_pooled + paid
        excess = 1 + paid / max(abs(with_pooled), 1e-12)  # of the size of the loss: some losses are negative
        many = excess > _SUM and paid > _ERRORS * gap.error("running statistics")
        if not (many or (places and excess > _LOSS)):
            return
        far = len(places)
        if far and many and far < len(together):  # those far off may be the least of it: what do the others cost alone?
            left = evidence.loss_with_pooled(places) - with_pooled
            places = [] if 1 + left / max(abs(with_pooled), 1e-12) > _SUM else places
        yield self.finding(
            f"running statistics are not those of the data in {len(places)} of "
            f"{counted(len(evidence.tracking), 'norm')}: up to "
            f"{off_most:.0%} of a norm's channels are off, a mean by up to {worst:.2g} standard deviations"
            if places
            else f"running statistics lag a little in {counted(len(together), 'norm')}, {far or 'none'} of them far, "
            f"and {'together they make' if len(together) > 1 else 'from call to call that makes'} the loss "
            f"{excess:.3g} times as high",
            places or together,
            quantity="loss in eval mode over that with pooled statistics",
            measured=excess,
            bound=_LOSS if places else _SUM,
            cost=f"the loss in eval mode is {with_running:.4g}; with statistics of the data it is {with_pooled:.4g}",
            fix="put the statistics of the training data in the buffers: normscope.surgery.recalibrate(model, loader)",
            details={"shift": worst, "channels_off": off_most, "running_statistics": paid},
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Recalibrate the norms of the finding."""
        return f"recalibrated {counted(recalibrate_places(case, finding), 'norm')} on the training data"


def _is_called_again(evidence: Evidence) -> bool:
    """Whether a pass calls a norm several times, as that of a recurrent network does: a lag goes from call to call."""
    return any(call.place[1] > 0 for call in evidence.training.calls if call.path in evidence.updating)
