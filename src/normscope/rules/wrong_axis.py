"""Norms that take another axis for the features than the layers beside them."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normscope.evidence import Case, Evidence, Finding, Severity, examples, tensors
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule
from normscope.surgery.foreign import is_plain

_LENGTH = 9


class _Turned(nn.Module):
    """A norm of features that lie on the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class _Tokens(nn.Module):
    """Dense layers over the features of ``(N, L, 12)``, with a norm behind each."""

    def __init__(self, norm: Any = nn.BatchNorm1d, size: int = _LENGTH, width: int = 16) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(12, width), norm(size)
        self.fc2, self.norm2 = nn.Linear(width, width), norm(size)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.fc1(x)))
        return self.head((x + torch.relu(self.norm2(self.fc2(x)))).mean(1))


class _Recurrent(nn.Module):
    """A norm between a recurrent layer and a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm, self.head = nn.GRU(12, 16, batch_first=True), nn.BatchNorm1d(_LENGTH), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.rnn(x)[0])[:, -1])


class _Along(nn.Module):
    """Convolutions along ``(N, 12, L)``, with a norm of the last axis, or of the channels."""

    def __init__(self, size: int = _LENGTH, turn: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(12, 10, 3, padding=1), nn.Conv1d(10, 10, 3, padding=1)
        self.norm, self.head, self.turn = nn.LayerNorm(size), nn.Linear(10, 4), turn

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2) if self.turn else self.norm(x)
        return self.head(torch.relu(self.conv2(torch.relu(x))).mean(2))


def _tokens(net: Any = _Tokens, length: int = _LENGTH, **options: Any) -> Case:
    return examples.healthy(net, shape=(length, 12), **options)


def _on_axis(features: str) -> Case:
    """Dense layers whose norms keep statistics of the second axis or, turned, of the last."""
    return _tokens(partial(_Tokens, _Turned, 16) if features == "last" else _Tokens, trained=0)


class WrongAxis(AbstractRule):
    r"""A norm takes the positions of a sequence for features.

    ## Finds
    A batch, instance or group norm that is given ``(N, L, C)`` and so takes the second axis for channels, where that
    axis has the length of the sequence and the layers right before and behind it act on the last axis (dense,
    recurrent and attention layers, embeddings): functions that leave axes where they are may lie between, a transpose
    may not. The length of the sequence is that of the second axis of the model's own input, or of what a recurrent or
    attention layer or an embedding takes or makes. And a layer or RMS norm of the last axis alone where the layers
    right beside it are convolutions, whose channels are the second axis.

    Calibrated over six seeds: planted defects found, 30 of 30; findings on 47 healthy set-ups under six seeds, 0 of
    282.

    ## Why it hurts
    ``BatchNorm1d(C)`` refuses ``(N, L, C)``, and ``BatchNorm1d(L)`` runs: it has a mean and a variance for each
    position, taken over all features, so that features of a large scale drown the others, and it can take no other
    length. If L happens to be C, the right-looking ``BatchNorm1d(C)`` runs and does the same. Where variables lie on
    the second axis and a dense layer acts along time, such a norm is right: hence only an information.

    ## Fix
    None that is mechanical, since gains and shifts of other sizes are needed: ``norm(x.transpose(1, 2)).transpose(1,
    2)`` with ``BatchNorm1d(C)``, or a layer norm of the features.
    """

    CODE = "NS137"
    SLUG = "wrong-axis"
    SEVERITY = Severity.INFO
    SOURCES = (
        "xieyulai/LSTM-for-Human-Activity-Recognition-using-2D-Pose_Pytorch#2",
        "ruotianluo/self-critical.pytorch#65",
        "pytorch/pytorch#7577",
    )
    SICK = (
        examples.Planted(_tokens, ["norm1", "norm2"]),
        examples.Planted(partial(_tokens, _Recurrent), ["norm"]),
        examples.Planted(partial(_tokens, partial(_Tokens, partial(nn.GroupNorm, 3))), ["norm1", "norm2"]),
        examples.Planted(partial(_tokens, partial(_Tokens, size=16), 16), ["norm1", "norm2"]),
        examples.Planted(partial(examples.healthy, _Along, shape=(12, _LENGTH)), ["norm"]),
    )
    WELL = (
        partial(_tokens, partial(_Tokens, _Turned, 16)),
        partial(_tokens, partial(_Tokens, nn.LayerNorm, 16)),
        partial(examples.healthy, partial(_Along, 10, True), shape=(12, _LENGTH)),
        partial(examples.healthy, examples.sequence),
    )
    NEAR = (examples.Near(_on_axis, found="second", quiet="last"),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare the axis of each norm with that of the layers beside it."""
        wiring = evidence.wiring
        lengths = wiring.sequences | _lengths(evidence)
        second, last = [], []
        for path, shape in wiring.shapes.items():
            module = evidence.modules[path]
            beside = wiring.before.get(path, set()) | wiring.after.get(path, set())
            if len(shape) == 3 and beside == {"last"} and shape[1] in lengths and _of_second(module):
                second.append(path)
            if len(shape) > 2 and beside == {"second"} and _of_last(module, shape[-1]):
                last.append(path)
        if second:
            shape = wiring.shapes[second[0]]
            yield self._finding(
                second,
                f"as channels the {shape[1]} positions of a sequence, where the layers beside act on the last axis, of "
                f"{shape[2]} features",
                taken=1,
                features=2,
            )
        if last:
            shape = wiring.shapes[last[0]]
            yield self._finding(
                last,
                f"as features the last axis, of {shape[-1]} positions, where the layers beside have {shape[1]} "
                "channels on the second axis",
                taken=len(shape) - 1,
                features=1,
            )

    def _finding(self, places: list[str], what: str, *, taken: int, features: int) -> Finding:
        return self.finding(
            f"{counted(len(places), 'norm takes', 'norms take')} {what}",
            places,
            quantity="axis that the norm takes for features; the bound is the axis of the layers beside it",
            measured=float(taken),
            bound=float(features),
            cost="features of all scales share a mean and a variance, and the length of the sequence is fixed",
            fix="turn the axes around the norm, or take a norm of the axis that the layers act on",
        )


def _of_second(module: Any) -> bool:
    return isinstance(module, (_BatchNorm, _InstanceNorm, nn.GroupNorm))


def _of_last(module: Any, size: int) -> bool:
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and is_plain(module) and module.normalized_shape == (size,)


def _lengths(evidence: Evidence) -> set[int]:
    """Return the lengths of the second axis of the model's inputs that can be sequences."""
    given = evidence.training.inputs
    return set() if given is None else {x.shape[1] for x in tensors(given) if 2 <= x.ndim <= 3 and _is_sequence(x)}


def _is_sequence(x: Tensor) -> bool:
    return x.ndim == 3 or not x.is_floating_point()
