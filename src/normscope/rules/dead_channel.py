"""Channels that carry nothing."""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import Activation, Case, Evidence, Finding, Severity, examples, look
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_CONSTANT, _SMALL, _SHARE = 10.0, 1e-3, 0.05
_CLOSED, _LIVELY = 0.9, 0.1  # share of dead units; how often those that live must be active if the others are no code
_UNITS, _VALUES = 8, 64  # fewer units die by chance, fewer values show nothing
_RELU = re.compile(r"\b(call (function|method|module) )?(aten\.)?(relu_?|clamp_min)(\.default)?\b")


def _kill(model: nn.Module, how: str) -> None:
    norm = examples.norms(model)[-1]
    with torch.no_grad():
        if how == "shift":  # far below zero, whatever comes: the ReLU behind never opens
            norm.bias[:3] = -20.0
        if how == "gain":
            norm.weight[:3] = 1e-6


def _on_data(norm: examples.Norm = nn.BatchNorm1d) -> nn.Module:
    """A norm on the data themselves."""
    return nn.Sequential(norm(12), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def _constant_columns() -> Case:
    """A table three of whose columns never vary but for rounding."""
    case = examples.healthy(_on_data, shape=(12,))
    assert isinstance(case.loader, list)
    constant = torch.arange(12) < 3
    case.loader = [(torch.where(constant, 0.1 + 1e-7 * x, x), y) for x, y in case.loader]
    with torch.no_grad():
        for norm in examples.norms(case.model):
            norm.running_mean[:3], norm.running_var[:3] = 0.1, 1e-12
    return case


def _zero_gains(model: nn.Module) -> None:
    """The last gain of each residual branch starts at zero, as recipes have it."""
    for block in model.get_submodule("blocks").children():
        nn.init.zeros_(examples.norms(block)[-1].weight)


def _planted(count: int = 6, *, gain: float = 1.0, deviation: float = 1.0, shift: float = 0.0) -> Case:
    """A norm with a ReLU on the data, and some of its 100 channels with a gain, a deviation or a shift of their own."""
    norm, own = examples.batch_norm(100), torch.arange(100) < count
    deviations = torch.where(own, deviation, 1.0)
    with torch.no_grad():
        norm.weight[own], norm.bias[own], norm.running_var[:] = gain, shift, deviations.square()
    x = examples.two_values(0.0, deviations, channels=100)
    return examples.alone(norm, [x] * 4, then=[nn.ReLU()])


class DeadChannel(AbstractRule):
    r"""Channels of a norm carry nothing: constant before it, scaled to nothing by it, or cut off behind it.

    ## Finds
    Over a few training batches, channels of norms in train mode for which one of these holds: the input's variance is
    below ``eps`` / 10000, or below 10 ``eps`` and a millionth of that of the layer's median channel, in every batch and
    in the running variance, and the gain is not small; the gain is below a thousandth of the layer's median gain, but
    not zero, after training; or the output is never above zero and nobody but ReLU reads it. Found are networks in
    which more than 5 % of all channels are dead. Gains that are zero exactly (residual branches at initialization,
    pruned channels) are no defect.

    Wherever no such norm stands before it, a ReLU, module or function, of which more than 90 % of the units are never
    above zero in those batches: of 8 units at least, each seen at 64 values or more. Where some live, they must be
    active at a tenth of these (a sparse code has many units that few batches do not show), and there must be 64
    samples. Of fewer than 8 units all must be dead, and no gradient may reach anything before them.

    Calibrated over six seeds: planted defects found, 30 of 30, and layers closed by their shifts in networks without
    norms, 24 of 24; false alarms on 47 healthy set-ups under six seeds, 0 of 282.

    ## Why it hurts
    Dead channels cost time and memory and learn nothing. A channel that is constant but for rounding is worse: divided
    by the root of ``eps`` its rounding comes out 300 times larger, and another machine rounds otherwise.

    ## Fix
    Unsafe, since they could come alive again: the channels are pruned by setting gain to zero, and the shift too where
    ReLU cuts it off. Outputs on the data seen change by no more than what was found to be next to nothing.
    """

    CODE = "NS121"
    SLUG = "dead-channel"
    SEVERITY = Severity.WARNING
    KEEPS = ("training", "evaluation")  # such channels hardly show in the outputs
    SOURCES = ("LeelaChessZero/lc0#779",)
    SICK = (
        examples.Planted(partial(examples.healthy, examples.mlp, change=partial(_kill, how="shift")), ["7"]),
        examples.Planted(partial(examples.healthy, examples.cnn, change=partial(_kill, how="gain")), ["5"]),
        examples.Planted(
            partial(examples.healthy, examples.residual, change=partial(_kill, how="gain")), ["blocks.1.4"]
        ),
        _constant_columns,
        examples.Planted(partial(examples.healthy, examples.sequence, change=partial(_kill, how="shift")), ["norm2"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn),
        partial(examples.healthy, examples.residual, trained=0, change=_zero_gains),
        partial(examples.healthy, examples.residual),
    )
    NEAR = (
        examples.Near(lambda count: _planted(count, gain=1e-6), found=6, quiet=5),
        examples.Near(lambda gain: _planted(gain=gain), found=0.95e-3, quiet=1.05e-3),
        examples.Near(lambda deviation: _planted(deviation=deviation), found=0.95e-3, quiet=1.05e-3),
        examples.Near(lambda shift: _planted(shift=shift), found=-1.01, quiet=-0.99),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look for the three kinds at norms, and for activations at which nothing passes."""
        if evidence.updating:
            yield from self._at_norms(evidence)
        closed = {act.place: share for act, share in _closed(evidence)}
        if not closed:
            return
        yield self.finding(
            f"{counted(len(closed), 'ReLU lets', 'ReLUs let')} hardly anything through: up to "
            f"{max(closed.values()):.0%} of their units are never above zero",
            list(closed),
            quantity="largest share of an activation's units that are never above zero",
            measured=max(closed.values()),
            bound=_CLOSED,
            cost="no gradient passes them: what is before them is not learnt",
            fix="make the layers before them anew, with a smaller learning rate or a norm; or a leaky activation",
            fixable=False,
        )

    def _at_norms(self, evidence: Evidence) -> Iterable[Finding]:
        dead = _dead(evidence)
        counts = {kind: sum(int(mask[kind].sum()) for mask in dead.values()) for kind in range(3)}
        total = sum(module.num_features for module in evidence.updating.values())
        places = [path for path, masks in dead.items() if bool(masks.any())]
        number = sum(int(masks.any(0).sum()) for masks in dead.values())
        if not places or number <= _SHARE * total:
            return
        words = ("constant before the norm", "with next to no gain", "never above zero before a ReLU")
        said = ", ".join(f"{count} {word}" for count, word in zip(counts.values(), words, strict=True) if count)
        yield self.finding(
            f"{number} of {counted(total, 'channel')} {'carries' if number == 1 else 'carry'} nothing: {said}",
            places,
            quantity="share of channels that are dead",
            measured=number / total,
            bound=_SHARE,
            cost="they take time and memory and learn nothing",
            fix="prune them, or find what killed them: a learning rate too high, or decay on gains",
            details={"constant": counts[0], "without_gain": counts[1], "cut_off": counts[2]},
        )

    @torch.no_grad()
    def repair(self, case: Case, finding: Finding) -> str:
        """Set the gain of dead channels to zero, and the shift of those that a ReLU cuts off."""
        evidence = Evidence(case)
        pruned = 0
        for path, masks in _dead(evidence).items():
            module: Any = evidence.norms[path]
            if path not in finding.places or module.weight is None:
                continue
            module.weight[masks.any(0)] = 0.0
            if module.bias is not None:
                module.bias[masks[2]] = 0.0
            pruned += int(masks.any(0).sum())
        return f"set the gain of {pruned} dead channels to zero"


def _dead(evidence: Evidence) -> dict[str, Tensor]:
    """Return by norm three masks ``(3, C)``: constant, without gain, cut off by ReLU."""
    peaks: dict[str, Tensor] = {}

    def see(path: str, output: Tensor, _x: Any) -> None:
        top = output.transpose(0, 1).flatten(1).amax(1) if output.numel() else output.new_empty(0)
        peaks[path] = torch.maximum(peaks[path], top) if path in peaks else top

    look(evidence.case, evidence.updating, min(4, evidence.batches), after=see)
    found = {}
    for path, module in evidence.updating.items():
        calls = [call for call in evidence.training.of(path, training=True) if call.finite and call.count > 1]
        if not calls or path not in peaks or module.weight is None:
            continue
        gain = module.weight.detach().abs()
        middle = float(gain.median())
        variance = torch.stack([call.variance for call in calls]).amax(0).to(gain)
        # A whole layer may work on small values (eps of 1e-3 and weights of 0.02 do so): constant is what varies
        # little beside its neighbours too, or so little that the norm puts out a hundredth of what it should.
        limit = min(_CONSTANT * module.eps, max(1e-6 * float(variance.median()), 1e-4 * module.eps))
        constant = (variance < limit) & (module.running_var < limit) & (gain > _SMALL * max(middle, 1e-12))
        faint = (gain < _SMALL * middle) & (gain > 0)
        cut = torch.zeros_like(constant)
        if _only_relu(evidence, path) or getattr(module, "activation", None) == "relu":
            cut = (peaks[path] <= 0) & (gain > 0)
        found[path] = torch.stack([constant, faint, cut])
    return found


def _only_relu(evidence: Evidence, path: str) -> bool:
    seen = evidence.flow.flow
    readers = seen.readers.get(path, []) if seen is not None else []
    return bool(readers) and all(_is_relu(evidence, reader) for reader in readers)


def _is_relu(evidence: Evidence, reader: str) -> bool:
    name = reader.strip("()")
    module = evidence.modules.get(name.removeprefix("call module "))
    if module is not None:
        return isinstance(module, (nn.ReLU, nn.ReLU6))
    return _RELU.fullmatch(name) is not None


def _closed(evidence: Evidence) -> Iterator[tuple[Activation, float]]:
    """Yield the ReLUs of which nearly all units are dead, with their share; not those behind a norm, looked at above.

    A sparse code has many units that are active at no sample of a few batches, but those that are, seldom are. A narrow
    layer may be closed by chance: of such a one it is asked whether anything is learnt before it.
    """
    seen = evidence.wiring.activations.values()
    flows = evidence.training.values("gradient_flow", "output_norm", step=None)
    for act in seen:
        if act.kind != "relu" or act.positive is None or act.values < _VALUES or act.made_by & evidence.updating.keys():
            continue
        alive = act.positive[act.positive > 0].double() / act.values
        share = 1 - len(alive) / len(act.positive)
        if share <= _CLOSED or (len(alive) and (float(alive.median()) < _LIVELY or act.samples < _VALUES)):
            continue
        if len(act.positive) < _UNITS:
            order = list(flows)
            last = max((order.index(made) for made in act.made_by if made in order), default=-1)
            if last < 0 or any(flows[site] for site in order[: last + 1]):
                continue
        yield act, share
