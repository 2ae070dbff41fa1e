"""What layer norm brings: normalizing forward, or the derivatives of its mean and variance."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import Arm, Best, Contrast, Evidence, Quantity, Reading, presets
from normscope.studies.evidence import Floats
from normscope.studies.lab import changed_norms, token_norms
from normscope.studies.lab.held_out import HELD_OUT, chance
from normscope.studies.transformer_training import AbstractTransformerTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Split

#: The arms that every depth and rate has; the others cut one statistic alone.
MAIN = ("layer", "cut", "none")
#: Initial weights: Xavier's, and those with the last matrices of branches made smaller in deeper networks.
PLAIN, SCALED = "xavier", "xavier-scaled"


class LayernormGradientsMatter(AbstractTransformerTraining):
    r"""The derivatives of layer norm's mean and variance matter more than its forward pass.

    ## Claim
    Many believe that layer norm works because it normalizes forward. The derivatives of the mean and the variance,
    which re-center and re-scale the backward gradients, matter more (Xu et al. 2019, abstract; their DetachNorm takes
    both statistics for constants).

    ## Method
    Pre-norm transformers of width 32 on characters, 100 steps of Adam with a warm-up of 30: with layer norm, with the
    same norm whose mean and variance are constants of the backward pass, and without a norm. What the derivatives bring
    is the held-out loss with statistics cut less that of layer norm; what normalizing forward brings is the loss
    without a norm less that with statistics cut. The effect is the first less the second. The headline has 6 blocks,
    as the source's code for translation (fairseq's transformer_iwslt_de_en), at the learning rate .003; also tried are
    own best rates, 2 blocks, and the last matrices of branches divided by the square root of their number, which suits
    a network without a norm. Claims of their own: cutting does harm; normalizing forward alone is better than no norm;
    the variance's derivative matters more than the mean's (2 blocks).

    ## Prediction
    Depends on the depth. At 2 blocks no norm is needed: cutting the derivatives costs a fifth of a nat, and the norm
    without them is worse than no norm. At 6 blocks a network without a norm hardly trains from Xavier's weights, so
    normalizing forward brings more; from weights that suit it, less. The mean's derivative brings nothing. At own best
    rates both matter less.

    ## Threats
    100 steps of a small network: losses are far from their end. The source's networks are larger, trained to their end
    and judged by accuracy or BLEU. Adam divides gradients by their size, so a cut changes their direction and the
    balance of layers, not the length of steps. A run that diverged, or ended worse than chance, counts as chance, which
    makes what no norm costs smaller than it is.
    """

    CODE = "layernorm-gradients-matter"
    CARD = 38
    TOPIC = "transformers"
    EXTENSION = True
    SOURCES = ("Xu et al. 2019 (arXiv:1911.07013), abstract and introduction",)
    CLAIM = "The derivatives of layer norm's mean and variance bring more than its forward pass."
    ON_A_CASE = "no arm takes statistics for constants"
    ENDPOINT = "Held-out loss that the derivatives bring less that of normalizing forward, 6 blocks, rate .003"
    MARGIN = 0.05
    MARGIN_REASON = "a twentieth of a nat is what some fifteen more steps bring"
    ARMS = {
        "layer": Arm("layer norm", token_norms.layer()),
        "cut": Arm("layer norm, both statistics taken for constants", changed_norms.cut()),
        "none": Arm("no norm", token_norms.none()),
        "cut-mean": Arm("layer norm, mean taken for a constant", changed_norms.cut(variance=False)),
        "cut-variance": Arm("layer norm, variance taken for a constant", changed_norms.cut(mean=False)),
    }
    CONDITIONS = {"depth": "{} blocks", "init": "{} weights"}
    VARIES = {"init": "initial weights"}
    PRESETS = presets(
        quick={
            "network": {"width": 32, "heads": 2},
            "depths": [2, 6],
            "judged": 6,
            "lr": 0.003,
            "lrs": [0.001, 0.003, 0.01],
            "steps": 100,
            "warmup": 30,
            "batch": 8,
            "test": 64,
        },
        full={
            "network": {"width": 128, "heads": 4},
            "depths": [2, 6, 12],
            "lrs": [0.0003, 0.001, 0.003, 0.01],
            "lr": 0.001,
            "steps": 5000,
            "warmup": 500,
            "batch": 32,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the main arms at every depth, and at every rate of one depth; the others at the least depth."""
        lr, judged = settings["lr"], settings["judged"]
        points = [{"depth": depth, "lr": lr, "init": PLAIN} for depth in settings["depths"]]
        points += [{"depth": judged, "lr": other, "init": PLAIN} for other in settings["lrs"] if other != lr]
        points.append({"depth": judged, "lr": lr, "init": SCALED})
        for point in points:
            for arm in MAIN:
                yield arm, point
        for arm in self.ARMS:
            if arm not in MAIN:
                yield arm, {"depth": min(settings["depths"]), "lr": lr, "init": PLAIN}

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the point's number of blocks and initial weights."""
        return {"blocks": int(cell.point["depth"]), "init": cell.point["init"]}

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterator[Record]:
        """Record the loss of chance."""
        return chance(cell, model)  # type: ignore[arg-type]

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield what derivatives bring less what the forward pass brings; then each by itself, and the mean's."""
        settings = evidence.settings
        judged, lr = settings["judged"], settings["lr"]
        depths = [judged, *(depth for depth in settings["depths"] if depth != judged)]
        places: list[tuple[str, dict[str, Any]]] = [
            (f"{depth} blocks", {"depth": depth, "lr": lr, "init": PLAIN}) for depth in depths
        ]
        places.append(("scaled weights", {"depth": judged, "lr": lr, "init": SCALED}))
        for name, at in places:
            yield _more(name, at)
        own = {"depth": judged, "init": PLAIN}
        yield _more("own best rates", own, {"lr": "own best learning rates"})
        places.append(("own best rates", {**own, "lr": Best("lr")}))
        for name, at in places:
            yield _compared(
                "cut",
                "layer",
                at,
                f"cut, {name}",
                "Layer norm trains worse without the derivatives of its statistics.",
                "held-out loss is {effect} with statistics taken for constants",
            )
        for name, at in places:
            yield _compared(
                "none",
                "cut",
                at,
                f"forward, {name}",
                "Normalizing forward, without the derivatives of the statistics, trains better than no norm.",
                "held-out loss is {effect} without a norm than with statistics taken for constants",
            )
        yield _compared(
            "cut-variance",
            "cut-mean",
            {"depth": min(depths), "lr": lr, "init": PLAIN},
            "variance or mean",
            "The derivative of the variance matters more than that of the mean.",
            "held-out loss is {effect} with the variance taken for a constant than with the mean",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss at every depth."""
        lr = evidence.settings["lr"]
        return [
            self.curves(
                evidence, "loss", at={"depth": depth, "lr": lr, "init": PLAIN, "arm": list(MAIN)}, slug=f"loss-{depth}"
            )
            for depth in evidence.settings["depths"]
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate held-out losses by depth, and by rate at one depth."""
        settings = evidence.settings
        return [
            self.grid_table(
                HELD_OUT,
                evidence,
                rows={"arm": list(MAIN)},
                columns={"depth": settings["depths"]},
                at={"lr": settings["lr"], "init": PLAIN},
                title=f"Held-out loss by depth, learning rate {settings['lr']:g}",
            ),
            self.grid_table(
                HELD_OUT,
                evidence,
                rows={"arm": list(MAIN)},
                columns={"lr": settings["lrs"]},
                at={"depth": settings["judged"], "init": PLAIN},
                title=f"Held-out loss by learning rate, {settings['judged']} blocks",
            ),
        ]


def _losses(evidence: Evidence, **where: Any) -> list[Floats]:
    """Return the held-out losses of the main arms, each at its own best rate where none is named."""
    own = [where if "lr" in where else {**where, "lr": Best("lr").of(evidence, arm=arm, **where)} for arm in MAIN]
    return [HELD_OUT(evidence, arm=arm, **at) for arm, at in zip(MAIN, own, strict=True)]


def _difference(evidence: Evidence, **where: Any) -> Floats:
    layer, cut, none = _losses(evidence, **where)
    return np.asarray((cut - layer) - (none - cut))


MORE = Quantity("what the derivatives bring less what the forward pass brings", _difference, unit="nats", held_out=True)


def _more(name: str, at: Mapping[str, Any], conditions: Mapping[str, str] | None = None) -> Contrast:
    """Return the contrast of derivatives and forward pass at a point."""

    def reason(reading: Reading) -> str:
        said = zip(
            ("with layer norm", "with its statistics taken for constants", "without a norm"),
            _losses(reading.evidence, **at),
            strict=True,
        )
        return f"Held-out loss: {', '.join(f'{HELD_OUT.typical(loss)} {words}' for words, loss in said)}."

    return Contrast(
        MORE,
        at=at,
        conditions=conditions or {},
        name=name,
        says="the derivatives of the statistics bring {effect} than normalizing forward",
        comparative=("more", "less"),
        reason=reason,
    )


def _compared(first: str, second: str, at: Mapping[str, Any], name: str, claim: str, says: str) -> Contrast:
    """Return the contrast of two arms' held-out losses."""
    return Contrast(HELD_OUT, first, second, at=at, name=name, claim=claim, says=says, comparative=("higher", "lower"))
