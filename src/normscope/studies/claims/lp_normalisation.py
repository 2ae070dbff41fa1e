"""Do other norms than the l2 norm serve as well as batch norm's standard deviation?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from normscope import ops
from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Best, Contrast, Evidence, accuracy, last, presets, steps_to
from normscope.studies.figures import by_rate_figure
from normscope.studies.lab import norms
from normscope.studies.lab.arms import Noted, first_batch, noted, recorder
from normscope.studies.lab.data import Split

ORDERS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


class LpNormalisation(AbstractTraining):
    r"""Dividing by an average lp norm trains as fast as batch norm, for p = 1, 2 and infinity.

    ## Claim
    Batch norm's effect is not unique to it: mean-centring and division by the average lp norm, computed before the mean
    is taken off, does as well although it controls no moments (Santurkar et al. 2018, section 3.3, Figures 5, 12-14).

    ## Method
    Eight hidden layers of 64 with ReLU, three learning rates. Judged: the steps until the training accuracy has come
    90 % of the way from chance to the best plateau, for each p against batch norm at the same learning rate (the middle
    one): no more than 20 % more of them. A norm that is faster never counts against the claim, and a seed in which
    neither arm arrives gives no number. The headline is l1, the first that the source names; l2 and l-infinity, and all
    three at each arm's own best learning rate, are also tried. A claim of its own: the test accuracy is no more than a
    point lower. Also in the records: the kurtosis of what enters the last activation and, for Gaussian values, E|y|
    over sigma against $\sqrt{2/\pi}$. The deep linear network of the source, with these norms, is the preset
    *deep-linear* of ``beta-smoothness-is-edge-of-stability``.

    ## Prediction
    p = 1 and 2 alike batch norm; infinity slower and noisier, as the maximum over a batch is. In the source itself the
    curve of infinity on the deep linear network lies above batch norm's, so "comparable or better" does not hold for
    all there. Its advantage for l1 comes from one seed's plateau: over seeds it turns around.

    ## Threats
    A norm taken before the mean is off is not shift-invariant: where means are large the division is by more than the
    spread. The learning rates are three, so "own best" is coarse. How soon a target is reached, not how well a net
    ends, is the headline's endpoint.
    """

    CODE = "lp-normalisation"
    CARD = 15
    TOPIC = "landscape"
    SOURCES = ("Santurkar et al. 2018 (arXiv:1805.11604), section 3.3", "Hoffer et al. 2018 (arXiv:1803.01814)")
    CLAIM = "Dividing by an average lp norm trains at least as fast as batch norm."
    ON_A_CASE = "surgery knows no lp norms"
    ENDPOINT = "Steps to 90 % of the way to the best training accuracy, batch norm over l1, same learning rate"
    MARGIN = math.log(1.2)
    MARGIN_REASON = "a fifth more steps, less than what the learning rates of the grid differ by"
    VARIES = {"arms": "norm"}
    ARMS = {
        "none": Arm("no norm", norms.none()),
        "batch": Arm("batch norm", norms.batch()),
        "l1": Arm("l1", norms.lp(ORDERS["l1"])),
        "l2": Arm("l2", norms.lp(ORDERS["l2"])),
        "linf": Arm("l-infinity", norms.lp(ORDERS["linf"])),
    }
    POINTS = {"lr": "lrs"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 8, "width": 64},
            "batch": 128,
            "lrs": [0.05, 0.1, 0.2],
            "lr": 0.1,
            "steps": 250,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a", "width": 64}, "lrs": [0.01, 0.1, 0.5], "steps": 15000},
    )

    def norm(self, cell: Cell) -> norms.Factory:
        """Return the arm's norm, its outputs noted: they enter the activations."""
        return noted(super().norm(cell))

    def after(self, cell: Cell, model: nn.Module, split: Split) -> Iterable[Record]:
        """Look at what enters the last activation."""
        yield from _shape(cell, model, split)
        if cell.arm == "l1":
            source = torch.Generator().manual_seed(cell.seed)
            values = torch.randn(4096, 8, 1, generator=source, dtype=torch.float64) * 3
            yield recorder(cell, "lp")("spread", ops.lp_norm(values, p=1.0, eps=0.0).std(0).mean())

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the speed of l1 at the same learning rate; other norms and own best rates, then accuracy and theory."""
        same = {"lr": evidence.settings["lr"]}
        for at in (same, {"lr": Best("lr")}):
            for arm in ORDERS:
                yield self._as_fast(arm, at)
        for arm in ORDERS:
            yield Contrast(
                accuracy(),
                arm,
                "batch",
                at=same,
                no_worse_than=0.01,
                margin_reason="three or four test images",
                claim="Dividing by an average lp norm ends with at least batch norm's test accuracy.",
                name=f"accuracy, {arm}",
                says=f"with the {self.ARMS[arm]} norm the test accuracy is {{effect}}",
                comparative=("higher", "lower"),
            )
        yield Contrast(
            last("spread", "standard deviation of normalized Gaussian values", probe="lp"),
            "l1",
            math.sqrt(math.pi / 2),
            at=same,
            effect=lambda measured, theory: measured / theory - 1,
            unit="%",
            equal_within=0.02,
            margin_reason="what sampling makes of 4096 values",
            claim="Of Gaussian values the l1 norm is the standard deviation times the root of two over pi.",
            name="l1 of Gaussian values",
            endpoint="Standard deviation of normalized Gaussian values over theory, less one",
            says="the standard deviation after division by the l1 norm lies {effect} theory",
            comparative=("above", "below"),
            labels=("l1", "theory"),
        )

    def _as_fast(self, arm: str, at: Mapping[str, Any]) -> Contrast:
        return Contrast(
            steps_to(0.9),
            "batch",
            arm,
            at=at,
            scale="log-ratio",
            no_worse_than=self.MARGIN,
            name=arm if not isinstance(at["lr"], Best) else f"{arm}, own best rates",
            says=f"training takes {{effect}} steps with the {self.ARMS[arm]} norm",
            comparative=("fewer", "more"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss at the learning rate that is judged, and accuracy by learning rate."""
        return [
            self.curves(evidence, "loss", at={"lr": evidence.settings["lr"]}, slug="loss"),
            by_rate_figure(evidence, self.wording.arms),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate speed, ends and kurtosis."""
        return [
            self.grid_table(
                [
                    steps_to(0.9),
                    accuracy(),
                    last("kurtosis", "kurtosis before the last activation (of a normal variable 3)", probe="lp"),
                ],
                evidence,
                rows={"arm": list(self.ARMS), "lr": evidence.settings["lrs"]},
                title="Norms",
                heads={"arm": "Norm"},
            )
        ]


def _shape(cell: Cell, model: nn.Module, split: Split) -> Iterable[Record]:
    with torch.no_grad():
        model(first_batch(split, cell, 512)[0])
    last = [module for module in model.modules() if isinstance(module, Noted)][-1].output
    if last is not None and bool(last.isfinite().all()):
        x = last.detach().double()
        x = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
        yield recorder(cell, "lp")("kurtosis", x.pow(4).mean(0).median())
