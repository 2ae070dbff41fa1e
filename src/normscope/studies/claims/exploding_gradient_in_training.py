"""What becomes of gradients that explode at initialization, and how deep a network may be."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from normscope.plots import Figure, Table, by_depth
from normscope.records import Cell, Record
from normscope.stats import proportional
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, accuracy, presets
from normscope.studies.evidence import Floats
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.chain import theory

WATCHED = (0, 1, 5, 20)


class ExplodingGradientInTraining(AbstractTraining):
    r"""The explosion at initialization is gone after a few steps, and yet deep plain networks do not train.

    ## Claim
    Gradients of a network with batch norm explode at initialization, but training equalises them within a few steps,
    because layers with large gradients grow and then get small ones; still, plain networks with batch norm deeper than
    about fifty layers cannot be trained, whatever the batch (Yang et al. 2019, section 4 and figures 2 and 3).

    ## Method
    Dense networks of rectifiers and batch norm, 5 to 40 layers of 64, batches of 16 and 128, learning rate 0.1. The
    spread of relative gradients :math:`\|\nabla_W L\|/\|W\|` over layers, largest over smallest, at steps 0, 1, 5 and
    20. Primary, at 20 layers: one minus log spread at step 20 over log spread at step 0; equalisation is supported
    above 0.7. The other part: the deepest network of the grid that gets beyond twice chance on test data, over
    :math:`1/\log\lambda` with the growth rate of theory at that batch; the source's factor is 16, and 10 to 24 counts.

    ## Prediction
    Both supported. At step 0 the spread is about :math:`\lambda^{(L-1)/2}`; a layer whose gradient is large takes a
    large step, grows, and from then on gets a gradient smaller by as much.

    ## Threats
    The deepest of a short grid is a coarse measure, and a bound where the deepest one trains. How deep is trainable
    depends on learning rate and budget, so the factor 16 is empirical.
    """

    CODE = "exploding-gradient-in-training"
    CARD = 7
    TOPIC = "gradient"
    SOURCES = (
        "Q&A on the gradient, question",
        "Yang et al. 2019 (arXiv:1902.08129), section 4, figures 2 and 3",
    )
    CLAIM = "The explosion of gradients at initialization is gone after twenty steps of training."
    ENDPOINT = "One minus log spread of relative gradients at step 20 over that at step 0, 20 layers"
    MARGIN = 0.7
    # Torch's own layer: forty of them a step are what a cell consists of.
    ARMS = {"batch": Arm("batch norm", lambda place: nn.BatchNorm1d(place.features))}
    POINTS = {"batch": "batches", "depth": "depths"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "width": 64},
            "depths": [5, 10, 20, 40],
            "judged": 20,
            "batches": [16, 128],
            "lr": 0.1,
            "steps": 100,
            "train": None,
            "test": None,
        },
        full={
            "network": {"name": "mlp", "width": 384},
            "depths": [10, 20, 40, 60, 80, 100],
            "batches": [8, 32, 128],
            "steps": 5000,
        },
    )

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the point's depth."""
        return {"depth": int(cell.point["depth"])}

    def options(self, cell: Cell) -> dict[str, Any]:
        """Watch the relative gradients of the layers at a few steps."""
        record = recorder(cell, "relative_gradient")

        def watch(step: int, net: nn.Module) -> Iterator[Record]:
            if step not in WATCHED:
                return
            found = []
            for name, parameter in net.named_parameters():
                if "linear.weight" in name and parameter.grad is not None:
                    found.append(float(parameter.grad.norm() / parameter.detach().norm()))
                    yield record("relative", found[-1], step, name.removesuffix(".linear.weight"))
            yield record("spread", max(found) / max(min(found), 1e-30), step)

        return {"watch": watch}

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield equalisation; the other depths, theory and the trainable depth are parts."""
        judged, batches = evidence.settings["judged"], evidence.settings["batches"]
        yield _equalised(evidence, judged, batches[-1])
        for batch in batches:
            for depth in evidence.settings["depths"]:
                if (depth, batch) != (judged, batches[-1]):
                    yield _equalised(evidence, depth, batch)
        for batch in batches:
            yield _trainable(evidence, batch)

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the relative gradients by layer, and accuracy by depth."""
        judged, batches = evidence.settings["judged"], evidence.settings["batches"]
        return [
            by_depth(
                evidence.select(probe="relative_gradient", name="relative", depth=judged, batch=batches[-1]),
                y="relative",
                steps=list(WATCHED),
                slug="by-layer",
                title=f"Relative gradient of each of {judged} layers, a panel a step",
                y_title="Norm of the gradient over norm of the weights",
                caption=str(_equalised(evidence, judged, batches[-1]).reason),
            ),
            self.curves(
                evidence,
                "test_accuracy",
                x="depth",
                facet="batch",
                slug="by-depth",
                title="Test accuracy by depth, a panel a batch size",
                x_title="Hidden layers",
                arms=None,
                labels=None,
                reference={"twice chance": 0.2},
                caption="; ".join(str(_trainable(evidence, batch).reason) for batch in batches),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the spread at each step, and what theory and the source say of it and of the depth."""
        expected = Quantity(
            "theory at step 0", lambda evidence, depth, batch, **_: np.array([_spread_in_theory(depth, batch)])
        )
        return [
            self.grid_table(
                [*(_spread(step, f"step {step}") for step in WATCHED), expected, accuracy()],
                evidence,
                rows={"batch": evidence.settings["batches"], "depth": evidence.settings["depths"]},
                at={"arm": "batch"},
                title="Largest over smallest relative gradient",
            ),
            *_against(evidence),
        ]


def _spread(step: int, words: str) -> Quantity:
    """Return the logarithm of the largest over the smallest relative gradient at a step."""
    return Quantity(
        words,
        lambda evidence, **where: np.log(
            evidence.per_seed(evidence.select(probe="relative_gradient", name="spread", step=step, **where))
        ),
        logs=True,
    )


START, END = (_spread(step, f"spread of relative gradients at step {step}") for step in (0, 20))


def _spread_in_theory(depth: int, batch: int) -> float:
    return float(theory("relu", batch) ** ((depth - 1) / 2))


def _equalised(evidence: Evidence, depth: int, batch: int) -> Contrast:
    """Return the contrast of the spread at step 20 with that at step 0."""
    at = {"depth": depth, "batch": batch}
    return Contrast(
        Quantity(
            "one minus log spread of relative gradients at step 20 over that at step 0",
            lambda evidence, **where: 1 - END(evidence, **where) / START(evidence, **where),
        ),
        at=at,
        scale="value",
        reason=f"The largest relative gradient is {START.text(evidence, **at)} times the smallest at step 0 (theory "
        f"{_spread_in_theory(depth, batch):.3g}) and {END.text(evidence, **at)} times at step 20.",
    )


def _deepest(evidence: Evidence, batch: int) -> Floats:
    """Return per seed the most layers with which test accuracy gets beyond twice chance; 1 where none does."""
    depths = evidence.settings["depths"]
    trained = np.array([evidence.accuracy("batch", depth=depth, batch=batch) > 0.2 for depth in depths])
    return np.asarray(np.where(trained, np.array(depths, dtype=np.float64)[:, None], 1.0).max(0))


DEEPEST = Quantity("layers of the deepest network that trains", _deepest)


def _length(batch: int) -> float:
    """Return how many layers squared gradients take to grow e-fold, in theory."""
    return 1 / math.log(theory("relu", batch))


def _trainable(evidence: Evidence, batch: int) -> Contrast:
    """Return the contrast of the deepest network that trains with the factor of the source."""
    length, deepest = _length(batch), DEEPEST(evidence, batch=batch)
    return Contrast(
        DEEPEST,
        at={"batch": batch},
        effect=lambda layers, _: np.minimum(layers / length - 10, 24 - layers / length),
        scale="value",
        margin=0.0,
        claim="The deepest network that trains has 10 to 24 times as many layers as gradients take to grow e-fold.",
        endpoint=f"Distance of the factor from the nearer end of 10 to 24, batches of {batch}",
        reason=f"The deepest has {DEEPEST.typical(deepest)} layers, {DEEPEST.typical(deepest / length)} times the "
        f"length {length:.2f}; the grid ends at {max(evidence.settings['depths']) / length:.1f}.",
    )


def _against(evidence: Evidence) -> list[Table]:
    """Tabulate spreads at step 0 against theory, and how well lines through the origin fit spread and depth."""
    depths, batches = evidence.settings["depths"], evidence.settings["batches"]
    half = (np.array(depths, dtype=np.float64) - 1) / 2
    rows, fits = [], []
    for batch in batches:
        logs = np.array([START(evidence, depth=depth, batch=batch) for depth in depths])
        for layers, mean in zip(depths, logs.mean(1), strict=True):
            words = f"spread at step 0, {layers} layers, B={batch}"
            rows.append((words, *_ratio(math.exp(mean), _spread_in_theory(layers, batch), ".4g")))
        slope, r2 = proportional(np.repeat(half, logs.shape[1]), logs.ravel())
        expected = theory("relu", batch)
        rows.append((f"growth per layer, from the spreads, B={batch}", *_ratio(math.exp(slope), expected, ".4f")))
        words = f"log spread at step 0 on half the layers less one, B={batch}"
        fits.append((words, f"{slope:.4f}", f"{math.log(expected):.4f}", _share(r2)))
    deepest = np.array([DEEPEST(evidence, batch=batch) for batch in batches])
    lengths = np.repeat([_length(batch) for batch in batches], deepest.shape[1])
    factor, r2 = proportional(lengths, deepest.ravel())
    fits.append(("deepest that trains on the length of growth", f"{factor:.3g}", "16", _share(r2)))
    return [
        Table(
            "Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(rows), "Geometric means over seeds."
        ),
        Table(
            "Lines through the origin",
            ("Fit", "Slope", "Theory or source", "R^2"),
            tuple(fits),
            "All seeds in one fit. The share of variance explained is about the mean, so a line through the origin can "
            "have a negative one; it is left out where all values are the same.",
        ),
    ]


def _ratio(measured: float, expected: float, digits: str) -> tuple[str, str, str]:
    return f"{measured:{digits}}", f"{expected:{digits}}", f"{measured / expected:.4f}"


def _share(r2: float) -> str:
    return f"{r2:.3f}" if math.isfinite(r2) else ""
