"""Noise behind batch norm: is the gain kept when activations are made to shift?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
from torch import nn

from normscope.plots import Figure, Table, curves, percentiles
from normscope.probes.activation_distribution import ActivationDistribution
from normscope.records import Cell, Estimate, Outcome, Verdict
from normscope.stats import decide, interval, ratio_interval
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import best_rate, unmeasured
from normscope.studies.lab import norms
from normscope.studies.lab.arms import network
from normscope.studies.lab.meters import AbstractMeter, ChannelShift
from normscope.studies.lab.models import CNN, VGG
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

MAIN = ("none", "batch", "noisy")
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
KINDS = ("noisy-mean", "noisy-scale", "noisy-unit", "noise-before")
STRENGTHS = ("noisy-0.5", "noisy-2", "noisy-4", "noise", "noise-rescaled")
REFUTED_BELOW = 0.3
SHIFT = math.log(2)
_QUICK: dict[str, Any] = {
    "network": {"name": "mlp", "depth": 8, "width": 64},
    "batch": 128,
    "steps": 200,
    "lr": 0.1,
    "lrs": [0.1, 0.3, 1.0],
    "controls": [arm for arm in ARMS if arm not in (*MAIN, "noisy-4")],
    "every": 10,
    "train": 6000,
    "test": 2000,
}


class NoisyBatchnorm(AbstractTraining):
    r"""Batch norm keeps its gain when noise makes activations shift.

    ## Claim
    Noise with a mean that is not zero and a variance that is not one, both changing at every step, is injected behind
    each batch norm. The network then has more internal covariate shift than one without batch norm, and yet "the
    performance gain is still obtained": so the gain cannot come from reducing that shift (article on batch norm,
    experiment 1, after Santurkar et al. 2018, section 2.1 and figure 2).

    ## Method
    Three arms that share initial weights and batches: no batch norm, batch norm, and batch norm followed by algorithm 1
    of the source (:math:`n_\mu = 0.5`, :math:`n_\sigma = 1.25`, :math:`r_\mu = r_\sigma = 0.1`). T is the number of
    steps until the training accuracy, averaged over 5 steps, reaches 80 %; a run that never does counts with all its
    steps. The share of the gain that is kept is G = (T without - T noisy) / (T without - T batch norm), ratio of means
    over seeds with Fieller's interval, at the source's learning rate of 0.1. Supported if the interval lies above 0.7
    and the noisy network's shift (mean absolute change of a channel's mean between consecutive steps) is more than
    twice that of the network without; refuted if it lies below 0.3, whatever the shift. Controls: noise on the mean or
    on the scale alone; one noise for all samples of a unit (a pure shift); that in front of batch norm, which takes it
    out; other strengths; and the noise without batch norm, plain and in units of the activations' spread. Each arm also
    at its own best learning rate by validation loss.

    ## Prediction
    Supported on a convolutional network of VGG type at learning rate 0.1, as in the source. Not on small dense
    networks: there noise slows training more than batch norm speeds it up. The same noise without batch norm, said to
    prevent training entirely, does not do so there.

    ## Threats
    The noise is bounded and drawn anew for each sample, so later layers can average it; a drift that persists is not
    tested. Noise in one sense (distribution of activations) says nothing about shift in the other (change of
    gradients). Where batch norm itself gains little, the share kept has a wide interval or none. Noise added to
    activations without normalization is a larger disturbance where their spread is small: hence the rescaled control. A
    small dense network need not speak for large convolutional ones. The learning rates of the quick preset were raised
    from 0.03, 0.1, 0.3 after a first look, because two arms were best at the upper edge; on the first grid the share
    kept at own best rates was 0.59 (0.49 to 0.66). Read that endpoint as exploratory; the primary one is at a learning
    rate fixed before any run.
    """

    CODE = "noisy-batchnorm"
    CARD = 11
    TOPIC = "covariate shift"
    SOURCES = (
        "Article on batch norm, experiment 1",
        "Santurkar et al. 2018 (arXiv:1805.11604), section 2.1, algorithm 1, figure 2",
    )
    CLAIM = "Batch norm keeps its gain when noise behind it makes activations shift more than without batch norm."
    ENDPOINT = "Share of the gain in steps to 80 % training accuracy that noisy batch norm keeps"
    MARGIN = 0.7
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": _QUICK,
        "conv": _QUICK | {"network": {"name": "cnn-s"}, "steps": 300, "lrs": [0.1], "controls": []},
        # For a CPU: the source's network narrower, and the beginning of its training.
        "vgg": _QUICK
        | {"network": {"name": "vgg-a", "width": 16}, "steps": 300, "lrs": [0.1], "controls": [], "every": 25},
        "full": {
            "network": {"name": "vgg-a"},
            "batch": 128,
            "steps": 15000,
            "lr": 0.1,
            "lrs": [0.01, 0.1, 0.5],
            "controls": [arm for arm in ARMS if arm not in MAIN],
            "every": 50,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the main arms at every learning rate, the controls at the source's."""
        for lr in settings["lrs"]:
            for arm in MAIN:
                yield arm, {"lr": lr}
        for arm in settings["controls"]:
            yield arm, {"lr": settings["lr"]}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm."""
        return network(cell, data, _factory(cell.arm, cell.seed), device)

    def trains(self, cell: Cell) -> bool:
        """All but the main arms at the source's learning rate, whose activations are probed."""
        return not (cell.arm in MAIN and cell.point["lr"] == cell.settings["lr"])

    def options(self, cell: Cell) -> dict[str, Any]:
        """Probe the last site of the cells whose activations are drawn."""
        if self.trains(cell):
            return {}
        return {"probes": [ActivationDistribution(_sites(cell)[-1:])], "every": cell.settings["every"]}

    def meters(self, cell: Cell) -> Sequence[AbstractMeter]:
        """Read how channels shift."""
        return [ChannelShift(_sites(cell), every=cell.settings["every"])]

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the share kept at the source's learning rate, given that the shift really grew."""
        lr = evidence.settings["lr"]
        effect, outcome, p, said = _kept(evidence, "noisy", lr=lr, target=0.8)
        shift = self._shift(evidence, lr, "mean_shift", "mean")
        if outcome is Outcome.SUPPORTED and shift.outcome is not Outcome.SUPPORTED:
            outcome, said = Outcome.INCONCLUSIVE, f"The noisy network's shift was not clearly doubled. {said}"
        reason = f"{said} The noise made the shift {math.exp(shift.effect.point):.1f} times that without batch norm."
        parts = [
            self._gain(evidence, lr),
            shift,
            self._shift(evidence, lr, "variance_shift", "variance"),
            self._keeps(evidence, "noisy", lr=lr, target=0.95, how=f"steps to 95 %, learning rate {lr:g}"),
        ]
        if len(evidence.settings["lrs"]) > 1:
            rates = {arm: best_rate(evidence, arm) for arm in MAIN}
            chosen = ", ".join(f"{ARMS[arm]} {rate:g}" for arm, rate in rates.items())
            own = self._keeps(evidence, "noisy", lr=rates, target=0.8, how=f"own best learning rates: {chosen}")
            parts.append(own)
            if own.outcome is not outcome and math.isfinite(own.effect.point):
                reason += (
                    f" With each arm at its own best learning rate it keeps {own.effect.point:.2f}: {own.outcome}."
                )
        for arm in evidence.settings["controls"]:
            if arm.startswith("noise") and arm != "noise-before":
                parts.append(self._prevents(evidence, arm, lr))
            else:
                parts.append(self._keeps(evidence, arm, lr=lr, target=0.8, how=f"learning rate {lr:g}"))
        return self.verdict(outcome, effect, reason=reason, p_value=p, primary=True, parts=parts)

    def _keeps(self, evidence: Evidence, arm: str, *, lr: Any, target: float, how: str) -> Verdict:
        effect, outcome, p, said = _kept(evidence, arm, lr=lr, target=target)
        return self.verdict(
            outcome,
            effect,
            claim=f"Batch norm keeps its gain with {ARMS[arm]}.",
            endpoint=f"Share of the gain kept, {ARMS[arm]}, {how}",
            p_value=p,
            reason=said,
        )

    def _gain(self, evidence: Evidence, lr: float) -> Verdict:
        horizon = evidence.settings["steps"]
        (plain, _), (normed, _) = (evidence.steps_to(0.8, horizon=horizon, arm=arm, lr=lr) for arm in ("none", "batch"))
        return self.part(
            evidence,
            np.log(plain / normed),
            scale="log-ratio",
            claim="Batch norm speeds training up in the first place.",
            endpoint=f"Steps to 80 % without over with batch norm, learning rate {lr:g}",
            margin=math.log(1.2),
            reason=f"{plain.mean():.0f} steps without, {normed.mean():.0f} with batch norm.",
        )

    def _shift(self, evidence: Evidence, lr: float, name: str, what: str) -> Verdict:
        noisy, plain = (
            evidence.mean_log(evidence.select(probe="channel_shift", name=name, arm=arm, lr=lr))
            for arm in ("noisy", "none")
        )
        return self.part(
            evidence,
            noisy - plain,
            scale="log-ratio",
            claim=f"The noisy network's channels shift in {what} more than twice as far as those without batch norm.",
            endpoint=f"Change of a channel's {what} from step to step, noisy over without batch norm",
            margin=SHIFT,
            reason=lambda effect: f"{math.exp(effect.point):.1f} times as far, geometric mean over layers and steps.",
        )

    def _prevents(self, evidence: Evidence, arm: str, lr: float) -> Verdict:
        return self.part(
            evidence,
            0.5 - evidence.final("accuracy", arm=arm, lr=lr),
            claim=f"The network with {ARMS[arm]} cannot be trained.",
            endpoint=f"One half minus the training accuracy at the end, {ARMS[arm]}, learning rate {lr:g}",
            margin=0.0,
            reason=lambda effect: f"It ends at {100 * (0.5 - effect.point):.0f} % training accuracy.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw accuracy and loss by arm, the controls, the shift, and percentiles of the last layer."""
        lr, horizon = evidence.settings["lr"], evidence.settings["steps"]
        at = evidence.frame.filter(pl.col("lr") == lr)
        main = at.filter(pl.col("arm").is_in(list(MAIN)))
        present = (*MAIN, *evidence.settings["controls"])
        times = {arm: evidence.steps_to(0.8, horizon=horizon, arm=arm, lr=lr)[0].mean() for arm in present}
        reached = ", ".join(f"{times[arm]:.0f} steps with {ARMS[arm]}" for arm in MAIN)
        common: dict[str, Any] = {"arms": list(ARMS), "labels": ARMS}
        found = [
            curves(
                main.filter(pl.col("probe") == "training"),
                y="accuracy",
                slug="accuracy",
                title=f"Training accuracy, learning rate {lr:g}",
                y_title="Accuracy on the step's batch",
                reference={"80 %": 0.8},
                caption=f"80 % is reached after {reached}.",
                **common,
            ),
            curves(
                main.filter(pl.col("probe") == "training"),
                y="loss",
                slug="loss",
                title=f"Training loss, learning rate {lr:g}",
                y_title="Cross-entropy of the step's batch",
                log=True,
                caption=evidence.final_losses({arm: ARMS[arm] for arm in MAIN}, lr=lr),
                **common,
            ),
        ]
        for slug, title, group in (
            ("kinds", "Which part of the noise costs", KINDS),
            ("strengths", "How much noise, and noise without batch norm", STRENGTHS),
        ):
            held = [arm for arm in group if arm in times]
            shown = [*MAIN, *held]
            order = sorted(shown, key=lambda arm: float(times[arm]))
            if held:
                found.append(
                    curves(
                        at.filter((pl.col("probe") == "training") & pl.col("arm").is_in(shown)),
                        y="accuracy",
                        slug=f"accuracy-{slug}",
                        title=f"{title}, learning rate {lr:g}",
                        y_title="Accuracy on the step's batch",
                        band="none",
                        arms=shown,
                        labels=ARMS,
                        caption=f"Fastest to 80 %: {ARMS[order[0]]} ({times[order[0]]:.0f} steps); slowest: "
                        f"{ARMS[order[-1]]} ({times[order[-1]]:.0f}).",
                    )
                )
        shift = main.filter(pl.col("probe") == "channel_shift")
        moved = (
            f"{typical(evidence.per_seed(shift.filter((pl.col('arm') == arm) & (pl.col('name') == 'mean_shift'))))} "
            f"with {ARMS[arm]}"
            for arm in MAIN
        )
        found.append(
            curves(
                shift,
                y=["mean_shift", "variance_shift"],
                slug="shift",
                title="How far a channel's mean and variance move from step to step",
                y_title="Absolute change, mean over channels and layers",
                log=True,
                caption=f"On average a channel's mean moves by {', '.join(moved)}.",
                **common,
            )
        )
        found.append(
            percentiles(
                main.filter(pl.col("probe") == "activation_distribution"),
                title="What enters the last hidden layer's activation",
                slug="percentiles",
                caption=_spread(evidence, lr),
                **common,
            )
        )
        return found

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate every arm at every learning rate."""
        return [
            Table(
                "Every arm",
                (
                    "Arm", "Learning rate", "Steps to 80 %", "Steps to 95 %", "Mean training accuracy",
                    "Validation loss", "Test accuracy", "Mean's shift", "in units of spread",
                ),
                tuple(_rows(evidence)),
                f"Means over {len(evidence.seeds)} seeds; runs that do not get there count in full (how many).",
            )
        ]  # fmt: skip


def _sites(cell: Cell) -> list[str]:
    sizes = cell.settings["network"]
    count = {"cnn-s": len(CNN.WIDTHS), "vgg-a": sum(item > 0 for item in VGG.LAYOUT)}.get(sizes["name"])
    return [f"blocks.{i}.norm" for i in range(count or sizes["depth"])]


def _factory(arm: str, seed: int) -> norms.Factory:
    choices = {
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
    }
    return choices[arm]


def _kept(evidence: Evidence, arm: str, *, lr: Any, target: float) -> tuple[Estimate, Outcome, float, str]:
    """Return the share of the gain that ``arm`` keeps, judged, with a sentence on it.

    Args:
        evidence: What was recorded.
        arm: The arm with noise.
        lr: One learning rate, or one for each of none, batch and the arm.
        target: Training accuracy to be reached.
    """
    horizon = evidence.settings["steps"]
    rates = lr if isinstance(lr, Mapping) else dict.fromkeys(("none", "batch", arm), lr)
    times, censored = {}, []
    for one in ("none", "batch", arm):
        times[one], missed = evidence.steps_to(target, horizon=horizon, arm=one, lr=rates[one])
        if missed:
            censored.append(f"{missed} of {len(evidence.seeds)} with {ARMS[one]}")
    gain = times["none"] - times["batch"]
    said = f"{100 * target:.0f} % is reached after " + ", ".join(
        f"{times[one].mean():.0f} steps with {ARMS[one]}" for one in ("none", "batch", arm)
    )
    said += f" (never within {horizon} steps: {', '.join(censored)})." if censored else "."
    if not interval(gain, scale="difference", level=evidence.level).low > 0:
        effect = unmeasured(evidence.level, "ratio")
        return effect, Outcome.INCONCLUSIVE, 1.0, f"Batch norm gains nothing here that could be kept. {said}"
    effect = ratio_interval(times["none"] - times[arm], gain, level=evidence.level)
    outcome, p = decide(effect, margin=NoisyBatchnorm.MARGIN, refuted_below=REFUTED_BELOW)
    if outcome is Outcome.REFUTED and effect.high < 0:
        said = f"Noise costs more than batch norm gains. {said}"
    return effect, outcome, p, said


def _rows(evidence: Evidence) -> Iterator[tuple[Any, ...]]:
    horizon = evidence.settings["steps"]
    for arm in ARMS:
        for lr in evidence.select(arm=arm)["lr"].unique().sort().to_list():
            times = []
            for target in (0.8, 0.95):
                steps, missed = evidence.steps_to(target, horizon=horizon, arm=arm, lr=lr)
                times.append(f"{steps.mean():.0f}" + (f" ({missed})" if missed else ""))
            means = []
            for probe, name in (
                ("training", "accuracy"), ("training", "val_loss"), ("training", "test_accuracy"),
                ("channel_shift", "mean_shift"), ("channel_shift", "relative_mean_shift"),
            ):  # fmt: skip
                means.append(typical(evidence.per_seed(evidence.select(probe=probe, name=name, arm=arm, lr=lr))))
            yield (ARMS[arm], lr, *times, *means)


def _spread(evidence: Evidence, lr: float) -> str:
    held: dict[str, Any] = {"probe": "activation_distribution", "lr": lr}
    said = []
    for arm in MAIN:
        ends = [typical(evidence.per_seed(evidence.select(name=name, arm=arm, **held))) for name in ("p15", "p85")]
        said.append(f"{' to '.join(ends)} with {ARMS[arm]}")
    return f"The middle 70 % of the values lies, on average over time, at {'; '.join(said)}."
