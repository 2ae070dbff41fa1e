"""Does batch norm keep tanh from saturating, and do gamma and beta choose how far?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import conjunction, equivalent
from normscope.studies.lab import norms
from normscope.studies.lab.arms import Noted, batch_norm, network, noted, recorder
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

ARMS = {"none": "no batch norm", "batch": "batch norm"}
FIXED = {"gamma=0.5": 0.5, "gamma=1": 1.0, "gamma=2": 2.0, "gamma=4": 4.0}
THEORY = {"beyond_3": 0.0027, "flat": 0.0364, "slope": 0.4644}
WORDS = {"beyond_3": "share with |x| > 3", "flat": "share with |tanh x| > 0.97", "slope": "mean squared slope of tanh"}


class TanhSaturation(AbstractTraining):
    r"""Batch norm before tanh prevents saturation; gamma and beta choose how much of it there is.

    ## Claim
    Without batch norm inputs of tanh lie beyond 3, where it is flat and gradients vanish; batch norm prevents that, and
    learnable gamma and beta let the network choose the best saturation (answers to "How does the batch normalization
    layer work?"; Ioffe & Szegedy 2015, section 1).

    ## Method
    Five hidden layers of 100 with tanh, weights s times :math:`1/\sqrt{d}`, s from 0.1 to 10, with batch norm and
    without. At initialization, per layer: the share of inputs of tanh beyond 3, the share of outputs beyond .97, the
    mean squared slope, and the first layer's gradient over the last one's, each over its weights. Primary: at s = 10
    the share beyond 3 is below 1 % with batch norm and above 20 % without (both must hold). Then networks are trained
    at s = 5/3 with gamma and beta learnt or fixed at four gammas: "chooses the best" is supported if the test accuracy
    with learnt ones is not more than .3 points below that of the fixed gamma that is best on validation data.

    ## Prediction
    Supported at initialization, with the shares of a normal variable (.27 %, 3.64 %, .464). While training gamma
    moves, and saturation rises.

    ## Threats
    At initialization batch norm fixes two moments of each unit, so the claim is half arithmetic; how much it matters
    shows in the arm without norm at the usual s = 5/3, where little saturates either.
    """

    CODE = "tanh-saturation"
    CARD = 23
    TOPIC = "saturation"
    SOURCES = (
        "Q&A on the layer, answers on saturation",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 1",
        "Karpathy, makemore part 3",
    )
    CLAIM = "Batch norm before tanh prevents saturation."
    ENDPOINT = "Share of inputs of tanh beyond 3 at weights ten times too large: below 1 % with, above 20 % without"
    MARGIN = 0.0
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 5, "width": 100},
            "scales": [0.1, 0.5, 1.0, 1.6667, 3.0, 10.0],
            "judged": 10.0,
            "trained": 1.6667,
            "batch": 64,
            "lr": 0.1,
            "steps": 250,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "mlp", "depth": 10, "width": 100},
            "scales": [0.1, 0.5, 1.0, 1.6667, 3.0, 10.0],
            "judged": 10.0,
            "trained": 1.6667,
            "batch": 64,
            "lr": 0.1,
            "steps": 10000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms at every scale, and the fixed gammas at the scale that is trained."""
        for scale in settings["scales"]:
            for arm in ARMS:
                yield arm, {"scale": scale}
        for arm in FIXED:
            yield arm, {"scale": settings["trained"]}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm, the inputs of tanh noted."""
        scale = float(cell.point["scale"])
        if cell.arm == "none":
            factory = norms.none()
        elif cell.arm == "batch":
            factory = norms.batch()
        else:
            factory = batch_norm(gain=FIXED[cell.arm], learn_gain=False, learn_shift=False)
        return network(cell, data, noted(factory), device, activation="tanh", gain=scale**2)

    def trains(self, cell: Cell) -> bool:
        """Those whose scale the preset says so of; of the others only the start is looked at."""
        return bool(cell.point["scale"] == cell.settings["trained"])

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Look at the inputs of tanh."""
        return _look(cell, model, split, 0)

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Look at them again."""
        return _look(cell, model, split, int(cell.settings["steps"]))

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Look at the inputs of tanh, train where the preset says so, and look again."""
        if self.trains(cell):
            return super().run_cell(cell, data, device)
        return self.before(cell, self.network(cell, data, device), self.split(cell, data, device))

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge both shares together; theory, gradients and the learnt gamma are parts."""
        scale = evidence.settings["judged"]
        with_, without = (_share(evidence, arm, scale) for arm in ("batch", "none"))
        low = self.part(
            evidence,
            0.01 - with_,
            claim="With batch norm less than 1 % of the inputs of tanh lie beyond 3.",
            endpoint=f"One percent less the share beyond 3 with batch norm, weights times {scale:g}",
            reason=f"{typical(with_)} with batch norm.",
        )
        high = self.part(
            evidence,
            without - 0.2,
            claim="Without batch norm more than 20 % lie beyond 3.",
            endpoint=f"Share beyond 3 without batch norm less 20 %, weights times {scale:g}",
            reason=f"{typical(without)} without.",
        )
        outcome, p, decisive = conjunction([low, high], 1 - evidence.level)
        trained = evidence.settings["trained"]
        reason = (
            f"At weights times {scale:g}, {typical(with_)} of the inputs lie beyond 3 with batch norm and "
            f"{typical(without)} without; at the usual {trained:.3g} it is "
            f"{typical(_share(evidence, 'batch', trained))} and {typical(_share(evidence, 'none', trained))}."
        )
        parts = [low, high, *self._theory(evidence), self._chooses(evidence), self._gradient(evidence, scale)]
        return self.verdict(outcome, decisive.effect, reason=reason, p_value=p, primary=True, parts=parts)

    def _theory(self, evidence: Evidence) -> Iterator[Verdict]:
        for name, expected in THEORY.items():
            found = _share(evidence, "batch", evidence.settings["judged"], name)
            yield equivalent(
                self,
                evidence,
                found - expected,
                0.05 * expected + 0.003,
                claim=f"The {WORDS[name]} is that of a standard normal input.",
                endpoint=f"{WORDS[name].capitalize()} with batch norm less theory",
                reason=f"{typical(found)} measured, {expected} in theory.",
            )

    def _chooses(self, evidence: Evidence) -> Verdict:
        at = evidence.settings["trained"]
        best = max(FIXED, key=lambda arm: float(evidence.last("val_accuracy", arm=arm, scale=at).mean()))
        learnt, fixed = (evidence.last("test_accuracy", arm=arm, scale=at) for arm in ("batch", best))
        return self.part(
            evidence,
            learnt - fixed,
            margin=-0.003,
            claim="Learnt gamma and beta are as good as the best fixed gamma.",
            endpoint="Test accuracy with learnt gamma and beta less that with the best fixed gamma",
            reason=f"{typical(learnt)} learnt, {typical(fixed)} with {best}, the best on validation data.",
        )

    def _gradient(self, evidence: Evidence, scale: float) -> Verdict:
        with_, without = (
            np.log(evidence.last("gradient_ratio", probe="tanh", arm=arm, scale=scale)) for arm in ("batch", "none")
        )
        return self.part(
            evidence,
            with_ - without,
            scale="log-ratio",
            margin=math.log(1.5),
            claim="With batch norm the first layer gets more gradient, against the last.",
            endpoint=f"First over last layer's gradient, with over without batch norm, weights times {scale:g}",
            reason=f"{typical(with_, logs=True)} with, {typical(without, logs=True)} without.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the shares by scale, and the loss by gamma."""
        at = evidence.settings["trained"]
        said = ", ".join(
            f"{typical(_share(evidence, 'batch', s))} and {typical(_share(evidence, 'none', s))} at {s:g}"
            for s in evidence.settings["scales"]
        )
        return [
            curves(
                evidence.select(probe="tanh", name="beyond_3", site="", arm=list(ARMS), before=1),
                y="beyond_3",
                x="scale",
                slug="share",
                title="Share of the inputs of tanh beyond 3, at initialization",
                x_title="Weights, in units of one over the root of the inputs",
                y_title="Share beyond 3",
                log_x=True,
                labels=ARMS,
                caption=f"With batch norm and without: {said}.",
            ),
            curves(
                evidence.select(probe="training", scale=at),
                y="loss",
                slug="loss",
                title="Training loss with gamma learnt and fixed",
                y_title="Cross-entropy of the step's batch",
                log=True,
                labels=ARMS,
                caption=evidence.final_losses({**ARMS, **{arm: arm for arm in FIXED}}, scale=at),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate against theory, and what training makes of saturation."""
        rows = []
        for name, expected in THEORY.items():
            found = float(np.mean(_share(evidence, "batch", evidence.settings["judged"], name)))
            rows.append((WORDS[name], f"{found:.4f}", f"{expected:.4f}", f"{found / expected:.3f}"))
        at = evidence.settings["trained"]
        ends = tuple(
            (
                arm,
                typical(_share(evidence, arm, at)),
                typical(evidence.last("beyond_3", probe="tanh", arm=arm, scale=at, site="")),
                typical(evidence.last("test_accuracy", arm=arm, scale=at)),
            )
            for arm in (*ARMS, *FIXED)
        )
        return [
            Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(rows)),
            Table("Share beyond 3", ("Arm", "At the start", "After training", "Test accuracy"), ends),
        ]


def _share(evidence: Evidence, arm: str, scale: float, name: str = "beyond_3") -> np.ndarray:
    return evidence.per_seed(evidence.select(probe="tanh", name=name, arm=arm, scale=scale, site="", before=1))


def _look(cell: Cell, model: torch.nn.Module, split: "Split", step: int) -> Iterator[Record]:
    """Record how far the inputs of tanh lie out, by layer and in all, and the ratio of gradients."""
    record = recorder(cell, "tanh")
    model.zero_grad()
    cross_entropy(model(split.x_train[:512]), split.y_train[:512]).backward()
    values: dict[str, list[float]] = {"beyond_3": [], "flat": [], "slope": []}
    for path, module in model.named_modules():
        if isinstance(module, Noted) and module.output is not None:
            x = module.output.detach()
            y = torch.tanh(x)
            found = {
                "beyond_3": (x.abs() > 3).double().mean(),
                "flat": (y.abs() > 0.97).double().mean(),
                "slope": (1 - y * y).square().double().mean(),
            }
            for name, value in found.items():
                values[name].append(float(value))
                yield record(name, value, step, path)
            module.output = None
    for name, listed in values.items():
        yield record(name, math.fsum(listed) / len(listed), step)
    gradients = [
        float(parameter.grad.norm() / parameter.detach().norm())
        for name, parameter in model.named_parameters()
        if "linear.weight" in name and parameter.grad is not None
    ]
    yield record("gradient_ratio", gradients[0] / gradients[-1] if gradients[-1] else math.nan, step)
    model.zero_grad(set_to_none=True)
