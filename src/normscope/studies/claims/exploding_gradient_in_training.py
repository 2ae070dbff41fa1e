"""What becomes of gradients that explode at initialization, and how deep a network may be."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from normscope.plots import Figure, Table, by_depth
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, accuracy, presets
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.spread import (
    DEEPEST,
    END,
    START,
    against_theory,
    growth_length,
    spread,
    spread_in_theory,
)

WATCHED = (0, 1, 5, 20)
#: Layers from which a gradient explodes enough for its end to be seen.
DEEP = 20
#: Share of the log spread that counts as gone, and the spread that counts as narrow.
GONE, NARROW = 0.7, 10.0
#: The source's layers of the deepest network that trains, over the layers in which gradients grow e-fold.
FACTOR = 16.0


class ExplodingGradientInTraining(AbstractTraining):
    r"""The explosion at initialization is gone after a few steps, and yet deep plain networks do not train.

    ## Claim
    Gradients of a network with batch norm explode at initialization, but training equalises them within a few steps,
    because layers with large gradients grow and then get small ones; still, plain networks with batch norm deeper than
    about fifty layers cannot be trained, whatever the batch (Yang et al. 2019, section 4 and figures 2 and 3).

    ## Method
    Dense networks of rectifiers and batch norm, 5 to 40 layers of 64, batches of 16 and 128, learning rate 0.1. The
    spread of relative gradients $\|\nabla_W L\|/\|W\|$ over layers, largest over smallest, at steps 0, 1, 5 and
    20. An explosion counts as gone if at step 20 no layer's relative gradient is more than ten times another's; that
    the spread is beyond ten at step 0 is a premise. The headline is 20 layers at the largest batch; also tried is every
    other network of 20 layers or more, where there is an explosion to be gone. A claim of its own, with a stricter
    line: at step 20 at least 70 % of the logarithm of the spread is gone. Another: the deepest network of the grid that
    gets beyond twice chance on test data, over $1/\log\lambda$ with the growth rate of theory at that batch, is
    the source's factor 16, within 1.5 times; where the deepest of the grid trains, its depth is only a bound, and
    nothing is said.

    ## Prediction
    Both hold. At step 0 the spread is about $\lambda^{(L-1)/2}$; a layer whose gradient is large takes a large
    step, grows, and from then on gets a gradient smaller by as much. How many steps that takes depends on depth and
    batch.

    ## Threats
    Where to draw the line is a choice: at 20 layers and batches of 128 half of the logarithm is gone, which leaves a
    spread of six: gone by the line of ten, not by the line of 70 %. The deepest of a short grid is a coarse measure.
    How deep is trainable depends on learning rate and budget, so the factor 16 is empirical.
    """

    CODE = "exploding-gradient-in-training"
    CARD = 7
    TOPIC = "gradient"
    SOURCES = (
        "Q&A on the gradient, question",
        "Yang et al. 2019 (arXiv:1902.08129), section 4, figures 2 and 3",
    )
    CLAIM = "The explosion of gradients at initialization is gone after twenty steps of training."
    ON_A_CASE = "it has one arm: `ns.watch(model)` shows the growth of gradients step by step"
    ENDPOINT = "Ten over the largest relative gradient over the smallest at step 20, 20 layers"
    MARGIN = math.log(1.2)
    MARGIN_REASON = "the line of ten is no sharper than that"
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
        """Yield the spread left wherever gradients explode at first; the share that is gone, the trainable depth."""
        judged, batches = evidence.settings["judged"], evidence.settings["batches"]
        cells = [(depth, batch) for depth in evidence.settings["depths"] for batch in batches]
        main = (judged, batches[-1])
        listed = [main, *(cell for cell in cells if cell != main and cell[0] >= DEEP)]
        for depth, batch in listed:
            yield _within(evidence, depth, batch)
        for depth, batch in listed:
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
                caption=_fall(evidence, depth=judged, batch=batches[-1]),
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
                caption=" ".join(str(_trainable(evidence, batch).reason) for batch in batches),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the spread at each step, and what theory and the source say of it and of the depth."""
        expected = Quantity(
            "theory at step 0", lambda evidence, depth, batch, **_: np.array([spread_in_theory(depth, batch)])
        )
        return [
            self.grid_table(
                [*(spread(step, f"step {step}") for step in WATCHED), expected, accuracy()],
                evidence,
                rows={"batch": evidence.settings["batches"], "depth": evidence.settings["depths"]},
                at={"arm": "batch"},
                title="Largest over smallest relative gradient",
            ),
            *against_theory(evidence),
        ]


