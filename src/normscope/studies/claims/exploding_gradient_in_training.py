"""What becomes of gradients that explode at initialization, and how deep a network may be."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.stats import proportional
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import accuracy
from normscope.studies.judging import with_parts
from normscope.studies.lab.arms import fit, network, recorder, split_of
from normscope.studies.lab.chain import theory
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

WATCHED = (0, 1, 5, 20)


class ExplodingGradientInTraining(AbstractStudy):
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
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "width": 64},
            "depths": [5, 10, 20, 40],
            "judged": 20,
            "batches": [16, 128],
            "lr": 0.1,
            "steps": 100,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "mlp", "width": 384},
            "depths": [10, 20, 40, 60, 80, 100],
            "judged": 20,
            "batches": [8, 32, 128],
            "lr": 0.1,
            "steps": 5000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every depth with every batch."""
        for batch in settings["batches"]:
            for depth in settings["depths"]:
                yield "batch", {"depth": depth, "batch": batch}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train one depth and watch the relative gradients of its layers at a few steps."""
        # Torch's own layer: forty of them a step are what this cell consists of.
        model = network(
            cell, data, lambda place: nn.BatchNorm1d(place.features), device, depth=int(cell.point["depth"])
        )
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

        return fit(model, split_of(cell, data, device), cell, watch=watch)

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge equalisation; the other depths, theory and the trainable depth are parts."""
        judged, batches = evidence.settings["judged"], evidence.settings["batches"]
        primary = self._equalised(evidence, judged, batches[-1], self.ENDPOINT)
        parts = [
            self._equalised(evidence, depth, batch, f"The same, {depth} layers, batches of {batch}")
            for batch in batches
            for depth in evidence.settings["depths"]
            if (depth, batch) != (judged, batches[-1])
        ]
        parts += [self._depth(evidence, batch) for batch in batches]
        return with_parts(primary, parts)

    def _equalised(self, evidence: Evidence, depth: int, batch: int, endpoint: str) -> Verdict:
        start, end = (_spread(evidence, depth, batch, step) for step in (0, 20))
        expected = theory("relu", batch) ** ((depth - 1) / 2)
        return self.part(
            evidence,
            1 - np.log(end) / np.log(start),
            scale="value",
            endpoint=endpoint,
            reason=f"The largest relative gradient is {typical(np.log(start), logs=True)} times the smallest at step 0 "
            f"(theory {expected:.3g}) and {typical(np.log(end), logs=True)} times at step 20.",
        )

    def _depth(self, evidence: Evidence, batch: int) -> Verdict:
        deepest, length = _deepest(evidence, batch), _length(batch)
        factor = deepest / length
        most = max(evidence.settings["depths"]) / length
        return self.part(
            evidence,
            np.minimum(factor - 10, 24 - factor),
            scale="value",
            margin=0.0,
            claim="The deepest network that trains has 10 to 24 times as many layers as gradients take to grow e-fold.",
            endpoint=f"Distance of the factor from the nearer end of 10 to 24, batches of {batch}",
            reason=f"The deepest has {typical(deepest)} layers, {typical(factor)} times the length {length:.2f}; the "
            f"grid ends at {most:.1f}.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the relative gradients by layer, and accuracy by depth."""
        from normscope.plots import by_depth

        judged, batch = evidence.settings["judged"], evidence.settings["batches"][-1]
        return [
            by_depth(
                evidence.select(probe="relative_gradient", name="relative", depth=judged, batch=batch),
                y="relative",
                steps=list(WATCHED),
                slug="by-layer",
                title=f"Relative gradient of each of {judged} layers, a panel a step",
                y_title="Norm of the gradient over norm of the weights",
                caption=self._equalised(evidence, judged, batch, "").reason,
            ),
            curves(
                evidence.select(probe="training", name="test_accuracy"),
                y="test_accuracy",
                x="depth",
                facet="batch",
                slug="by-depth",
                title="Test accuracy by depth, a panel a batch size",
                x_title="Hidden layers",
                y_title="Test accuracy",
                reference={"twice chance": 0.2},
                caption="; ".join(self._depth(evidence, size).reason for size in evidence.settings["batches"]),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the spread at each step, and what theory and the source say of it and of the depth."""
        rows = tuple(
            (
                depth,
                batch,
                *(typical(np.log(_spread(evidence, depth, batch, step)), logs=True) for step in WATCHED),
                f"{theory('relu', batch) ** ((depth - 1) / 2):.3g}",
                typical(accuracy(evidence, "batch", depth=depth, batch=batch)),
            )
            for batch in evidence.settings["batches"]
            for depth in evidence.settings["depths"]
        )
        steps = (f"step {step}" for step in WATCHED)
        columns = ("Layers", "Batch", *steps, "Theory at step 0", "Test accuracy")
        return [Table("Largest over smallest relative gradient", columns, rows), *_against(evidence)]


def _deepest(evidence: Evidence, batch: int) -> np.ndarray:
    """Return per seed the most layers with which test accuracy gets beyond twice chance; 1 where none does."""
    depths = evidence.settings["depths"]
    trained = np.array([accuracy(evidence, "batch", depth=depth, batch=batch) > 0.2 for depth in depths])
    found: np.ndarray = np.where(trained, np.array(depths, dtype=np.float64)[:, None], 1.0).max(0)
    return found


def _length(batch: int) -> float:
    """Return how many layers squared gradients take to grow e-fold, in theory."""
    return 1 / math.log(theory("relu", batch))


def _against(evidence: Evidence) -> list[Table]:
    """Tabulate spreads at step 0 against theory, and how well lines through the origin fit spread and depth."""
    depths, batches = evidence.settings["depths"], evidence.settings["batches"]
    rows, fits = [], []
    for batch in batches:
        logs = np.log([_spread(evidence, depth, batch, 0) for depth in depths])
        means = logs.mean(1)
        half = (np.array(depths, dtype=np.float64) - 1) / 2
        for layers, mean, exponent in zip(depths, means, half, strict=True):
            found, expected = math.exp(mean), theory("relu", batch) ** exponent
            rows.append((f"spread at step 0, {layers} layers, B={batch}", f"{found:.4g}", f"{expected:.4g}",
                         f"{found / expected:.4f}"))  # fmt: skip
        slope, r2 = proportional(np.repeat(half, logs.shape[1]), logs.ravel())
        found, expected = math.exp(slope), theory("relu", batch)
        rows.append((f"growth per layer, from the spreads, B={batch}", f"{found:.4f}", f"{expected:.4f}",
                     f"{found / expected:.4f}"))  # fmt: skip
        fits.append((f"log spread at step 0 on half the layers less one, B={batch}", f"{slope:.4f}",
                     f"{math.log(expected):.4f}", _share(r2)))  # fmt: skip
    deepest = np.array([_deepest(evidence, batch) for batch in batches])
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


def _share(r2: float) -> str:
    return f"{r2:.3f}" if math.isfinite(r2) else ""


def _spread(evidence: Evidence, depth: int, batch: int, step: int) -> np.ndarray:
    frame = evidence.select(probe="relative_gradient", name="spread", depth=depth, batch=batch)
    return evidence.per_seed(frame.filter(frame["step"] == step))
