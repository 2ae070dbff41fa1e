"""The backward pass of batch normalization: one term or three."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, curves, number, versus_theory
from normscope.records import Cell, Estimate, Outcome, Record, Verdict
from normscope.stats import interval, tost
from normscope.studies.evidence import Evidence, typical
from normscope.studies.lab import norms
from normscope.studies.lab.backward import measure
from normscope.studies.lab.models import build
from normscope.studies.lab.train import batch_indices, train
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

EXACT = 1e-9
HARM = math.log(1.2)
ARMS = {
    "full": "full backward pass",
    "cut-mean": "mean taken for a constant",
    "cut-variance": "variance taken for a constant",
    "cut-both": "both taken for constants",
    "none": "no batch norm",
}


class BnBackwardThreeTerms(AbstractStudy):
    r"""The gradient through batch norm is more than a rescaling.

    ## Claim
    A lecture note gives the backward pass of batch normalization as :math:`g_\gamma = \hat z^\top g_y`,
    :math:`g_\beta = g_y` and :math:`g_z = \gamma / \sqrt{\sigma_B^2 + \epsilon} \odot g_y` (note on batch norm, section
    1). The first is right. The second lacks the sum over the batch. The third takes the batch's mean and variance for
    constants and so leaves out two terms; the exact gradient is
    :math:`\gamma/\sigma\,(g_y - \langle g_y\rangle - \hat z \langle g_y \hat z\rangle)` (Ioffe & Szegedy 2015, section
    3; Santurkar et al. 2018, facts C.1 and C.2, theorem 4.1).

    ## Method
    A network of three hidden layers of 100 units on the digits in float64, at the first step and after 200 steps of SGD
    at learning rate 0.1, for batches of 16, 64 and 256. In each layer, on the gradients that really arrive there: E,
    the relative error of the note's :math:`g_z` against the exact gradient; its cosine; the share of gradient energy
    that each left-out term removes; and the error of the weight gradients if every layer follows the note. The exact
    gradient is that of automatic differentiation through elementary operations; the full formula is compared with it,
    and with central differences. The claim is refuted if E is above 1 % (interval over seeds, batches of 64) in at
    least 90 % of the layers while the full formula is right to 1e-9. Separately, networks are trained with the mean,
    the variance or both cut out of the backward pass; a cut is harmful if the loss ends more than 1.2 times higher.

    ## Prediction
    Refuted. For a gradient that knows nothing of the normalized values the two terms remove a share 2/m of its energy,
    so :math:`E \approx \sqrt{2/(m-2)}`: 0.378, 0.180 and 0.089 for m = 16, 64, 256; more in upper layers, where the
    gradient correlates with the values, and there it does not vanish as m grows. Weight gradients are off by 50 to 100
    %, because a layer's inputs are not centred and the left-out mean multiplies their mean. Yet training with both
    terms cut survives an easy task: the loss ends higher, mostly through the mean, and pre-normalization biases drift.

    ## Threats
    The size of E depends on how much the arriving gradient correlates with the values: it is a property of network,
    task and time, not a constant. That training survives the wrong rule holds for a shallow network on an easy task;
    the harmful part says nothing of large networks. With the wrong rule every step differs, so the arms drift apart and
    the loss compares trajectories, not single steps.
    """

    CODE = "bn-backward-three-terms"
    CARD = 1
    TOPIC = "gradient"
    SOURCES = (
        "Note on batch norm (2020), section 1",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 3",
        "Santurkar et al. 2018 (arXiv:1805.11604), facts C.1 and C.2, theorem 4.1",
    )
    CLAIM = "The input gradient of batch norm is the output gradient times gamma / sigma."
    ENDPOINT = "Minus the relative error of that formula, mean over layers (0 = exact), batches of 64"
    MARGIN = -0.01
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batches": [16, 64, 256],
            "judged": 64,
            "steps": 200,
            "lr": 0.1,
            "train": None,
            "test": None,
            "training": {"steps": 300, "batch": 64, "lrs": [0.1, 1.0], "arms": list(ARMS)},
        },
        "full": {
            "network": {"name": "vgg-a"},
            "batches": [16, 64, 256],
            "judged": 64,
            "steps": 200,
            "lr": 0.1,
            "train": None,
            "test": None,
            "training": {"steps": 15000, "batch": 128, "lrs": [0.1, 0.5], "arms": list(ARMS)},
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield a measuring cell a batch size, and a training cell a cut and learning rate."""
        for batch in settings["batches"]:
            yield "full", {"task": "formula", "batch": batch, "lr": settings["lr"]}
        training = settings["training"]
        for lr in training["lrs"]:
            for arm in training["arms"]:
                yield arm, {"task": "training", "batch": training["batch"], "lr": lr}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Measure the formula at two times, or train with a cut."""
        settings, batch, lr = cell.settings, int(cell.point["batch"]), float(cell.point["lr"])
        formula = cell.point["task"] == "formula"
        dtype = torch.float64 if formula else torch.float32
        split = data.split(cell.seed, train=settings["train"], test=settings["test"], dtype=dtype).to(device)

        def network(arm: str) -> nn.Module:
            made = build(
                norm=_factory(arm), shape=data.shape, classes=data.classes, seed=cell.seed, **settings["network"]
            )
            return made.to(device=device, dtype=dtype)

        model = network(cell.arm)
        if not formula:
            training = settings["training"]
            return train(
                model,
                split,
                cell=cell.id,
                seed=cell.seed,
                steps=training["steps"],
                lr=lr,
                batch_size=batch,
                watch=lambda step, net: _parameters(cell.id, step, net, training["steps"]),
            )
        steps = settings["steps"]
        order = batch_indices(len(split.y_train), batch, steps + 1, cell.seed)
        note = network("cut-both")
        records = list(measure(cell.id, 0, model, note, split, order[0]))
        trained = train(model, split, cell=cell.id, seed=cell.seed, steps=steps, lr=lr, batch_size=batch)
        records += [record for record in trained if record.name != "accuracy"]
        records += measure(cell.id, steps, model, note, split, order[steps])
        return records

    def judge(self, evidence: Evidence) -> Verdict:
        """Refute the formula where its error is above 1 % in at least 90 % of layers and the full one is exact."""
        judged = evidence.settings["judged"]
        at = evidence.select(probe="backward_terms", name="error", batch=judged)
        layers = at.select("site", "step").unique().sort("site", "step").rows()
        lows = [
            interval(
                evidence.per_seed(at.filter((pl.col("site") == s) & (pl.col("step") == t))), level=evidence.level
            ).low
            for s, t in layers
        ]
        off = sum(low > -self.MARGIN for low in lows)
        full = self._exact(evidence, "full_error", "The three terms together are the exact gradient.")
        exact = full.outcome is Outcome.SUPPORTED
        found = self.part(
            evidence,
            -evidence.per_seed(at),
            scale="value",
            endpoint=self.ENDPOINT,
            reason=lambda effect: (
                f"The formula is off by {_percent(-effect.point)} of the gradient's length on average; the interval "
                f"lies above 1 % in {off} of {len(layers)} (layer, time) pairs. With the two left-out terms the error "
                f"is at most {-full.effect.point:.0e}."
            ),
            primary=True,
        )
        outcome = found.outcome
        if outcome is Outcome.REFUTED and (off < 0.9 * len(layers) or not exact):
            outcome = Outcome.INCONCLUSIVE
        parts = (
            full,
            self._exact(evidence, "norm_error", "Theorem 4.1 gives the length of the exact gradient."),
            self._theory(evidence),
            self._vanishes(evidence),
            self._weights(evidence),
            *self._harm(evidence),
        )
        return replace(found, outcome=outcome, parts=parts)

    def _exact(self, evidence: Evidence, name: str, claim: str) -> Verdict:
        frame = evidence.select(probe="backward_terms", name=name)
        worst = evidence.per_seed(frame, pl.col("value").max())
        largest, smallest = float(worst.max()), float(worst.min())
        outcome = Outcome.SUPPORTED if largest < EXACT else Outcome.REFUTED if largest > 0.01 else Outcome.INCONCLUSIVE
        return self.verdict(
            outcome,
            Estimate(-largest, -largest, -smallest, evidence.level, len(worst), "largest of all seeds", "value"),
            claim=claim,
            endpoint="Minus the largest relative error over seeds, layers, batch sizes and times, float64",
            margin=-EXACT,
            p_value=None if outcome is Outcome.INCONCLUSIVE else 0.0,
            reason=f"The largest relative error is {largest:.1e}.",
        )

    def _theory(self, evidence: Evidence) -> Verdict:
        judged = evidence.settings["judged"]
        frame = evidence.select(probe="backward_terms", name="error", site="blocks.0.norm", batch=judged)
        ratio = np.log(evidence.per_seed(frame.filter(pl.col("step") == 0)) / _expected(judged))
        equal, p, estimate = tost(ratio, low=-HARM, high=HARM, level=evidence.level, scale="log-ratio")
        return self.verdict(
            Outcome.SUPPORTED if equal else Outcome.INCONCLUSIVE,
            estimate,
            claim=f"In the first layer at the first step the error is sqrt(2/(m-2)) = {_expected(judged):.3f}.",
            endpoint="Measured error over theory, first layer, step 0 (within 1.2 times either way)",
            margin=HARM,
            p_value=p,
            reason=f"Measured over theory is {math.exp(estimate.point):.2f}.",
        )

    def _vanishes(self, evidence: Evidence) -> Verdict:
        largest = max(evidence.settings["batches"])
        frame = evidence.select(probe="backward_terms", name="error", batch=largest)
        top = max(frame["site"].unique().to_list(), key=lambda site: int(site.split(".")[1]))
        return self.part(
            evidence,
            -evidence.per_seed(frame.filter(pl.col("site") == top)),
            scale="value",
            claim=f"What the formula leaves out vanishes in large batches: under 1 % at {largest}.",
            endpoint=f"Minus the relative error in the top layer, batches of {largest}",
            reason=lambda effect: (
                f"The error in the top layer is still {_percent(-effect.point)} at {largest}, "
                f"where theory for an uninformative gradient has {_percent(_expected(largest))}."
            ),
        )

    def _weights(self, evidence: Evidence) -> Verdict:
        frame = evidence.select(probe="backward_terms", name="weight_error", batch=evidence.settings["judged"])
        return self.part(
            evidence,
            -evidence.per_seed(frame),
            scale="value",
            claim="Weight gradients computed with the formula in every layer are right.",
            endpoint="Minus the relative error of the weight gradients, mean over layers",
            reason=lambda effect: (
                f"They are off by {_percent(-effect.point)} of their length: layer inputs are not "
                "centred, and the left-out mean multiplies their mean."
            ),
        )

    def _harm(self, evidence: Evidence) -> Iterator[Verdict]:
        training = evidence.settings["training"]
        for lr in training["lrs"]:
            full = np.log(_final_loss(evidence, "full", lr))
            for arm in ("cut-both", "cut-mean", "cut-variance"):
                ratio = np.log(_final_loss(evidence, arm, lr)) - full
                drift = evidence.per_seed(
                    evidence.select(probe="parameters", name="bias_max", arm=arm, lr=lr, task="training"),
                    pl.col("value").sort_by("step").last(),
                )
                yield self.part(
                    evidence,
                    ratio,
                    scale="log-ratio",
                    claim=f"Training is harmed by a backward pass with the {ARMS[arm]}.",
                    endpoint=f"Loss after {training['steps']} steps over that of the full backward pass, "
                    f"{ARMS[arm]}, learning rate {lr:g}",
                    margin=HARM,
                    reason=f"The loss ends {typical(ratio, logs=True)} times as high; the largest bias in front of a "
                    f"batch norm reaches {typical(drift)}, which the exact gradient leaves at rest.",
                )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw error against batch size with theory, the training losses, and the drift of biases."""
        settings = evidence.settings
        errors = evidence.select(probe="backward_terms", name="error")
        layer = pl.lit("layer ") + (pl.col("site").str.extract(r"blocks\.(\d+)").cast(pl.Int64) + 1).cast(pl.String)
        first = errors.filter(pl.col("step") == 0).with_columns(layer.alias("layer"))
        per_seed = first.group_by("batch", "layer", "seed").agg(pl.col("value").mean())
        batches = settings["batches"]
        theory = pl.DataFrame(
            {"batch": batches, "value": [_expected(m) for m in batches], "layer": ["theory"] * len(batches)}
        )
        ends = {
            name: evidence.per_seed(
                first.filter((pl.col("layer") == name) & (pl.col("batch") == settings["judged"]))
            ).mean()
            for name in sorted(first["layer"].unique().to_list())
        }
        said = ", ".join(f"{_percent(value)} in {name}" for name, value in ends.items())
        rate = settings["training"]["lrs"][0]
        losses = evidence.select(probe="training", name="loss", task="training", lr=rate)
        biases = evidence.select(probe="parameters", name="bias_max", task="training").filter(pl.col("arm") != "none")
        panels = {str(float(one)): f"learning rate {one:g}" for one in settings["training"]["lrs"]}
        return [
            versus_theory(
                per_seed,
                theory,
                x="batch",
                by="layer",
                slug="error-by-batch",
                title="What the rescaling formula misses, against batch size",
                x_title="Batch size m",
                y_title="Relative error of the input gradient at the first step",
                log=True,
                log_x=True,
                caption=f"With batches of {settings['judged']} the formula misses {said}; theory for a gradient that "
                f"knows nothing of the values has {_percent(_expected(settings['judged']))}.",
            ),
            curves(
                losses,
                y="loss",
                slug="loss-by-cut",
                title=f"Training with parts of the backward pass cut out, learning rate {rate:g}",
                y_title="Training loss (cross-entropy of a batch)",
                log=True,
                arms=list(ARMS),
                labels=ARMS,
                caption="All train; the order at the end tells the price. " + _losses_said(evidence),
            ),
            curves(
                biases,
                y="bias_max",
                facet="lr",
                slug="bias-drift",
                title="Biases in front of a batch norm drift when the mean is cut out",
                y_title="Largest absolute bias",
                log=True,
                arms=list(ARMS),
                labels=ARMS | panels,
                caption="The exact gradient of such a bias is zero, so it only moves by rounding; cut the mean out and "
                "it drifts.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate error, shares and theory by batch size, layer and time."""
        frame = evidence.select(probe="backward_terms")
        names = ("error", "cosine", "mean_share", "variance_share", "weight_error", "weight_cosine")
        rows = []
        for batch in evidence.settings["batches"]:
            for step in sorted(frame["step"].unique().to_list()):
                for site in sorted(frame["site"].unique().to_list()):
                    here = frame.filter(
                        (pl.col("batch") == batch) & (pl.col("step") == step) & (pl.col("site") == site)
                    )
                    means = [typical(evidence.per_seed(here.filter(pl.col("name") == name))) for name in names]
                    rows.append((batch, step, int(site.split(".")[1]) + 1, number(_expected(batch), 3), *means))
        columns = ("Batch", "Step", "Layer", "Theory", "Error", "Cosine", "Mean's share", "Variance's share")
        return [
            Table(
                "The rescaling formula against the exact gradient",
                (*columns, "Weight error", "Weight cosine"),
                tuple(rows),
                "Means over seeds. Theory is sqrt(2/(m-2)); shares are those of the gradient's energy that the "
                "left-out terms remove.",
            ),
            Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), self._against(evidence)),
        ]

    def _against(self, evidence: Evidence) -> tuple[tuple[str, ...], ...]:
        """Return what theory, which is of an uninformative gradient, says of the first layer before training."""
        rows = []
        for batch in evidence.settings["batches"]:
            frame = evidence.select(probe="backward_terms", name="error", site="blocks.0.norm", batch=batch)
            found = float(np.nanmean(evidence.per_seed(frame.filter(pl.col("step") == 0))))
            expected = _expected(batch)
            rows.append((f"error, m={batch}", f"{found:.4f}", f"{expected:.4f}", f"{found / expected:.4f}"))
        return tuple(rows)


