"""Half of the inputs of a rectifier are inactive: is that harm, and does a positive shift mend it?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import torch
from scipy.stats import norm as normal

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, accuracy, final, last, mean, presets
from normscope.studies.figures import theory_table
from normscope.studies.lab import norms
from normscope.studies.lab.arms import Noted, batch_norm, noted, recorder
from normscope.studies.lab.data import Split

FIXED = {"beta=-1": -1.0, "beta=-0.5": -0.5, "beta=0": 0.0, "beta=0.5": 0.5, "beta=1": 1.0, "beta=2": 2.0}
LEARNT = {"learnt from 0": 0.0, "learnt from 1": 1.0}
POSITIVE = ("beta=0.5", "beta=1", "beta=2")
INACTIVE = mean("inactive", "share of inactive inputs at initialization", probe="rectifier", before=1)


class ReluHalfSaturated(AbstractTraining):
    r"""A positive shift of batch norm keeps rectifiers from being half saturated, and so helps.

    ## Claim
    A zero-mean input to a rectifier means that half of the inputs are saturated, with vanishing gradient; a positive
    beta stops this (answers to "How does the batch normalization layer work?"). Yang et al. 2019, figure 4b: with
    beta towards infinity the network becomes linear, and deeper ones can be trained.

    ## Method
    Dense networks of 5 and 20 hidden layers with batch norm before each rectifier, gamma fixed at 1 and beta fixed at
    one of six values, or learnt from 0 or 1; and without norm. Measured at the first step and at the end, on a large
    batch: the share of inactive inputs of each layer, the share of units inactive on all of it, and the mean learnt
    beta. Judged: test accuracy with the best fixed positive beta less that with beta 0 (the best is chosen on
    validation data), above half a percentage point; the headline is the shallow network, the deep one is also tried.
    Claims of their own: the inactive share is $\Phi(-\beta/\gamma)$, within 2 percentage points, for betas from
    0 up and, apart, for those below 0; and learning moves beta up.

    ## Prediction
    The share is as theory says from beta 0 up. Below 0 it grows with depth beyond theory (in a pilot at -1 from .85 in
    the first layer to .97 in the fourth, at widths 64 and 400 alike): few samples are active, and inputs get heavy
    tails. No effect in shallow networks: He initialisation and batch norm make up for the factor one half
    ($E[\varphi'^2]/Var[\varphi] = 1.467 > 1$), and a beta of 2 leaves a nearly linear network. In very deep plain
    networks a positive beta helps, by making them more linear. Learnt beta stays near 0; in convolutional networks it
    is typically negative (from memory, not checked against a text).

    ## Threats
    That betas below 0 are judged apart was decided after that pilot.
    One gamma for all units; a learnt gamma moves the share as well. Choosing the best of three positive values favours
    the claim a little, although they are chosen on validation data. Easy data leave little room above 95 %.
    """

    CODE = "relu-half-saturated"
    CARD = 24
    TOPIC = "saturation"
    SOURCES = (
        "Q&A on the layer, comment on rectifiers",
        "Yang et al. 2019 (arXiv:1902.08129), figure 4b",
    )
    CLAIM = "A positive beta before a rectifier improves on the half-inactive inputs of beta 0."
    ON_A_CASE = "initial shifts are no arm of a comparison"
    ENDPOINT = "Test accuracy with the best fixed positive beta, less that with beta 0"
    MARGIN = 0.005
    MARGIN_REASON = "two test images"
    ARMS = {
        **{arm: Arm(arm, batch_norm(shift=beta, learn_gain=False, learn_shift=False)) for arm, beta in FIXED.items()},
        **{arm: Arm(f"beta {arm}", batch_norm(shift=beta, learn_gain=False)) for arm, beta in LEARNT.items()},
        "none": Arm("no norm", norms.none()),
    }
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "width": 64},
            "depths": [5, 20],
            "batch": 64,
            "lr": 0.1,
            "steps": 200,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "depths": [None], "batch": 128, "steps": 15000},
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every depth."""
        for depth in settings["depths"]:
            for arm in self.ARMS:
                yield arm, {"depth": depth or 0}

    def norm(self, cell: Cell) -> norms.Factory:
        """Return the arm's norm; the inputs of rectifiers are noted."""
        return noted(super().norm(cell))

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the point's depth, if the network has one."""
        return {"depth": int(cell.point["depth"])} if cell.point["depth"] else {}

    def before(self, cell: Cell, model: torch.nn.Module, split: Split) -> Iterable[Record]:
        """Look at the inputs of its rectifiers."""
        return _look(cell, model, split, 0)

    def after(self, cell: Cell, model: torch.nn.Module, split: Split) -> Iterable[Record]:
        """Look at them again."""
        return _look(cell, model, split, int(cell.settings["steps"]))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield accuracy at the shallow depth; the deep network is also tried; then the share and the learnt shift."""
        points = _points(evidence)
        for at in points:
            yield self._gain(evidence, at)
        shallow = points[0]
        for arm, beta in FIXED.items():
            yield Contrast(
                INACTIVE,
                arm,
                _theory(arm),
                at=shallow,
                labels=(f"beta {beta:g}", "theory"),
                unit="points",
                equal_within=0.02,
                margin_reason="one input in fifty",
                claim="The inactive share is that of a normal variable, Phi(-beta/gamma), for betas "
                f"{'from 0' if beta >= 0 else 'below 0'}.",
                name=f"inactive share, beta {beta:g}",
                says=f"with beta {beta:g} the inactive share lies {{effect}} that of a normal variable",
                comparative=("above", "below"),
            )
        for arm, start in LEARNT.items():
            yield Contrast(
                last("beta", f"mean beta, {arm}", probe="rectifier"),
                arm,
                start,
                at=shallow,
                labels=("at the end", "at the start"),
                conditions={"start": arm},
                margin=0.01,
                margin_reason="a hundredth of the spread of the inputs",
                claim="Learning moves beta up.",
                name=arm,
                says="training leaves the mean beta {effect} than it began",
                comparative=("higher", "lower"),
            )

    def _gain(self, evidence: Evidence, at: Mapping[str, int]) -> Contrast:
        validated = accuracy("val_accuracy")
        best = max(POSITIVE, key=lambda arm: float(validated(evidence, arm=arm, **at).mean()))
        return Contrast(
            accuracy(),
            best,
            "beta=0",
            at=at,
            labels=("the positive beta that is best on validation data", "beta 0"),
            name=self.wording.at(at) or "network",
            says=f"the test accuracy is {{effect}} with beta {FIXED[best]:g} than with beta 0",
            comparative=("higher", "lower"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw accuracy by beta, and the loss of the deepest network."""
        points = _points(evidence)
        ends = evidence.select(probe="training", name="test_accuracy", arm=list(FIXED))
        return [
            curves(
                ends.with_columns(
                    pl.col("arm").replace_strict(FIXED).alias("beta"),
                    pl.col("depth").cast(pl.Int64).cast(pl.String).alias("arm"),
                ),
                y="test_accuracy",
                x="beta",
                slug="accuracy-by-beta",
                title="Test accuracy by fixed beta",
                x_title="beta, with gamma 1",
                labels={str(at.get("depth", 0)): self.wording.at(at) or "network" for at in points},
            ),
            self.curves(
                evidence,
                "loss",
                at={**points[-1], "arm": [*POSITIVE, "beta=0", "beta=-1", "none"]},
                slug="loss",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the inactive share against theory, and how the arms end."""
        depths = [depth or 0 for depth in evidence.settings["depths"]]
        shares = {arm: INACTIVE(evidence, arm=arm, depth=depths[0]) for arm in FIXED}
        inactive = last("inactive_mean", "share of inactive inputs at the end", probe="rectifier")
        return [
            theory_table(
                ((f"Inactive share, {arm}", share, _theory(arm)) for arm, share in shares.items()),
                "At initialization.",
            ),
            self.grid_table(
                [final("loss"), accuracy(), inactive],
                evidence,
                rows={"depth": depths, "arm": list(self.ARMS)},
                title="How the arms end",
                caption=f"Means over {len(evidence.seeds)} seeds.",
            ),
        ]


def _points(evidence: Evidence) -> list[dict[str, int]]:
    """Return the points of the grid; a network whose depth is not varied has one without a name."""
    return [{"depth": depth} if depth else {} for depth in evidence.settings["depths"]]


def _theory(arm: str) -> float:
    """Return the share of a normal variable that lies below minus beta."""
    return float(normal.cdf(-FIXED[arm]))


def _look(cell: Cell, model: torch.nn.Module, split: Split, step: int) -> Iterator[Record]:
    """Record what the rectifiers of a network are given on a batch of 512, and the mean shift."""
    record = recorder(cell, "rectifier")
    with torch.no_grad():
        model(split.x_train[:512])
    shares, betas = [], []
    for path, module in model.named_modules():
        if not isinstance(module, Noted) or module.output is None:
            continue
        inputs = module.output.detach().flatten(2) if module.output.ndim > 2 else module.output.detach()[..., None]
        off = inputs <= 0
        shares.append(float(off.double().mean()))
        yield record("inactive", shares[-1], step, path)
        yield record("dead", off.all(2).all(0).double().mean(), step, path)
        if getattr(module.inner, "bias", None) is not None:
            betas.append(float(module.inner.bias.detach().mean()))  # type: ignore[operator]
        module.output = None
    yield record("inactive_mean", math.fsum(shares) / max(1, len(shares)), step)
    if betas:
        yield record("beta", math.fsum(betas) / len(betas), step)
