"""The backward pass of batch normalization: one term or three."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, versus_theory
from normscope.records import Cell, Estimate, Outcome, Record, Verdict
from normscope.stats import interval, tost
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, last, mean, presets
from normscope.studies.evidence import Floats
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, recorder
from normscope.studies.lab.backward import measure
from normscope.studies.lab.train import batch_indices

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

EXACT = 1e-9
HARM = math.log(1.2)


class BnBackwardThreeTerms(AbstractTraining):
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
    ARMS = {
        "full": Arm("full backward pass", norms.batch()),
        "cut-mean": Arm("mean taken for a constant", norms.detached(mean=True, variance=False)),
        "cut-variance": Arm("variance taken for a constant", norms.detached(mean=False, variance=True)),
        "cut-both": Arm("both taken for constants", norms.detached(mean=True, variance=True)),
        "none": Arm("no batch norm", norms.none()),
    }
    CONDITIONS = {"task": ""}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batches": [16, 64, 256],
            "judged": 64,
            "steps": 200,
            "lr": 0.1,
            "train": None,
            "test": None,
            "training": {"steps": 300, "batch": 64, "lrs": [0.1, 1.0], "arms": list(ARMS)},
        },
        full={
            "network": {"name": "vgg-a"},
            "training": {"steps": 15000, "batch": 128, "lrs": [0.1, 0.5], "arms": list(ARMS)},
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield a measuring cell a batch size, and a training cell a cut and learning rate."""
        for batch in settings["batches"]:
            yield "full", {"task": "formula", "batch": batch, "lr": settings["lr"]}
        training = settings["training"]
        for lr in training["lrs"]:
            for arm in training["arms"]:
                yield arm, {"task": "training", "batch": training["batch"], "lr": lr}

    def options(self, cell: Cell) -> dict[str, Any]:
        """Train with a cut, and watch the biases in front of norms and the weights."""
        record, steps = recorder(cell, "parameters"), cell.settings["training"]["steps"]

        def watch(step: int, model: nn.Module) -> Iterator[Record]:
            """Yield the largest bias in front of a norm and the length of the hidden weights, now and then."""
            if step % max(1, steps // 40) and step != steps - 1:
                return
            linears = [block.linear for block in model.blocks]  # type: ignore[union-attr]
            bias = max(float(linear.bias.detach().abs().max()) for linear in linears)
            length = math.sqrt(sum(float(linear.weight.detach().square().sum()) for linear in linears))
            yield record("bias_max", bias, step)
            yield record("weight_norm", length, step)

        return {"steps": steps, "watch": watch}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Measure the formula at two times in float64, or train with a cut."""
        if cell.point["task"] == "training":
            yield from super().run_cell(cell, data, device)
            return
        settings, steps = cell.settings, cell.settings["steps"]
        double = torch.float64
        split = data.split(cell.seed, train=settings["train"], test=settings["test"], dtype=double).to(device)
        model = self.network(cell, data, device).to(double)
        rescaling = network(cell, data, self.ARMS["cut-both"].norm, device).to(double)
        order = batch_indices(len(split.y_train), int(cell.point["batch"]), steps + 1, cell.seed)
        yield from measure(cell.id, 0, model, rescaling, split, order[0])
        yield from (record for record in fit(model, split, cell) if record.name != "accuracy")
        yield from measure(cell.id, steps, model, rescaling, split, order[steps])

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast | Verdict]:
        """Yield the formula's error; the exact formulas, theory, large batches, weights and training are parts."""
        judged, largest = evidence.settings["judged"], max(evidence.settings["batches"])
        full = self._exact(evidence, "full_error", "The three terms together are the exact gradient.")
        yield self._primary(evidence, full)
        yield full
        yield self._exact(evidence, "norm_error", "Theorem 4.1 gives the length of the exact gradient.")
        yield self._theory(evidence)
        sites = evidence.select(probe="backward_terms", name="error", batch=largest)["site"].unique().to_list()
        yield _error(
            "error",
            {"batch": largest, "site": max(sites, key=lambda site: int(site.split(".")[1]))},
            claim=f"What the formula leaves out vanishes in large batches: under 1 % at {largest}.",
            endpoint=f"Minus the relative error in the top layer, batches of {largest}",
            reason=f"The error in the top layer is still {{}} at {largest}, where theory for an uninformative gradient "
            f"has {_percent(_expected(largest))}.",
        )
        yield _error(
            "weight_error",
            {"batch": judged},
            claim="Weight gradients computed with the formula in every layer are right.",
            endpoint="Minus the relative error of the weight gradients, mean over layers",
            reason="They are off by {} of their length: layer inputs are not centred, and the left-out mean "
            "multiplies their mean.",
        )
        drift = last("bias_max", probe="parameters")
        for lr in evidence.settings["training"]["lrs"]:
            for arm in ("cut-both", "cut-mean", "cut-variance"):
                at = {"lr": lr, "task": "training"}
                moved = drift.text(evidence, arm=arm, **at)
                yield Contrast(
                    LOSS,
                    arm,
                    "full",
                    at=at,
                    scale="log-ratio",
                    claim=f"Training is harmed by a backward pass with the {self.ARMS[arm]}.",
                    margin=HARM,
                    reason=lambda reading, moved=moved: (  # type: ignore[misc]
                        f"The loss ends {LOSS.typical(reading.values)} times as high; the largest bias in front of a "
                        f"batch norm reaches {moved}, which the exact gradient leaves at rest."
                    ),
                )

    def _primary(self, evidence: Evidence, full: Verdict) -> Verdict:
        """Refute the formula where its error is above 1 % in at least 90 % of layers and the full one is exact."""
        at = evidence.select(probe="backward_terms", name="error", batch=evidence.settings["judged"])
        layers = at.select("site", "step").unique().sort("site", "step").rows()
        errors = [
            evidence.per_seed(at.filter((pl.col("site") == site) & (pl.col("step") == step))) for site, step in layers
        ]
        off = sum(interval(error, level=evidence.level).low > -self.MARGIN for error in errors)
        contrast = _error(
            "error",
            {"batch": evidence.settings["judged"]},
            endpoint=self.ENDPOINT,
            reason=f"The formula is off by {{}} of the gradient's length on average; the interval lies above 1 % in "
            f"{off} of {len(layers)} (layer, time) pairs. With the two left-out terms the error is at most "
            f"{-full.effect.point:.0e}.",
        )
        verdict = self.verdict_of(contrast, evidence, primary=True)
        if verdict.outcome is Outcome.REFUTED and (off < 0.9 * len(layers) or full.outcome is not Outcome.SUPPORTED):
            return replace(verdict, outcome=Outcome.INCONCLUSIVE)
        return verdict

    def _exact(self, evidence: Evidence, name: str, claim: str) -> Verdict:
        """Judge an identity by its largest error of all seeds; between 1e-9 and 1 % nothing is said."""
        worst = evidence.per_seed(evidence.select(probe="backward_terms", name=name), pl.col("value").max())
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
        """Judge by two one-sided tests whether the first error is that of theory; a difference does not refute."""
        judged = evidence.settings["judged"]
        ratio = np.log(FIRST_ERROR(evidence, batch=judged) / _expected(judged))
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

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw error against batch size with theory, the training losses, and the drift of biases."""
        judged, batches = evidence.settings["judged"], evidence.settings["batches"]
        rates = evidence.settings["training"]["lrs"]
        layer = pl.lit("layer ") + (pl.col("site").str.extract(r"blocks\.(\d+)").cast(pl.Int64) + 1).cast(pl.String)
        first = evidence.select(probe="backward_terms", name="error", step=0).with_columns(layer.alias("layer"))
        theory = {"batch": batches, "value": [_expected(m) for m in batches], "layer": ["theory"] * len(batches)}
        said = ", ".join(
            f"{_percent(evidence.per_seed(part).mean())} in {name}"
            for (name,), part in sorted(first.filter(pl.col("batch") == judged).group_by(["layer"]))
        )
        at = {"lr": rates[0], "task": "training"}
        ends = ", ".join(
            f"{LOSS.text(evidence, arm=arm, **at)} with {self.ARMS[arm]}"
            for arm in evidence.settings["training"]["arms"]
        )
        return [
            versus_theory(
                first.group_by("batch", "layer", "seed").agg(pl.col("value").mean()),
                pl.DataFrame(theory),
                x="batch",
                by="layer",
                slug="error-by-batch",
                title="What the rescaling formula misses, against batch size",
                x_title="Batch size m",
                y_title="Relative error of the input gradient at the first step",
                log=True,
                log_x=True,
                caption=f"With batches of {judged} the formula misses {said}; theory for a gradient that knows nothing "
                f"of the values has {_percent(_expected(judged))}.",
            ),
            self.curves(
                evidence,
                "loss",
                at=at,
                slug="loss-by-cut",
                title=f"Training with parts of the backward pass cut out, learning rate {rates[0]:g}",
                caption=f"All train; the order at the end tells the price. Loss of the last 20 steps: {ends}.",
            ),
            self.curves(
                evidence,
                "bias_max",
                probe="parameters",
                at={"task": "training", "arm": [arm for arm in self.ARMS if arm != "none"]},
                facet="lr",
                slug="bias-drift",
                title="Biases in front of a batch norm drift when the mean is cut out",
                y_title="Largest absolute bias",
                log=True,
                labels={**self.wording.arms, **{str(float(lr)): f"learning rate {lr:g}" for lr in rates}},
                caption="The exact gradient of such a bias is zero, so it only moves by rounding; cut the mean out and "
                "it drifts.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate error, shares and theory by batch size, layer and time."""
        frame = evidence.select(probe="backward_terms", name="error")
        names = ("error", "cosine", "mean_share", "variance_share", "weight_error", "weight_cosine")
        theory = Quantity("theory", lambda evidence, batch, **_: np.full(len(evidence.seeds), _expected(batch)))
        sites = sorted(frame["site"].unique().to_list())
        against = []
        for batch in evidence.settings["batches"]:
            measured, expected = float(np.nanmean(FIRST_ERROR(evidence, batch=batch))), _expected(batch)
            ratio = measured / expected
            against.append((f"error, m={batch}", f"{measured:.4f}", f"{expected:.4f}", f"{ratio:.4f}"))
        return [
            self.grid_table(
                [theory, *(mean(name, probe="backward_terms") for name in names)],
                evidence,
                rows={
                    "batch": evidence.settings["batches"],
                    "step": sorted(frame["step"].unique().to_list()),
                    "site": sites,
                },
                title="The rescaling formula against the exact gradient",
                caption="Means over seeds. Theory is sqrt(2/(m-2)); shares are those of the gradient's energy that the "
                "left-out terms remove.",
                heads={"site": "Layer"},
                labels={site: str(int(site.split(".")[1]) + 1) for site in sites},
            ),
            Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(against)),
        ]


