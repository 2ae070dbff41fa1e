"""Cost of the probes in plain training steps, on two models, beside what other tools cost.

Every case trains the same model in one process. A round runs the plain step and each case once, in random order, in
processor time of one thread, which repeats under load where wall time does not. A case's cost is the median over
rounds of its time over the plain step's time in the same round.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscope import probes
from normscope._errors import UsageError
from normscope.bench._memory import peak_bytes
from normscope.bench._peers import PeerCost, measure_peers
from normscope.bench._timing import Progress, load
from normscope.probes import AbstractProbe, Recorder
from normscope.records import provenance


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one case on one model.

    Attributes:
        case: What was attached.
        model: Name of the model.
        ratio: Median of (step with probes) / (plain step).
        low: First quartile.
        high: Third quartile.
        held: Bytes of tensors that the step with probes holds at its peak beyond the plain step's peak.
        target: What ``ratio`` should not exceed; None where nothing was set.
    """

    case: str
    model: str
    ratio: float
    low: float
    high: float
    held: int
    target: float | None


@dataclass(frozen=True, slots=True)
class Peer:
    """What another tool was measured to cost, and how it fares: torch 2.13, CPU, the same two models and measure."""

    tool: str
    mlp: str
    vgg: str
    conduct: str


@dataclass(frozen=True, slots=True)
class Model:
    """A network with its batch shape."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    about: str


def _mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = 784
    for _ in range(3):
        layers += [nn.Linear(inputs, 100), nn.BatchNorm1d(100), nn.ReLU()]
        inputs = 100
    return nn.Sequential(*layers, nn.Linear(100, 10))


def _vgg() -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 3
    for width in (32, 32, 0, 64, 64, 0, 128, 128, 0, 128, 128, 0):
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * 4, 10))


MODELS: Mapping[str, Model] = {
    "mlp": Model(_mlp, (64, 1, 28, 28), "784-3x100-10, batch norm and ReLU after each hidden layer, batch 64"),
    "vgg": Model(_vgg, (64, 3, 32, 32), "8 convolutions of 32 to 128 channels with batch norm and ReLU, batch 64"),
}

PEERS = (
    Peer("Cockpit 1.0.2, economy / with HessMaxEV", "49 / 80", "5.3 / 177", "hooks remain; curvature crashes with BN"),
    Peer("PyHessian 0.1, default", "38", "46", "eigenvalue in eval mode, said by nothing; gradients overwritten"),
    Peer("curvlinops 3.0.1, one product, eval", "9", "3.7", "refuses batch norm in train mode"),
    Peer("hessian-eigenthings, 10 iterations", "28", "44", "running statistics drift; default not converged"),
    Peer("loss-landscapes 3.0.6, 10 points", "19", "4.7", "requires_grad off, statistics changed"),
    Peer("traintools GradientHealth", "2.9", "1.09", "un-freezes frozen batch norm"),
    Peer("wandb.watch all, every step", "12.0", "1.26", "none"),
    Peer("TensorBoard, weights and gradients", "28", "1.49", "none"),
    Peer("neuraldbg", "3.7", "3.1", "none; five false findings"),
    Peer("9 points along the gradient, the plain way", "10.1", "10.4", "statistics, weights in their last bits"),
    Peer("G against G' for all layers, the plain way", "4.6", "10.0", "statistics updated three times"),
)

_NINE: dict[str, Any] = {"points": 9, "dense": (), "matchings": ("same-step",), "curvature": False}
_STREAMING = "all streaming probes"
_LOSSES = "landscape, 9 points, losses alone"
_GRADIENTS = "landscape, 9 points with gradients"
_EIGENVALUE = "curvature, top eigenvalue to 1 %"
_WARM = "curvature, top eigenvalue to 1 %, begun near the last"
_TARGETS: Mapping[tuple[str, str], float] = {
    (_STREAMING, "mlp"): 2.5,
    (_STREAMING, "vgg"): 1.08,
    (_GRADIENTS, "mlp"): 8.0,
    (_GRADIENTS, "vgg"): 8.0,
    (_LOSSES, "mlp"): 3.0,
    (_LOSSES, "vgg"): 3.0,
    ("covariate_shift", "mlp"): 3.6,
    ("covariate_shift", "vgg"): 3.6,
    (_EIGENVALUE, "mlp"): 20.0,
    (_EIGENVALUE, "vgg"): 20.0,
    (_WARM, "mlp"): 20.0,
    (_WARM, "vgg"): 20.0,
}
_FEWEST, _ENOUGH = 3, 10.0  # rounds, and seconds of processor time, of a case
_ONCE_IN_100 = ", at 1 step in 100"
_AMORTISED_TARGET = 1.09


def cases() -> dict[str, Callable[[], list[AbstractProbe]]]:
    """Return the measured cases by name: every probe with its defaults, and combinations."""
    found = probes.all()
    streaming = [kind for kind in found if kind.STREAMING]
    made: dict[str, Callable[[], list[AbstractProbe]]] = {"not due at this step": list}
    made |= {kind.CODE: lambda kind=kind: [kind()] for kind in found}  # type: ignore[misc]
    made[_STREAMING] = lambda: [kind() for kind in streaming]
    known: dict[str, Any] = {kind.CODE: kind for kind in found}
    landscape = known["landscape"]
    made[_GRADIENTS] = lambda: [landscape(**_NINE)]
    made[_LOSSES] = lambda: [landscape(**_NINE, gradients=False)]
    made[_EIGENVALUE] = lambda: [known["curvature"](("eigenvalues",), modes=("train",))]
    made[_WARM] = lambda: [known["curvature"](("eigenvalues",), modes=("train",), warm=True)]
    made["covariate_shift and 9 points with gradients"] = lambda: [
        known["covariate_shift"](),
        landscape(**_NINE),
    ]
    return made


def measure(
    names: Sequence[str] | None = None,
    *,
    rounds: int = 12,
    only: str = "",
    progress: Progress | None = None,
    models: Mapping[str, Model] = MODELS,
) -> dict[str, Any]:
    """Measure every case on the models.

    Args:
        names: Which models; all if None.
        rounds: Rounds for a model whose plain step takes 50 ms or more; for a faster one five times as many. A case
            whose rounds have taken ten seconds is left out of further ones, once there are three.
        only: Part of the names of the cases to measure; all if empty.
        progress: Called with (model, rounds done, rounds in all).
        models: The models to choose from.

    Returns:
        A JSON object: ``costs``, ``plain_ms`` and ``about`` by model, ``peers``, ``peers_here`` (other tools
        that are installed, measured here unless ``only`` is given), ``load`` (of the machine over the last minute,
        before and after) and ``provenance``.

    Raises:
        UsageError: There is no such model, or no round.
    """
    unknown = [name for name in names or () if name not in models]
    if unknown:
        raise UsageError(f"no model {unknown[0]!r} to measure on; there are {', '.join(models)}")
    if rounds < 1:
        raise UsageError(f"rounds={rounds} must be 1 or more")
    if not any(only in name for name in cases()):
        raise UsageError(f"no case {only!r} to measure; there are {', '.join(cases())}")
    chosen = list(names or models)
    threads, before = torch.get_num_threads(), load()
    torch.set_num_threads(1)
    try:
        costs: list[Cost] = []
        beside: list[PeerCost] = []
        plain: dict[str, float] = {}
        for name in chosen:
            found, plain[name] = _measure_model(name, models[name], rounds, only, progress)
            costs += found
            if not only:
                model, more = models[name], rounds if plain[name] > 50 else 5 * rounds
                beside += measure_peers(name, model.build, model.shape, _loss, more)
    finally:
        torch.set_num_threads(threads)
    return {
        "costs": [asdict(cost) for cost in costs],
        "plain_ms": plain,
        "about": {name: models[name].about for name in chosen},
        "rounds": rounds,
        "peers": [asdict(peer) for peer in PEERS],
        "peers_here": [asdict(peer) for peer in beside],
        "load": {"before": before, "after": load()},
        "provenance": provenance.collect(),
    }


class _Trainer:
    """A model in training, with a scope for each case that reads at every step."""

    def __init__(self, model: Model, only: str) -> None:
        torch.manual_seed(0)
        self.model = model.build()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)
        self.batch = torch.randn(model.shape), torch.randint(10, model.shape[:1])
        self.scopes: dict[str, Recorder | None] = {"plain": None}
        for name, make in cases().items():
            if only not in name:
                continue
            self.scopes[name] = Recorder(self.model, _loss, self.optimizer, make(), every=1)

    def step(self, name: str) -> None:
        scope = self.scopes[name]
        if scope is None:
            self._plain()
            return
        with scope.step(self.batch):
            self._plain()

    def _plain(self) -> None:
        self.optimizer.zero_grad()
        _loss(self.model, self.batch).backward()
        self.optimizer.step()

    def forget(self) -> None:
        """Delete the records, so that a long run measures the same as a short run."""
        for scope in self.scopes.values():
            if scope is not None:
                scope.drain()


def _loss(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _measure_model(
    name: str, model: Model, rounds: int, only: str, progress: Progress | None
) -> tuple[list[Cost], float]:
    trainer = _Trainer(model, only)
    order = random.Random(0)
    for _ in range(2):  # probes verify assumptions in the first steps
        for case in trainer.scopes:
            trainer.step(case)
    held = {case: peak_bytes(lambda case=case: trainer.step(case)) for case in trainer.scopes}  # type: ignore[misc]
    began = time.process_time()
    trainer.step("plain")
    rounds = rounds if time.process_time() - began > 0.05 else 5 * rounds
    times: dict[str, list[float]] = {case: [] for case in trainer.scopes}
    for done in range(rounds):
        if progress is not None:
            progress(name, done, rounds)
        # A slow case repeats well: a few rounds of it tell as much as many rounds of a fast case.
        due = [case for case, taken in times.items() if len(taken) < _FEWEST or sum(taken) < _ENOUGH]
        due = list(dict.fromkeys(["plain", *due]))
        for case in order.sample(due, len(due)):
            began = time.process_time()
            trainer.step(case)
            times[case].append(time.process_time() - began)
        trainer.forget()
    if progress is not None:
        progress(name, rounds, rounds)
    plain = times.pop("plain")
    costs = [
        # A case left out of later rounds is held against the plain steps of the rounds it was in.
        _cost(case, name, [a / b for a, b in zip(taken, plain, strict=False)], max(0, held[case] - held["plain"]))
        for case, taken in times.items()
    ]
    costs += [_amortised(cost) for cost in costs if cost.case in (_GRADIENTS, _LOSSES, "covariate_shift")]
    return costs, 1e3 * statistics.median(plain)


def _cost(case: str, model: str, ratios: Sequence[float], held: int) -> Cost:
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
    return Cost(case, model, median, low, high, held, _TARGETS.get((case, model)))


def _amortised(cost: Cost) -> Cost:
    """Spread the cost of a case over 100 steps, of which the other 99 are plain steps."""
    ratio, low, high = (1 + (value - 1) / 100 for value in (cost.ratio, cost.low, cost.high))
    return Cost(cost.case + _ONCE_IN_100, cost.model, ratio, low, high, cost.held, _AMORTISED_TARGET)
