"""Noise behind batch norm: is the gain kept when activations are made to shift?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from normscope.plots import Figure, Table, percentiles
from normscope.probes.activation_distribution import ActivationDistribution
from normscope.records import Cell
from normscope.studies import (
    AbstractTraining,
    Best,
    Contrast,
    Evidence,
    Quantity,
    accuracy,
    final,
    last,
    mean,
    mean_log,
    presets,
    steps_to,
)
from normscope.studies.case_question import CaseQuestion
from normscope.studies.evidence import Floats
from normscope.studies.lab import norms
from normscope.studies.lab.meters import AbstractMeter, ChannelShift
from normscope.studies.lab.models import CNN, VGG

MAIN = ("none", "batch", "noisy")
KINDS = ("noisy-mean", "noisy-scale", "noisy-unit", "noise-before")
STRENGTHS = ("noisy-0.5", "noisy-2", "noisy-4", "noise", "noise-rescaled")
# Sorted, for a mean of many rows in the order of threads is not the same to the last bit.
AREA = Quantity(
    "mean training accuracy over the run",
    lambda evidence, **where: evidence.per_seed(
        evidence.select(probe="training", name="accuracy", **where), pl.col("value").sort_by("step").mean()
    ),
    record=("training", "accuracy"),
    unit="points",
)


class NoisyBatchnorm(AbstractTraining):
    r"""Batch norm keeps its gain when noise makes activations shift.

    ## Claim
    Noise with a mean that is not zero and a variance that is not one, both changing at every step, is injected behind
    each batch norm. The network then has more internal covariate shift than one without batch norm, and yet "the
    performance gain is still obtained": so the gain cannot come from reducing that shift (article on batch norm,
    experiment 1, after Santurkar et al. 2018, section 2.1 and figure 2).

    ## Method
    Three arms that share initial weights and batches: no batch norm, batch norm, and batch norm followed by algorithm 1
    of the source ($n_\mu = 0.5$, $n_\sigma = 1.25$, $r_\mu = r_\sigma = 0.1$). A is the mean
    training accuracy over the run, the area under its curve, which no run is too slow to have. The share of the gain
    that is kept is G = (A noisy - A none) / (A batch norm - A none), of means over seeds. It is judged against one half
    by (A noisy - A none) - half of (A batch norm - A none) of each seed, a linear contrast; its interval takes the mean
    gain as known. Holds above a half, opposite below minus a half, no effect between. Two premises must hold under the
    same condition: batch norm gains over none, and the noisy network's shift (mean absolute change of a channel's mean
    between consecutive steps) is more than twice that of the network without. The headline is at the source's learning
    rate of 0.1. Also tried: other learning rates; each arm at its own best one by validation loss; noise on the mean or
    on the scale alone; one noise for all samples of a unit (a pure shift); other strengths. Claims of their own: noise
    in front of batch norm, which takes it out, and the noise without batch norm, plain and in units of the activations'
    spread.

    ## Prediction
    Holds on a convolutional network of VGG type at learning rate 0.1, as in the source. Not on small dense networks at
    that rate: there noise slows training more than batch norm speeds it up. The same noise without batch norm, said to
    prevent training entirely, does not do so there.

    ## Threats
    The noise is bounded and drawn anew for each sample, so later layers can average it; a drift that persists is not
    tested. Noise in one sense (distribution of activations) says nothing about shift in the other (change of
    gradients). Where batch norm itself gains little, small costs of the noise are large shares of that gain. Noise
    added to activations without normalization is a larger disturbance where their spread is small: hence the rescaled
    control. A small dense network need not speak for large convolutional ones: on a narrow VGG-A and a subset of
    CIFAR-10 (benchmarks/results/vgg-cifar.md) the picture is the source's, with test accuracies of .524 noisy, .525
    with batch norm and .374 without. The learning rates of the quick preset were raised from 0.03, 0.1, 0.3 after a
    first look, because two arms were best at the upper edge, and the endpoint was steps to 80 % of training accuracy
    until a review of the first evidence. Read own best rates as exploratory; the rate of the headline was fixed before
    any run.
    """

    CODE = "noisy-batchnorm"
    CARD = 11
    TOPIC = "covariate shift"
    SOURCES = (
        "Article on batch norm, experiment 1",
        "Santurkar et al. 2018 (arXiv:1805.11604), section 2.1, algorithm 1, figure 2",
    )
    CLAIM = "Batch norm keeps at least half of its gain when noise behind it makes activations shift."
    ON_A_CASE = CaseQuestion(
        "speed", ("noisy", "none"), differs="it asks whether a gain is left with noise, and not how much of it"
    )
    ENDPOINT = "Share of batch norm's gain in mean training accuracy that noisy batch norm keeps, learning rate 0.1"
    MARGIN = 0.5
    MARGIN_REASON = "half of the gain"
    ARMS = {
        "none": "no batch norm",
        "batch": "batch norm",
        "noisy": "noisy batch norm",
        "noisy-mean": "only the mean noisy",
        "noisy-scale": "only the scale noisy",
        "noisy-unit": "one noise for all samples",
        "noise-before": "that noise before batch norm",
        "noisy-0.5": "noise x 0.5",
        "noisy-2": "noise x 2",
        "noisy-4": "noise x 4",
        "noise": "noise, no batch norm",
        "noise-rescaled": "noise in units of spread, no batch norm",
    }
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 8, "width": 64},
            "batch": 128,
            "steps": 200,
            "lr": 0.1,
            "lrs": [0.1, 0.3, 1.0],
            "controls": [arm for arm in (*KINDS, *STRENGTHS) if arm != "noisy-4"],
            "every": 10,
            "train": 6000,
            "test": 2000,
        },
        conv={"network": {"name": "cnn-s"}, "steps": 300, "lrs": [0.1], "controls": []},
        # For a CPU: the source's network narrower, and the beginning of its training.
        vgg={"network": {"name": "vgg-a", "width": 16}, "steps": 300, "lrs": [0.1], "controls": [], "every": 25},
        full={
            "network": {"name": "vgg-a"},
            "steps": 15000,
            "lrs": [0.01, 0.1, 0.5],
            "controls": [*KINDS, *STRENGTHS],
            "every": 50,
            "train": None,
            "test": None,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the main arms at every learning rate, the controls at the source's."""
        for lr in settings["lrs"]:
            for arm in MAIN:
                yield arm, {"lr": lr}
        for arm in settings["controls"]:
            yield arm, {"lr": settings["lr"]}

    def norm(self, cell: Cell) -> norms.Factory:
        """Return the norm of an arm; the noise is of the cell's seed."""
        seed = cell.seed
        return {
            "none": norms.none(),
            "batch": norms.batch(),
            "noisy": norms.noisy_batch(seed),
            "noisy-mean": norms.noisy_batch(seed, scale=False),
            "noisy-scale": norms.noisy_batch(seed, mean=False),
            "noisy-unit": norms.noisy_batch(seed, per_sample=False),
            "noise-before": norms.noise_before_batch(seed),
            "noisy-0.5": norms.noisy_batch(seed, strength=0.5),
            "noisy-2": norms.noisy_batch(seed, strength=2.0),
            "noisy-4": norms.noisy_batch(seed, strength=4.0),
            "noise": norms.noise(seed),
            "noise-rescaled": norms.noise(seed, rescaled=True),
        }[cell.arm]

    def options(self, cell: Cell) -> dict[str, Any]:
        """Probe the last site of the main arms at the source's learning rate, whose activations are drawn."""
        if cell.arm in MAIN and cell.point["lr"] == cell.settings["lr"]:
            return {"probes": [ActivationDistribution(_sites(cell)[-1:])], "every": cell.settings["every"]}
        return {}

    def meters(self, cell: Cell) -> Sequence[AbstractMeter]:
        """Read how channels shift."""
        return [ChannelShift(_sites(cell), every=cell.settings["every"])]

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the share kept at the source's learning rate; other rates and other noise are also tried."""
        main, rates = evidence.settings["lr"], evidence.settings["lrs"]
        yield self._kept("noisy", main)
        for rate in [*(rate for rate in rates if rate != main), *([Best("lr")] if len(rates) > 1 else [])]:
            yield self._kept("noisy", rate)
        at = {"lr": main}
        yield self._gains(main)
        for what in ("mean", "variance"):
            yield self._shifts("noisy", main, what)
        for arm in evidence.settings["controls"]:
            words = self.ARMS[arm]
            if arm in ("noise", "noise-rescaled"):
                yield Contrast(
                    final("accuracy"),
                    0.5,
                    arm,
                    at=at,
                    unit="points",
                    margin=0.1,
                    margin_reason="one half lies far above chance and far below a trained network",
                    claim=f"The network with {words} cannot be trained.",
                    name=words,
                    labels=("one half", ""),
                    says="training accuracy, held against one half, ends {effect}",
                    comparative=("below", "above"),
                )
            elif arm == "noise-before":
                yield Contrast(
                    AREA,
                    arm,
                    "batch",
                    at=at,
                    equal_within=0.005,
                    margin_reason="a step of the two hundred",
                    claim="Batch norm takes out noise that is added in front of it.",
                    name=words,
                    says="with noise in front of batch norm the mean training accuracy is {effect}",
                    comparative=("higher", "lower"),
                )
            else:
                yield self._kept(arm, main)

    def _kept(self, arm: str, lr: float | Best) -> Contrast:
        """Return the share of the gain that an arm keeps, given that there is a gain, and a shift."""
        rate = f"learning rate {lr:g}" if isinstance(lr, float | int) else "own best learning rates"
        return Contrast(
            Quantity("share of batch norm's gain in mean training accuracy", partial(_share, noisy=arm, rate=lr)),
            scale="value",
            unit="of the gain",
            conditions={"learning rate": rate, "noise": "" if arm == "noisy" else self.ARMS[arm]},
            name=", ".join([rate, *([] if arm == "noisy" else [self.ARMS[arm]])]),
            says="with that noise batch norm keeps {effect}",
            reason=lambda reading: _by_arm(reading.evidence, arm, lr),
            premises=(self._gains(lr), self._shifts(arm, lr, "mean")),
        )

    def _gains(self, lr: float | Best) -> Contrast:
        return Contrast(
            AREA,
            "batch",
            "none",
            at={"lr": lr},
            margin=0.0,
            margin_reason="any gain will do: what is kept is a share of it",
            claim="Batch norm trains faster than no norm in the first place.",
            name="batch norm's gain",
            says="the mean training accuracy is {effect} with batch norm",
            comparative=("higher", "lower"),
        )

    def _shifts(self, arm: str, lr: float | Best, what: str) -> Contrast:
        return Contrast(
            mean_log(f"{what}_shift", f"change of a channel's {what} from step to step", probe="channel_shift"),
            arm,
            "none",
            at={"lr": lr},
            scale="log-ratio",
            claim=f"The noise shifts the activations' {what} at least twice as much as training without a norm does.",
            name=f"shift of the {what}",
            says=f"the shift of a channel's {what} is {{effect}}",
            comparative=("larger", "smaller"),
            margin=math.log(2),
            margin_reason="twice as much cannot be taken for the usual shift",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw accuracy and loss by arm, the controls, the shift, and percentiles of the last layer."""
        lr, shift = evidence.settings["lr"], mean("mean_shift", probe="channel_shift")
        at = {"arm": MAIN, "lr": lr}
        means = {arm: float(AREA(evidence, arm=arm, lr=lr).mean()) for arm in (*MAIN, *evidence.settings["controls"])}
        reached = ", ".join(f"{means[arm]:.3f} with {self.ARMS[arm]}" for arm in MAIN)
        moved = ", ".join(f"{shift.text(evidence, arm=arm, lr=lr)} with {self.ARMS[arm]}" for arm in MAIN)
        drawn = [
            self.curves(
                evidence,
                "accuracy",
                at=at,
                slug="accuracy",
                caption=f"Mean over the run: {reached}.",
            ),
            self.curves(evidence, "loss", at=at, slug="loss"),
        ]
        for slug, title, group in (
            ("kinds", "Which part of the noise costs", KINDS),
            ("strengths", "How much noise, and noise without batch norm", STRENGTHS),
        ):
            shown = [*MAIN, *(arm for arm in group if arm in means)]
            order = sorted(shown, key=lambda arm: -means[arm])
            if len(shown) > len(MAIN):
                drawn.append(
                    self.curves(
                        evidence,
                        "accuracy",
                        at={"arm": shown, "lr": lr},
                        slug=f"accuracy-{slug}",
                        title=f"{title}, learning rate {lr:g}",
                        band="none",
                        arms=shown,
                        caption=f"Mean over the run: highest with {self.ARMS[order[0]]} ({means[order[0]]:.3f}), "
                        f"lowest with {self.ARMS[order[-1]]} ({means[order[-1]]:.3f}).",
                    )
                )
        return [
            *drawn,
            self.curves(
                evidence,
                ["mean_shift", "variance_shift"],
                probe="channel_shift",
                at=at,
                slug="shift",
                title="How far a channel's mean and variance move from step to step",
                y_title="Absolute change, mean over channels and layers",
                log=True,
                caption=f"On average a channel's mean moves by {moved}.",
            ),
            percentiles(
                evidence.select(probe="activation_distribution", arm=MAIN, lr=lr),
                title="What enters the last hidden layer's activation",
                slug="percentiles",
                caption=self._spread(evidence, lr),
                arms=list(self.ARMS),
                labels=self.ARMS,
            ),
        ]

    def _spread(self, evidence: Evidence, lr: float) -> str:
        ends = [mean(name, probe="activation_distribution") for name in ("p15", "p85")]
        said = (
            f"{' to '.join(end.text(evidence, arm=arm, lr=lr) for end in ends)} with {self.ARMS[arm]}" for arm in MAIN
        )
        return f"The middle 70 % of the values lies, on average over time, at {'; '.join(said)}."

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the main arms at every learning rate, and the controls at the source's."""
        settings = evidence.settings
        quantities = [
            steps_to(0.8),
            steps_to(0.95),
            AREA,
            last("val_loss", "validation loss"),
            accuracy(),
            mean("mean_shift", "shift of the mean", probe="channel_shift"),
            mean("relative_mean_shift", "shift of the mean in units of spread", probe="channel_shift"),
        ]
        main = {"arm": MAIN, "lr": settings["lrs"]}
        tables = [self.grid_table(quantities, evidence, rows=main, title="Main arms")]
        if settings["controls"]:
            controls = {"arm": settings["controls"], "lr": [settings["lr"]]}
            tables.append(self.grid_table(quantities, evidence, rows=controls, title="Controls"))
        return tables


def _rates(evidence: Evidence, rate: float | Best, *arms: str) -> dict[str, float]:
    """Return the learning rate of each arm: a common one, or its own best."""
    return {arm: float(rate.of(evidence, arm=arm)) if isinstance(rate, Best) else rate for arm in arms}


def _share(evidence: Evidence, noisy: str, rate: float | Best) -> Floats:
    """Return per seed a number whose mean is the share of the gain kept.

    It exceeds one half by the linear contrast (noisy - none) - (batch - none) / 2, in units of the mean gain.
    """
    none, batch, noise = (
        AREA(evidence, arm=arm, lr=lr) for arm, lr in _rates(evidence, rate, "none", "batch", noisy).items()
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = batch - none
        gain = gains[np.isfinite(gains)].mean() if np.isfinite(gains).any() else np.nan
        kept: Floats = 0.5 + ((noise - none) - gains / 2) / gain
    return kept


def _by_arm(evidence: Evidence, noisy: str, rate: float | Best) -> str:
    """Say the mean training accuracy of each arm, and its learning rate where that is its own."""
    own = _rates(evidence, rate, "none", "batch", noisy)
    said = (
        f"{AREA.text(evidence, arm=arm, lr=lr)} with {NoisyBatchnorm.ARMS[arm]}"
        + (f" (learning rate {lr:g})" if isinstance(rate, Best) else "")
        for arm, lr in own.items()
    )
    return f"Mean training accuracy over the run: {', '.join(said)}."


def _sites(cell: Cell) -> list[str]:
    sizes = cell.settings["network"]
    count = {"cnn-s": len(CNN.WIDTHS), "vgg-a": sum(item > 0 for item in VGG.LAYOUT)}.get(sizes["name"])
    return [f"blocks.{i}.norm" for i in range(count or sizes["depth"])]
