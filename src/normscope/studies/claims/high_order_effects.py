"""Does batch norm take the interactions between layers out of a step?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from normscope.plots import Figure, Table
from normscope.probes.interaction import Interaction
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, AllOf, Contrast, Evidence, Quantity, last, mean, mean_log, presets
from normscope.studies.lab import norms
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.models import Place

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

NAMES = {
    "interaction_size": "interaction of the layers' steps",
    "remainder": "all beyond first order",
    "third_order": "all beyond second order",
}


class HighOrderEffects(AbstractTraining):
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
    ARMS = {"none": "no norm", "batch": "batch norm", "last": "batch norm in the last hidden layer only"}
    POINTS = {"scale": "scales"}
    CONDITIONS = {"scale": "weights {:g} times He's"}
    PRESETS = presets(
        quick={
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
        full={
            "network": {"name": "vgg-a", "width": 64},
            "scales": [1.0],
            "steps": 4500,
            "every": 100,
            "decreases": [0.01, 0.1, 0.5],
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every scale of the weights, and the chain of numbers."""
        yield from super().grid(settings)
        yield "chain", {"scale": 1.0}

    def norm(self, cell: Cell) -> norms.Factory:
        """Return the arm's norm: none, in every hidden layer, or in the last."""
        plain, normed = norms.none(), norms.batch()
        last = int(cell.settings["network"].get("depth", 8)) - 1

        def make(place: Place) -> nn.Module:
            return normed(place) if place.index == last else plain(place)

        return {"none": plain, "batch": normed, "last": make}[cell.arm]

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the spread of the weights, of dense networks."""
        return {"gain": 2 * float(cell.point["scale"]) ** 2} if cell.settings["network"]["name"] == "mlp" else {}

    def options(self, cell: Cell) -> dict[str, Any]:
        """Measure the interaction of the layers' steps."""
        return {"probes": [Interaction(tuple(cell.settings["decreases"]))], "every": int(cell.settings["every"])}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train one arm's beginning with the probe, or look at the chain."""
        return _chain(cell) if cell.arm == "chain" else super().run_cell(cell, data, device)

    def contrasts(self, evidence: Evidence) -> Iterator[AllOf | Contrast]:
        """Yield the interaction at both scales; the other orders and the chain are parts."""
        settings = evidence.settings
        judged, small = settings["judged"], min(settings["decreases"])
        yield AllOf([self._without_over_with("interaction_size", judged, scale) for scale in settings["scales"]])
        for name, c, arm in (
            ("remainder", judged, "batch"),
            ("third_order", judged, "batch"),
            ("interaction_size", small, "batch"),
            ("interaction_size", judged, "last"),
        ):
            for scale in settings["scales"]:
                yield self._without_over_with(name, c, scale, arm)
        yield Contrast(
            last("error", "largest relative error against the closed form", probe="chain"),
            {"arm": "chain"},
            exact_within=1e-10,
            labels=("chain of numbers", ""),
            claim="In a chain of numbers the step's outcome is the book's closed form, and batch norm before the last "
            "number cuts the others off.",
        )

    def _without_over_with(self, name: str, c: float, scale: float, arm: str = "batch") -> Contrast:
        return Contrast(
            _size(name, c),
            "none",
            arm,
            at={"scale": scale},
            scale="log-ratio",
            reason=lambda reading: f"At {scale:g} times He's: {self.wording.numbers(reading)}.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the interaction while training, at each scale."""
        size = _size("interaction_size", evidence.settings["judged"])
        return [
            self.curves(
                evidence,
                size.record[1],
                probe="interaction",
                at={"scale": scale},
                slug=f"interaction-{scale:g}",
                title=f"Interaction of the layers' steps, weights {scale:g} times He's",
                y_title="Share of the predicted decrease",
                log=True,
                caption="; ".join(
                    f"{words}: {size.text(evidence, arm=arm, scale=scale)}" for arm, words in self.ARMS.items()
                ),
            )
            for scale in evidence.settings["scales"]
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate sizes by order, a table a predicted decrease."""
        cross = mean("cross_share", "cross-layer share of the curvature", probe="interaction")
        return [
            self.grid_table(
                [*(_size(name, c, words) for name, words in NAMES.items()), cross],
                evidence,
                rows={"scale": evidence.settings["scales"], "arm": list(self.ARMS)},
                title=f"Over the predicted decrease, {100 * c:g} % of the loss",
                heads={"scale": "Times He's"},
            )
            for c in evidence.settings["decreases"]
        ]


def _size(name: str, c: float, words: str = "") -> Quantity:
    return mean_log(
        f"{name}@c={c:g}",
        words or f"{NAMES[name]} over the predicted decrease ({c:g} of the loss)",
        probe="interaction",
    )


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