def _fall(evidence: Evidence, **at: Any) -> str:
    """Say how the spread falls, in a sentence."""
    return (
        f"The largest relative gradient is {START.text(evidence, **at)} times the smallest at step 0 (theory "
        f"{spread_in_theory(**at):.3g}) and {END.text(evidence, **at)} times at step 20."
    )


def _equalised(evidence: Evidence, depth: int, batch: int) -> Contrast:
    """Return the contrast of the share of the log spread that is gone at step 20 with what counts as gone."""
    at = {"depth": depth, "batch": batch}
    return Contrast(
        Quantity(
            "share of the log spread of relative gradients that is gone at step 20",
            lambda evidence, **where: 1 - END(evidence, **where) / START(evidence, **where),
        ),
        "batch",
        GONE,
        at=at,
        unit="points",
        labels=("", "what counts as gone"),
        margin=0.02,
        margin_reason="two hundredths of the logarithm are less than what two seeds differ by",
        name=f"share, {depth} layers, batches of {batch}",
        claim=f"After twenty steps {100 * GONE:g} % of the logarithm of the explosion is gone.",
        says=f"the largest relative gradient falls from {START.text(evidence, **at)} to {END.text(evidence, **at)} "
        f"times the smallest in 20 steps; {{effect}} of the logarithm is gone than the {100 * GONE:g} % that count",
        comparative=("more", "less"),
    )


def _within(evidence: Evidence, depth: int, batch: int) -> Contrast:
    """Return the contrast of the spread left at step 20 with a factor of ten."""
    at: dict[str, Any] = {"depth": depth, "batch": batch}
    exploded = Contrast(
        START,
        "batch",
        NARROW,
        at=at,
        scale="log-ratio",
        margin=0.0,
        margin_reason="any spread beyond ten is an explosion",
        claim=f"At step 0 the largest relative gradient is more than {NARROW:g} times the smallest.",
        says=f"it is {{effect}} {NARROW:g} times",
        labels=("", "ten"),
    )
    return Contrast(
        END,
        NARROW,
        "batch",
        at=at,
        scale="log-ratio",
        labels=("ten", ""),
        name=f"{depth} layers, batches of {batch}",
        endpoint=f"Ten over the spread of relative gradients at step 20, {depth} layers, batches of {batch}",
        says=f"the largest relative gradient falls from {START.text(evidence, **at)} to {END.text(evidence, **at)} "
        f"times the smallest in 20 steps, {{effect}} than {NARROW:g}",
        comparative=("smaller", "larger"),
        reason=_fall(evidence, **at),
        premises=(exploded,),
    )


def _trainable(evidence: Evidence, batch: int) -> Contrast:
    """Return the contrast of the deepest network that trains with the factor of the source."""
    length, deepest, end = growth_length(batch), DEEPEST(evidence, batch=batch), max(evidence.settings["depths"])
    too_deep = Contrast(
        accuracy(),
        0.2,
        "batch",
        at={"batch": batch, "depth": end},
        labels=("twice chance", ""),
        margin=0.0,
        margin_reason="beyond twice chance a network counts as trained",
        claim="The deepest network of the grid is too deep to train.",
        says="its test accuracy is {effect} than twice chance",
        comparative=("lower", "higher"),
    )
    return Contrast(
        DEEPEST,
        "batch",
        FACTOR,
        at={"batch": batch},
        effect=lambda layers, factor: np.log(layers / length / factor),
        scale="log-ratio",
        equal_within=math.log(1.5),
        margin_reason="depths of the grid differ by a factor of two",
        labels=("", "the source's factor"),
        name=f"trainable depth, batches of {batch}",
        claim=f"The deepest network that trains has {FACTOR:g} times as many layers as gradients take to grow e-fold.",
        endpoint=f"Layers of the deepest network that trains over the length of growth, over {FACTOR:g}, batches of "
        f"{batch}",
        says=f"the deepest network that trains has {DEEPEST.typical(deepest)} layers, "
        f"{DEEPEST.typical(deepest / length)} times the {length:.2f} layers in which gradients grow e-fold: {{effect}} "
        "the source's factor",
        reason=f"With batches of {batch} the deepest that trains has {DEEPEST.typical(deepest)} layers, "
        f"{DEEPEST.typical(deepest / length)} times the length {length:.2f}; the grid ends at {end / length:.1f}.",
        premises=(too_deep,),
    )
