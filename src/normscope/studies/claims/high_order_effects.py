"""Does batch norm take the interactions between layers out of a step?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from normscope.plots import Figure, Table, curves
from normscope.probes.interaction import Interaction
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import conjunction, exact
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, recorder, split_of
from normscope.studies.lab.models import Place
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset
    from normscope.studies.lab.norms import Factory

ARMS = {"none": "no norm", "batch": "batch norm", "last": "batch norm in the last hidden layer only"}
NAMES = {
    "interaction_size": "Interaction of the layers' steps",
    "remainder": "All beyond first order",
    "third_order": "All beyond second order",
}


class HighOrderEffects(AbstractStudy):
    r"""Batch norm removes the interactions between the layers' updates.

    ## Claim
    All layers are updated at once, as if the others stood still; the interactions this makes, of second and higher
    order, are what batch norm removes, and it is not about covariate shift (comment on the Q&A; Goodfellow, Bengio and
    Courville 2016, section 8.7.1).

    ## Method
    Ten hidden layers of 64 with ReLU, weights at He's scale and 1.5 times it, steps whose first-order prediction is a
    decrease of a tenth of the loss. Primary: the interaction, the change of the loss by the whole step less the sum of
    its changes by each layer's step alone, over the predicted decrease, in size, geometric mean over the first 30 % of
    training; without norm over with batch norm above 2 at both scales (both must hold). Parts: everything beyond the
    first and beyond the second order, for the same step; batch norm in the last hidden layer only; at a decrease of
    1 %; and the book's example, a chain of ten numbers, in closed form: a predicted decrease of .1 becomes
    :math:`1 - (1 - .1/l)^l` = .0956 at :math:`w^l = 1`, and with batch norm before the last number all other
    derivatives vanish.

    ## Prediction
    Supported away from He's scale, less so at it; interactions do not vanish with batch norm either, as the layers
    between the norms are not linear.

    ## Threats
    A step of equal predicted decrease is a different learning rate in each arm. ReLU has no curvature but kinks, which
    the third order takes in. The lecture that the comment names could not be read; the book could.
    """

    CODE = "high-order-effects"
    CARD = 21
    TOPIC = "landscape"
    SOURCES = (
        "Q&A on the layer, comment on high-order effects",
        "Goodfellow, Bengio and Courville 2016, Deep Learning, section 8.7.1",
    )
    CLAIM = "Batch norm removes interactions between the updates of different layers."
    ENDPOINT = "Interaction of the layers' steps over the predicted decrease, without norm over with batch norm"
    MARGIN = math.log(2)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 10, "width": 64},
            "batch": 128,
            "scales": [1.0, 1.5],
            "lr": 0.03,
            "steps": 60,
            "every": 6,
            "decreases": [0.01, 0.1],
            "judged": 0.1,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a", "width": 64},
            "batch": 128,
            "scales": [1.0],
            "lr": 0.03,
            "steps": 4500,
            "every": 100,
            "decreases": [0.01, 0.1, 0.5],
            "judged": 0.1,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every scale of the weights, and the chain of numbers."""
        for scale in settings["scales"]:
            for arm in ARMS:
                yield arm, {"scale": scale}
        yield "chain", {"scale": 1.0}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train one arm's beginning with the probe, or look at the chain."""
        if cell.arm == "chain":
            return _chain(cell)
        settings, scale = cell.settings, float(cell.point["scale"])
        changes = {"gain": 2 * scale**2} if settings["network"]["name"] == "mlp" else {}
        model = network(cell, data, _norm(cell.arm, settings), device, **changes)
        probes = [Interaction(tuple(settings["decreases"]))]
        return fit(model, split_of(cell, data, device), cell, probes=probes, every=int(settings["every"]))

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the interaction at both scales; the other orders and the chain are parts."""
        judged = evidence.settings["judged"]
        scales = evidence.settings["scales"]
        conditions = [self._compare(evidence, "interaction_size", judged, scale) for scale in scales]
        outcome, p, decisive = conjunction(conditions, 1 - evidence.level)
        others = [
            self._compare(evidence, name, judged, scale) for name in ("remainder", "third_order") for scale in scales
        ]
        small = min(evidence.settings["decreases"])
        others += [self._compare(evidence, "interaction_size", small, scale) for scale in scales]
        others += [self._compare(evidence, "interaction_size", judged, scale, "last") for scale in scales]
        errors = evidence.last("error", probe="chain", arm="chain")
        chain = exact(
            self,
            evidence,
            errors,
            1e-10,
            claim="In a chain of numbers the step's outcome is the book's closed form, and batch norm before the last "
            "number cuts the others off.",
            endpoint="Largest relative error against the closed form",
        )
        return self.verdict(
            outcome,
            decisive.effect,
            reason=" ".join(part.reason for part in conditions),
            p_value=p,
            primary=True,
            parts=[*conditions, *others, chain],
        )

    def _compare(self, evidence: Evidence, name: str, c: float, scale: float, arm: str = "batch") -> Verdict:
        without, with_ = (_size(evidence, name, c, one_arm, scale) for one_arm in ("none", arm))
        return self.part(
            evidence,
            without - with_,
            scale="log-ratio",
            endpoint=f"{NAMES[name]} over the predicted decrease ({c:g} of the loss), without norm over with "
            f"{ARMS[arm]}, weights {scale:g} times He's",
            reason=f"At {scale:g} times He's: {typical(without, logs=True)} without norm, "
            f"{typical(with_, logs=True)} with {ARMS[arm]}.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the interaction while training, at each scale."""
        c = evidence.settings["judged"]
        name = f"interaction_size@c={c:g}"
        return [
            curves(
                evidence.select(probe="interaction", name=name, scale=scale),
                y=name,
                slug=f"interaction-{scale:g}",
                title=f"Interaction of the layers' steps, weights {scale:g} times He's",
                y_title="Share of the predicted decrease",
                log=True,
                labels=ARMS,
                caption="; ".join(
                    f"{words}: {typical(_size(evidence, 'interaction_size', c, arm, scale), logs=True)}"
                    for arm, words in ARMS.items()
                ),
            )
            for scale in evidence.settings["scales"]
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate sizes by order."""
        rows = tuple(
            (
                f"{scale:g}",
                words,
                f"{c:g}",
                *(typical(_size(evidence, name, c, arm, scale), logs=True) for name in NAMES),
                typical(
                    evidence.per_seed(evidence.select(probe="interaction", name="cross_share", arm=arm, scale=scale))
                ),
            )
            for scale in evidence.settings["scales"]
            for arm, words in ARMS.items()
            for c in evidence.settings["decreases"]
        )
        columns = ("Times He's", "Arm", "Predicted decrease", *NAMES.values(), "Cross-layer share of the curvature")
        return [Table("Over the predicted decrease", columns, rows)]


def _norm(arm: str, settings: Mapping[str, Any]) -> "Factory":
    if arm != "last":
        return norms.none() if arm == "none" else norms.batch()
    last = int(settings["network"].get("depth", 8)) - 1
    plain, normed = norms.none(), norms.batch()

    def make(place: Place) -> nn.Module:
        return normed(place) if place.index == last else plain(place)

    return make


def _size(evidence: Evidence, name: str, c: float, arm: str, scale: float) -> np.ndarray:
    return evidence.mean_log(evidence.select(probe="interaction", name=f"{name}@c={c:g}", arm=arm, scale=scale))


def _chain(cell: Cell) -> Iterator[Record]:
    """Compare a step on ``w_1 ... w_l`` with the book's closed form, and batch norm before the last number with 0."""
    errors = []
    for depth in (2, 5, 10, 20):
        w = torch.full((depth,), 1.0, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(w.prod(), w)
        rate = 0.1 / float(gradient.square().sum())
        after = float((w.detach() - rate * gradient).prod())
        errors.append(abs(after - (1 - 0.1 / depth) ** depth))
        # A batch of one feature through the chain, normalized before the last factor.
        source = torch.Generator().manual_seed(cell.seed)
        x = torch.randn(64, generator=source, dtype=torch.float64)
        h = x * w[:-1].prod()
        normal = (h - h.mean()) / h.std(correction=0)
        (gradient,) = torch.autograd.grad(((normal * w[-1] - x) ** 3).sum(), w)
        errors.append(float(gradient[:-1].abs().max() / gradient[-1].abs()))
    yield recorder(cell, "chain")("error", max(errors))