def _factory(arm: str) -> norms.Factory:
    cuts = {"cut-mean": (True, False), "cut-variance": (False, True), "cut-both": (True, True)}
    if arm in cuts:
        mean, variance = cuts[arm]
        return norms.detached(mean=mean, variance=variance)
    return norms.none() if arm == "none" else norms.batch()


def _expected(m: int) -> float:
    """Return the relative error for an uninformative gradient, sqrt(2/(m-2))."""
    return math.sqrt(2 / (m - 2))


def _percent(value: float) -> str:
    return f"{100 * float(value):.0f} %" if value >= 0.0995 else f"{100 * float(value):.1f} %"


def _parameters(cell: str, step: int, model: nn.Module, steps: int) -> Iterator[Record]:
    """Yield the largest bias in front of a normalization and the length of the hidden weights, now and then."""
    if step % max(1, steps // 40) and step != steps - 1:
        return
    linears = [block.linear for block in model.blocks]  # type: ignore[union-attr]
    bias = max(float(linear.bias.detach().abs().max()) for linear in linears)
    length = math.sqrt(sum(float(linear.weight.detach().square().sum()) for linear in linears))
    yield Record(cell, step, "parameters", "", "bias_max", bias)
    yield Record(cell, step, "parameters", "", "weight_norm", length)


def _final_loss(evidence: Evidence, arm: str, lr: float) -> np.ndarray:
    """Return per seed the mean loss of the last 20 steps; chance where the run diverged."""
    where: dict[str, Any] = {"arm": arm, "lr": lr, "task": "training"}
    ended = evidence.per_seed(evidence.select(probe="training", name="diverged", **where))
    return np.where(ended == 1, np.log(10), evidence.final("loss", **where))


def _losses_said(evidence: Evidence) -> str:
    training = evidence.settings["training"]
    said = (f"{typical(_final_loss(evidence, arm, training['lrs'][0]))} with {ARMS[arm]}" for arm in training["arms"])
    return f"Mean loss of the last 20 steps: {', '.join(said)}."
