"""Half of the inputs of a rectifier are inactive: is that harm, and does a positive shift mend it?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import torch
from scipy.stats import norm as normal

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import equivalent, with_parts
from normscope.studies.lab import norms
from normscope.studies.lab.arms import Noted, batch_norm, network, noted, recorder
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

FIXED = {"beta=-1": -1.0, "beta=-0.5": -0.5, "beta=0": 0.0, "beta=0.5": 0.5, "beta=1": 1.0, "beta=2": 2.0}
LEARNT = {"learnt from 0": 0.0, "learnt from 1": 1.0}
POSITIVE = ("beta=0.5", "beta=1", "beta=2")


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
    beta. Primary endpoint, at the shallow depth: test accuracy with the best fixed positive beta less that with beta 0
    (the best is chosen on validation data); supported above half a percentage point. The inactive share is held against
    :math:`\Phi(-\beta/\gamma)`, within 2 percentage points, for betas from 0 up and, apart, for those below 0.

    ## Prediction
    The share is as theory says from beta 0 up. Below 0 it grows with depth beyond theory (in a pilot at -1 from .85 in
    the first layer to .97 in the fourth, at widths 64 and 400 alike): few samples are active, and inputs get heavy
    tails. The claim is refuted for shallow networks: He initialisation and batch norm make up for the factor one half
    (:math:`E[\varphi'^2]/Var[\varphi] = 1.467 > 1`), and a beta of 2 leaves a nearly linear network. In very deep plain
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
    ENDPOINT = "Test accuracy with the best fixed positive beta, less that with beta 0"
    MARGIN = 0.005
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "width": 64},
            "depths": [5, 20],
            "batch": 64,
            "lr": 0.1,
            "steps": 200,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "depths": [None],
            "batch": 128,
            "lr": 0.1,
            "steps": 15000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every depth."""
        for depth in settings["depths"]:
            for arm in (*FIXED, *LEARNT, "none"):
                yield arm, {"depth": depth or 0}

    def network(self, cell: Cell, data: "Dataset", device: str) -> torch.nn.Module:
        """Return the network of an arm, the inputs of its rectifiers noted."""
        depth = int(cell.point["depth"])
        if cell.arm == "none":
            factory = norms.none()
        elif cell.arm in LEARNT:
            factory = batch_norm(shift=LEARNT[cell.arm], learn_gain=False)
        else:
            factory = batch_norm(shift=FIXED[cell.arm], learn_gain=False, learn_shift=False)
        return network(cell, data, noted(factory), device, **({"depth": depth} if depth else {}))

    def before(self, cell: Cell, model: torch.nn.Module, split: "Split") -> Iterable[Record]:
        """Look at the inputs of its rectifiers."""
        return _look(cell, model, split, 0)

    def after(self, cell: Cell, model: torch.nn.Module, split: "Split") -> Iterable[Record]:
        """Look at them again."""
        return _look(cell, model, split, int(cell.settings["steps"]))

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge accuracy at the shallow depth; the share, the deep network and the learnt shift are parts."""
        depths = [depth or 0 for depth in evidence.settings["depths"]]
        primary = self._gain(evidence, depths[0])
        parts = [self._share(evidence, depths[0], negative=negative) for negative in (False, True)]
        parts += [self._gain(evidence, depth) for depth in depths[1:]]
        for arm in LEARNT:
            moved = evidence.last("beta", probe="rectifier", arm=arm, depth=depths[0], site="") - LEARNT[arm]
            parts.append(
                self.part(
                    evidence,
                    moved,
                    margin=0.0,
                    claim="Learning moves beta up.",
                    endpoint=f"Mean beta at the end less that at the start, {arm}",
                    reason=f"It moves by {typical(moved)}.",
                )
            )
        return with_parts(primary, parts)

    def _gain(self, evidence: Evidence, depth: int) -> Verdict:
        def accuracy(arm: str, name: str = "test_accuracy") -> np.ndarray:
            return np.nan_to_num(evidence.last(name, arm=arm, depth=depth), nan=0.0)

        best = max(POSITIVE, key=lambda arm: float(accuracy(arm, "val_accuracy").mean()))
        gain = accuracy(best) - accuracy("beta=0")
        deep = "" if depth == (evidence.settings["depths"][0] or 0) else f", {depth} hidden layers"
        return self.part(
            evidence,
            gain,
            endpoint=f"{self.ENDPOINT}{deep}",
            reason=f"Test accuracy {typical(accuracy(best))} with {best}, the best on validation data, and "
            f"{typical(accuracy('beta=0'))} with beta=0.",
        )

    def _share(self, evidence: Evidence, depth: int, *, negative: bool) -> Verdict:
        errors = [
            evidence.per_seed(evidence.select(probe="rectifier", name="inactive", arm=arm, depth=depth, before=1))
            - normal.cdf(-beta)
            for arm, beta in FIXED.items()
            if (beta < 0) == negative
        ]
        worst = max(errors, key=lambda found: abs(float(np.nanmean(found))))
        return equivalent(
            self,
            evidence,
            worst,
            0.02,
            claim="The inactive share is that of a normal variable, Phi(-beta/gamma)"
            f"{', below beta 0 too' if negative else ''}.",
            endpoint="Inactive share less theory at initialization, worst of the betas "
            f"{'below' if negative else 'from'} 0",
            reason=f"The largest difference is {typical(worst)}.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss of every arm, and accuracy by beta."""
        depths = [depth or 0 for depth in evidence.settings["depths"]]
        rows = [
            {"arm": f"{depth} layers" if depth else "network", "seed": seed, "beta": beta, "accuracy": value}
            for depth in depths
            for arm, beta in FIXED.items()
            for seed, value in zip(evidence.seeds, evidence.last("test_accuracy", arm=arm, depth=depth), strict=True)
        ]
        return [
            curves(
                pl.DataFrame(rows),
                y="accuracy",
                x="beta",
                slug="accuracy-by-beta",
                title="Test accuracy by fixed beta",
                x_title="beta, with gamma 1",
                y_title="Test accuracy",
                caption="; ".join(
                    f"{depth or 'the'} layers: "
                    + ", ".join(
                        f"{typical(evidence.last('test_accuracy', arm=arm, depth=depth))} at {beta:g}"
                        for arm, beta in FIXED.items()
                    )
                    for depth in depths
                )
                + ".",
            ),
            curves(
                evidence.select(probe="training", depth=depths[-1], arm=[*POSITIVE, "beta=0", "beta=-1", "none"]),
                y="loss",
                slug="loss",
                title=f"Training loss, {depths[-1] or 'the'} hidden layers",
                y_title="Cross-entropy of the step's batch",
                log=True,
                caption=evidence.final_losses({"beta=0": "beta 0", "beta=2": "beta 2"}, depth=depths[-1]),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the inactive share against theory, and how the arms end."""
        depth = evidence.settings["depths"][0] or 0
        return [_against_theory(evidence, depth), _ends(evidence)]


def _look(cell: Cell, model: torch.nn.Module, split: "Split", step: int) -> Iterator[Record]:
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


def _against_theory(evidence: Evidence, depth: int) -> Table:
    rows = []
    for arm, beta in FIXED.items():
        frame = evidence.select(probe="rectifier", name="inactive", arm=arm, depth=depth, before=1)
        found, theory = float(np.nanmean(evidence.per_seed(frame))), float(normal.cdf(-beta))
        rows.append((f"inactive share, beta {beta:g}", f"{found:.4f}", f"{theory:.4f}", f"{found / theory:.3f}"))
    return Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(rows), "At initialization.")


def _ends(evidence: Evidence) -> Table:
    rows = [
        (
            depth or "",
            arm,
            typical(evidence.final("loss", arm=arm, depth=depth or 0)),
            typical(evidence.last("test_accuracy", arm=arm, depth=depth or 0)),
            typical(evidence.last("inactive_mean", probe="rectifier", arm=arm, depth=depth or 0)),
        )
        for depth in evidence.settings["depths"]
        for arm in (*FIXED, *LEARNT, "none")
    ]
    columns = ("Hidden layers", "Arm", "Final loss", "Test accuracy", "Inactive share at the end")
    return Table("How the arms end", columns, tuple(rows), f"Means over {len(evidence.seeds)} seeds.")
