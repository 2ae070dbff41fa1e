"""Norms through which no signal comes."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import Answer, Case, Evidence, Finding, NotShownError, Severity, answers, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_RESPONSE, _SHARE, _GAIN, _MINORITY = 0.3, 0.5, 0.1, 0.1


def _groups(width: int, *, each: int = 2) -> nn.Module:
    """A group norm of which each group has so many channels."""
    return nn.GroupNorm(width // each, width)


def _drawn(width: int, *, kind: Any = nn.BatchNorm2d, deviation: float = 0.02) -> nn.Module:
    """A norm whose gains are drawn about 0, as by a scheme that was meant for weights."""
    norm = kind(width)
    nn.init.normal_(norm.weight, 0.0, deviation)
    return norm


class _Pooled(nn.Module):
    """Convolutions, and a norm on maps of one position."""

    def __init__(self, norm: examples.Norm) -> None:
        super().__init__()
        self.conv, self.pool, self.mix = nn.Conv2d(3, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1)
        self.norm, self.head = norm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.mix(self.pool(torch.relu(self.conv(x)))))).flatten(1))


class _OneByOne(nn.Module):
    """A layer norm over an axis of one value, as where features are embedded one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.embed, self.head = nn.LayerNorm(1), nn.Linear(1, 6), nn.Linear(72, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.embed(self.norm(x.unsqueeze(2)))).flatten(1))


def _small(scale: float, net: examples.Net = examples.mlp, **options: Any) -> Case:
    """A set-up whose data are so small that a norm on them works on its eps."""
    case = examples.healthy(net, trained=0, **options)
    shape = options.get("shape") or examples.SHAPES[net]
    case.loader = [(scale * x, y) for x, y in examples.data(shape, mean=0.0, scale=1.0)]
    return case


