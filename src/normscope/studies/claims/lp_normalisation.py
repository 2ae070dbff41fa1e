"""Do other norms than the l2 norm serve as well as batch norm's standard deviation?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from normscope import ops
from normscope.plots import Figure, Table
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import accuracy, by_rate_figure, loss_figure, reached
from normscope.studies.judging import best_rate, conjunction, equivalent
from normscope.studies.lab import norms
from normscope.studies.lab.arms import Noted, first_batch, network, noted, recorder
from normscope.studies.lab.norms import Factory
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

ORDERS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
ARMS = {"none": "no norm", "batch": "batch norm", "l1": "l1", "l2": "l2", "linf": "l-infinity"}


class LpNormalisation(AbstractTraining):
    r"""Dividing by an average lp norm trains as fast as batch norm, for p = 1, 2 and infinity.

    ## Claim
    Batch norm's effect is not unique to it: mean-centring and division by the average lp norm, computed before the mean
    is taken off, does as well although it controls no moments (Santurkar et al. 2018, section 3.3, Figures 5, 12-14).

    ## Method
    Eight hidden layers of 64 with ReLU, three learning rates. Primary: steps to 90 % of training accuracy of each p,
    over those of batch norm, are within 20 % at the same learning rate (the middle one), for all of p = 1, 2 and
    infinity (all must hold). Parts: the same at each arm's own best learning rate; test accuracy within a point; the
    kurtosis of what enters the last activation; and, for Gaussian values, E|y| over sigma against
    :math:`\sqrt{2/\pi}`. The deep linear network of the source, with these norms, is the preset *deep-linear* of
    ``beta-smoothness-is-edge-of-stability``.

    ## Prediction
    p = 1 and 2 alike batch norm; infinity slower and noisier, as the maximum over a batch is. In the source itself the
    curve of infinity on the deep linear network lies above batch norm's, so "comparable or better" does not hold for
    all there. Its advantage for l1 comes from one seed's plateau: over seeds it turns around.

    ## Threats
    A norm taken before the mean is off is not shift-invariant: where means are large the division is by more than the
    spread. The learning rates are three, so "own best" is coarse. How often a target is reached, not how well a net
    ends, is the primary endpoint.
    """

    CODE = "lp-normalisation"
    CARD = 15
    TOPIC = "landscape"
    SOURCES = ("Santurkar et al. 2018 (arXiv:1805.11604), section 3.3", "Hoffer et al. 2018 (arXiv:1803.01814)")
    CLAIM = "Dividing by an average l1, l2 or l-infinity norm trains as fast as batch norm."
    ENDPOINT = "Steps to 90 % of training accuracy, over those of batch norm"
    MARGIN = math.log(1.2)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 8, "width": 64},
            "batch": 128,
            "lrs": [0.05, 0.1, 0.2],
            "lr": 0.1,
            "steps": 250,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a", "width": 64},
            "batch": 128,
            "lrs": [0.01, 0.1, 0.5],
            "lr": 0.1,
            "steps": 15000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every learning rate."""
        for rate in settings["lrs"]:
            for arm in ARMS:
                yield arm, {"lr": rate}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm, what enters its activations noted."""
        return network(cell, data, noted(_norm(cell.arm)), device)

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Look at what enters the last activation."""
        yield from _shape(cell, model, split)
        if cell.arm == "l1":
            source = torch.Generator().manual_seed(cell.seed)
            values = torch.randn(4096, 8, 1, generator=source, dtype=torch.float64) * 3
            yield recorder(cell, "lp")("spread", ops.lp_norm(values, p=1.0, eps=0.0).std(0).mean())

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the speed of every p at the same learning rate; the rest are parts."""
        lr = evidence.settings["lr"]
        same = [self._speed(evidence, arm, lr, lr, "same learning rate") for arm in ORDERS]
        outcome, p, decisive = conjunction(same, 1 - evidence.level)
        base = best_rate(evidence, "batch")
        own = [self._speed(evidence, arm, best_rate(evidence, arm), base, "own best") for arm in ORDERS]
        ends = [
            equivalent(
                self,
                evidence,
                accuracy(evidence, arm, lr=lr) - accuracy(evidence, "batch", lr=lr),
                0.01,
                claim=f"{ARMS[arm].capitalize()} ends with batch norm's test accuracy, within a point.",
                endpoint=f"Test accuracy with {ARMS[arm]} less with batch norm",
                reason=f"{typical(accuracy(evidence, arm, lr=lr))}, batch norm "
                f"{typical(accuracy(evidence, 'batch', lr=lr))}.",
            )
            for arm in ORDERS
        ]
        constant = evidence.last("spread", probe="lp", arm="l1", lr=lr)
        theory = equivalent(
            self,
            evidence,
            constant / math.sqrt(math.pi / 2) - 1,
            0.02,
            claim="Of Gaussian values the l1 norm is the standard deviation times the root of two over pi.",
            endpoint="Standard deviation of normalized Gaussian values over theory, less one",
            reason=f"{typical(constant)}, in theory {math.sqrt(math.pi / 2):.4f}.",
        )
        return self.verdict(
            outcome,
            decisive.effect,
            reason=" ".join(part.reason for part in same),
            p_value=p,
            primary=True,
            parts=[*same, *own, *ends, theory],
        )

    def _speed(self, evidence: Evidence, arm: str, lr: float, base: float, where: str) -> Verdict:
        steps, censored = reached(evidence, arm, 0.9, lr=lr)
        against, _ = reached(evidence, "batch", 0.9, lr=base)
        late = f" ({censored} of {len(steps)} seeds never)" if censored else ""
        return equivalent(
            self,
            evidence,
            np.log(steps) - np.log(against),
            self.MARGIN,
            claim=f"Division by the {ARMS[arm]} norm trains as fast as batch norm.",
            endpoint=f"{self.ENDPOINT}: {ARMS[arm]}, {where}",
            reason=f"{ARMS[arm].capitalize()}: {typical(steps)} steps{late}, batch norm {typical(against)}.",
            scale="log-ratio",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss at the learning rate that is judged, and accuracy by learning rate."""
        return [
            loss_figure(
                evidence,
                ARMS,
                f"Training loss at learning rate {evidence.settings['lr']:g}",
                lr=evidence.settings["lr"],
            ),
            by_rate_figure(evidence, ARMS),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate speed, ends and kurtosis."""
        rows = tuple(
            (
                words,
                f"{lr:g}",
                typical(reached(evidence, arm, 0.9, lr=lr)[0]),
                typical(accuracy(evidence, arm, lr=lr)),
                typical(evidence.last("kurtosis", probe="lp", arm=arm, lr=lr)),
            )
            for arm, words in ARMS.items()
            for lr in evidence.settings["lrs"]
        )
        columns = ("Norm", "Learning rate", "Steps to 90 %", "Test accuracy", "Kurtosis before the last activation")
        return [Table("Norms", columns, rows, "A normal variable has a kurtosis of 3.")]


def _norm(arm: str) -> Factory:
    if arm in ORDERS:
        return norms.lp(ORDERS[arm])
    return norms.none() if arm == "none" else norms.batch()


def _shape(cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
    with torch.no_grad():
        model(first_batch(split, cell, 512)[0])
    last = [module for module in model.modules() if isinstance(module, Noted)][-1].output
    if last is not None and bool(last.isfinite().all()):
        x = last.detach().double()
        x = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
        yield recorder(cell, "lp")("kurtosis", x.pow(4).mean(0).median())