def _error(name: str, at: Mapping[str, Any], *, reason: str, endpoint: str, claim: str = "") -> Contrast:
    """Return the contrast of an error with 0; ``{}`` in the reason stands for its mean in percent."""
    return Contrast(
        mean(name, probe="backward_terms"),
        "full",
        at=at,
        scale="value",
        effect=lambda error, _: -error,
        claim=claim,
        endpoint=endpoint,
        reason=lambda reading: reason.format(_percent(-reading.effect.point)),
    )


def _expected(m: int) -> float:
    """Return the relative error for an uninformative gradient, sqrt(2/(m-2))."""
    return math.sqrt(2 / (m - 2))


def _percent(value: float) -> str:
    return f"{100 * float(value):.0f} %" if value >= 0.0995 else f"{100 * float(value):.1f} %"


def _loss(evidence: Evidence, **where: Any) -> Floats:
    """Return the logarithm of the mean loss of the last 20 steps; chance where the run diverged."""
    ended = evidence.last("diverged", **where)
    return np.asarray(np.log(np.where(ended == 1, np.log(10), evidence.final("loss", **where))))


LOSS = Quantity("training loss of the last 20 steps", _loss, logs=True)
FIRST_ERROR = Quantity(
    "error in the first layer at the first step",
    lambda evidence, batch: evidence.per_seed(
        evidence.select(probe="backward_terms", name="error", site="blocks.0.norm", step=0, batch=batch)
    ),
)