def _first(norm: nn.Module) -> nn.Module:
    return nn.Sequential(norm, nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def _of_one_share(share: float) -> Case:
    """A layer norm on samples of which each has the same variance, so that eps leaves this share of it."""
    x = examples.two_values(0.0, (1e-5 * share / (1 - share)) ** 0.5).T.contiguous()
    return examples.alone(nn.LayerNorm(32), [torch.cat([x, -x])] * 3, then=[nn.Linear(32, 2)])


def _with_gains(size: float, *, minority: int = 4) -> Case:
    norm = examples.batch_norm(12)
    with torch.no_grad():
        norm.weight.copy_(torch.where(torch.arange(12) < minority, -size, size))
    stream = torch.Generator().manual_seed(0)
    return examples.alone(norm, [torch.randn(32, 12, generator=stream)] * 3, then=[nn.Linear(12, 2)])


def _zero_gains(model: nn.Module) -> None:
    """The last gain of each residual branch has started at zero, and has moved a little since."""
    for index, block in enumerate(model.get_submodule("blocks").children()):
        stream = torch.Generator().manual_seed(index)
        nn.init.normal_(examples.norms(block)[-1].weight, 0.0, 0.02, generator=stream)


class NormWithoutSignal(AbstractRule):
    r"""No signal comes through a norm: it puts out a constant, signs, or next to nothing.

    ## Finds
    A copy of each norm, of whatever class, is given the values of a training batch, and its answers show one of three
    defects. A small change of its input does not change its output: it normalizes one value by itself (``GroupNorm(C,
    C)`` on maps of one position, ``LayerNorm(1)``) and puts out its shift, or two values, of which it puts out the
    signs. Or eps is larger than the variance, var / (var + eps) < 0.5 in the median over values. Or the median gain is
    below 0.1 in size and a tenth of the gains have the other sign, as gains have that were drawn about zero; unless all
    that reads the norm's output adds it to something: such a norm ends a residual branch, whose gains start at zero on
    purpose. Norms that normalize by running statistics, inputs that are the same in every sample, and constant parts
    of an input (padding) are not judged.

    Calibrated over six seeds: planted defects found, 30 of 30; false alarms on 47 healthy set-ups under six seeds,
    0 of 282.

    ## Why it hurts
    What is before the norm does not reach what is behind it, or as its sign alone, with gradients of zero or spikes
    where two values are nearly the same; the network learns from whatever goes around the norm. Below eps, the norm
    does not normalize, and its output is nearly zero. Gains about zero let a hundredth through, half of it with the
    other sign.

    ## Fix
    None that is mechanical: give the norm more values (fewer groups, another axis) or take it out; scale the input, or
    make eps smaller; start gains at 1.
    """

    CODE = "NS138"
    SLUG = "norm-without-signal"
    SEVERITY = Severity.WARNING
    SOURCES = ("pytorch/pytorch#19250", "arXiv:1706.02677 section 5.1: gains of zero on purpose")
    SICK = (
        examples.Planted(
            partial(examples.healthy, partial(_Pooled, partial(_groups, each=1)), shape=(3, 8, 8)), ["norm"]
        ),
        examples.Planted(partial(examples.healthy, examples.mlp, norm=_groups), ["1", "4", "7"]),
        examples.Planted(partial(examples.healthy, _OneByOne, shape=(12,)), ["norm"]),
        examples.Planted(partial(_small, 1e-4, partial(_first, nn.LayerNorm(12)), shape=(12,)), ["0"]),
        examples.Planted(partial(examples.healthy, examples.cnn, norm=_drawn, trained=0), ["1", "5"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn, norm=partial(_groups, each=4)),
        partial(examples.healthy, examples.residual, trained=0, change=_zero_gains),
        partial(_small, 1e-4, partial(_first, nn.LayerNorm(12, eps=1e-12)), shape=(12,)),
    )
    NEAR = (
        examples.Near(_of_one_share, found=0.49, quiet=0.51),
        examples.Near(_with_gains, found=0.098, quiet=0.102),
        examples.Near(lambda minority: _with_gains(0.05, minority=minority), found=2, quiet=1),
        examples.Near(
            lambda each: examples.healthy(examples.mlp, norm=partial(_groups, each=each), width=12, trained=0),
            found=2,
            quiet=3,
        ),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Ask each norm for its answers."""
        found = answers(evidence.case)
        mute = {path: answer.response for path, answer in found.items() if answer.response < _RESPONSE}
        faint = {p: answer.share for p, answer in found.items() if p not in mute and answer.share < _SHARE}
        if mute:
            yield self._mute(mute, found)
        if faint:
            yield self.finding(
                f"{counted(len(faint), 'norm works', 'norms work')} below eps: it leaves {min(faint.values()):.2g} of "
                "the variance",
                list(faint),
                quantity="median of var / (var + eps)",
                measured=min(faint.values()),
                bound=_SHARE,
                cost="the norm does not normalize, and puts out next to nothing",
                fix="scale what comes in, or give the norm a smaller eps",
            )
        yield from self._gains({path: answer for path, answer in found.items() if path not in mute}, evidence)

    def _mute(self, mute: Mapping[str, float], found: Mapping[str, Answer]) -> Finding:
        constant = [path for path in mute if found[path].share == 0]
        signs = len(mute) - len(constant)
        said = [f"{counted(len(constant), 'norm puts', 'norms put')} out a constant"] if constant else []
        said += [f"{counted(signs, 'norm puts', 'norms put')} out signs alone"] if signs else []
        return self.finding(
            f"{' and '.join(said)}: a change of the input by a thousandth does not change the output",
            list(mute),
            quantity="relative change of the output over that of the input",
            measured=max(mute.values()),
            bound=_RESPONSE,
            cost="what is before the norm is not learnt by what is behind it",
            fix="give each mean and variance more values: fewer groups, another axis, or no norm there",
        )

    def _gains(self, found: Mapping[str, Answer], evidence: Evidence) -> Iterable[Finding]:
        drawn = {
            path: answer.gain
            for path, answer in found.items()
            if answer.gain is not None and max(answer.gain, answer.output) < _GAIN and answer.minority >= _MINORITY
        }
        try:
            ends = {path for path, readers in evidence.wiring.readers.items() if readers == {"sum"}} if drawn else set()
        except NotShownError:
            return
        drawn = {path: gain for path, gain in drawn.items() if path not in ends}
        if not drawn:
            return
        yield self.finding(
            f"gains of {counted(len(drawn), 'norm')} lie about zero: their median size is {min(drawn.values()):.2g}, "
            "and they have both signs",
            list(drawn),
            quantity="median size of the gains",
            measured=min(drawn.values()),
            bound=_GAIN,
            cost="next to nothing comes through, part of it with the other sign",
            fix="start gains at 1: a scheme for weights was used on norms too",
        )
