"""The backward pass of batch normalization: one term or three."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, versus_theory
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, last, mean, presets
from normscope.studies.case_question import IDENTITY
from normscope.studies.evidence import Floats
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, recorder
from normscope.studies.lab.backward import measure, measure_affine
from normscope.studies.lab.train import batch_indices

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

EXACT = 1e-9
VANISHED = 0.01
HARM = math.log(1.2)
#: What the note says of gamma and beta, and what is right, by the name of the error's record.
AFFINE = {
    "gamma_error": "The gradient of gamma is the output gradient times the normalized values, summed over the batch.",
    "beta_row_error": "The gradient of beta is the output gradient, without a sum over the batch.",
    "beta_error": "The gradient of beta is the output gradient summed over the batch.",
}
CUTS = {"cut-both": "mean and the variance", "cut-mean": "mean", "cut-variance": "variance"}


class BnBackwardThreeTerms(AbstractTraining):
    r"""The gradient through batch norm is more than a rescaling.

    ## Claim
    A lecture note gives the backward pass of batch normalization as $g_\gamma = \hat z^\top g_y$,
    $g_\beta = g_y$ and $g_z = \gamma / \sqrt{\sigma_B^2 + \epsilon} \odot g_y$ (note on batch norm, section
    1). The first is right. The second lacks the sum over the batch. The third takes the batch's mean and variance for
    constants and so leaves out two terms; the exact gradient is
    $\gamma/\sigma\,(g_y - \langle g_y\rangle - \hat z \langle g_y \hat z\rangle)$ (Ioffe & Szegedy 2015, section
    3; Santurkar et al. 2018, facts C.1 and C.2, theorem 4.1).

    ## Method
    A network of three hidden layers of 100 units on the digits in float64, at the first step and after 200 steps of SGD
    at learning rate 0.1, for batches of 16, 64 and 256. In each layer, on the gradients that really arrive there: E,
    the relative error of the note's $g_z$ against the exact gradient; its cosine; the share of gradient energy
    that each left-out term removes; and the error of the weight gradients if every layer follows the note. The exact
    gradient is that of automatic differentiation through elementary operations; the full formula is compared with it,
    and with central differences. The note's formulas are identities: each is exact (to 1e-9) or false, with its error.
    The headline is E, the mean over layers and times, in batches of 64; the formulas of gamma and beta are claims of
    their own. So is harm: networks are trained with the mean, the variance or both cut out of the backward pass; a cut
    is harmful if the loss ends more than 1.2 times higher.

    ## Prediction
    The formula of gamma is exact, that of beta lacks a sum, that of the input is false. For a gradient that knows
    nothing of the normalized values the two terms remove a share 2/m of its energy, so
    $E \approx \sqrt{2/(m-2)}$: 0.378, 0.180 and 0.089 for m = 16, 64, 256; more in upper layers, where the
    gradient correlates with the values, and there it does not vanish as m grows. Weight gradients are off by 50 to 100
    %, because a layer's inputs are not centred and the left-out mean multiplies their mean. Yet training with both
    terms cut survives an easy task: the loss ends higher, mostly through the mean, and pre-normalization biases drift.

    ## Threats
    The size of E depends on how much the arriving gradient correlates with the values: it is a property of network,
    task and time, not a constant. That training survives the wrong rule holds for a shallow network on an easy task;
    the contrasts on harm say nothing of large networks. With the wrong rule every step differs, so the arms drift apart
    and the loss compares trajectories, not single steps.
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
    ON_A_CASE = IDENTITY
    ENDPOINT = "Relative error of that formula, mean over layers and times, batches of 64, float64"
    MARGIN = HARM
    MARGIN_REASON = "the loss of two seeds differs by about as much"
    ARMS = {
        "full": Arm("full backward pass", norms.batch()),
        "cut-mean": Arm("mean taken for a constant", norms.detached(mean=True, variance=False)),
        "cut-variance": Arm("variance taken for a constant", norms.detached(mean=False, variance=True)),
        "cut-both": Arm("both taken for constants", norms.detached(mean=True, variance=True)),
        "none": Arm("no batch norm", norms.none()),
    }
    CONDITIONS = {"task": "", "site": "in the top layer"}
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
        """Yield a measuring cell a batch size, one for gamma and beta, and a training cell a cut and learning rate."""
        for batch in settings["batches"]:
            yield "full", {"task": "formula", "batch": batch, "lr": settings["lr"]}
        yield "full", {"task": "gamma and beta", "batch": settings["judged"], "lr": settings["lr"]}
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
        if cell.point["task"] != "formula":
            picked = batch_indices(len(split.y_train), int(cell.point["batch"]), 1, cell.seed)[0]
            yield from measure_affine(cell.id, model, split, picked)
            return
        rescaling = network(cell, data, self.ARMS["cut-both"].norm, device).to(double)
        order = batch_indices(len(split.y_train), int(cell.point["batch"]), steps + 1, cell.seed)
        yield from measure(cell.id, 0, model, rescaling, split, order[0])
        yield from (record for record in fit(model, split, cell) if record.name != "accuracy")
        yield from measure(cell.id, steps, model, rescaling, split, order[steps])

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the formula's error; gamma and beta, theory, large batches, weights and harm are other claims."""
        judged, largest = evidence.settings["judged"], max(evidence.settings["batches"])
        missed = _typical(mean("error", probe="backward_terms")(evidence, batch=judged))
        yield _identity(
            "error",
            "headline",
            f"the formula misses the exact gradient by {missed} of its length on average over layers and seeds "
            "({effect}): two terms are left out",
            at={"batch": judged},
            unit="%",
        )
        for name, claim in AFFINE.items():
            off = _typical(mean(name, probe="backward_terms")(evidence))
            row = f"one row of the output gradient is off by {off} of the length of the sum ({{effect}})"
            short = name.removesuffix("_error").replace("_", " ")
            yield _identity(name, short, row if "row" in name else "", claim=claim)
        yield _identity(
            "full_error", "three terms", claim="The three terms together are the exact input gradient.", worst=True
        )
        yield _identity("norm_error", "length", claim="Theorem 4.1 gives the length of the exact gradient.", worst=True)
        yield _identity(
            "weight_error",
            "weight gradients",
            "weight gradients are off ({effect} of their length): layer inputs are not centred, and the left-out mean "
            "multiplies their mean",
            at={"batch": judged},
            unit="%",
            claim="Weight gradients computed with the formula in every layer are right.",
        )
        yield self._theory(evidence)
        sites = evidence.select(probe="backward_terms", name="error", batch=largest)["site"].unique().to_list()
        yield Contrast(
            mean("error", "relative error in the top layer", probe="backward_terms"),
            "full",
            at={"batch": largest, "site": max(sites, key=lambda site: int(site.split(".")[1]), default=None)},
            effect=lambda error, _: VANISHED - error,
            unit="%",
            name="large batches",
            claim="What the formula leaves out vanishes in large batches.",
            endpoint=f"1 % less the relative error in the top layer, batches of {largest}",
            says="the error lies {effect} the bound of 1 %",
            comparative=("below", "above"),
            margin=VANISHED / 2,
            margin_reason="half of the error that counts as vanished",
        )
        yield from self._harm(evidence)

    def _theory(self, evidence: Evidence) -> Contrast:
        """Return the contrast of the first error with that of theory."""
        judged = evidence.settings["judged"]
        measured = _typical(FIRST_ERROR(evidence, batch=judged))
        return Contrast(
            FIRST_ERROR,
            "full",
            _expected(judged),
            at={"batch": judged},
            scale="log-ratio",
            equal_within=HARM,
            name="theory",
            claim="In the first layer at the first step the error is sqrt(2/(m-2)), m the batch size.",
            endpoint="Measured error over theory, first layer, step 0",
            says=f"the error is {measured} where theory says {_percent(_expected(judged))}: {{effect}}",
            labels=("", "theory"),
            margin_reason="theory is for a gradient that knows nothing of the values, which real ones do a little",
        )

    def _harm(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield what each cut does to training."""
        drift = last("bias_max", probe="parameters")
        for lr in evidence.settings["training"]["lrs"]:
            for arm, words in CUTS.items():
                at = {"lr": lr, "task": "training"}
                moved = drift.text(evidence, arm=arm, **at)
                yield Contrast(
                    LOSS,
                    arm,
                    "full",
                    at=at,
                    scale="log-ratio",
                    name=f"{words} cut, learning rate {lr:g}",
                    claim=f"Training is harmed by a backward pass that takes the {words} for a constant.",
                    says=f"the training loss ends {{effect}} with the {words} taken for a constant",
                    comparative=("higher", "lower"),
                    reason=lambda reading, moved=moved: (  # type: ignore[misc]
                        f"The loss ends {LOSS.typical(reading.values)} times as high; the largest bias in front of a "
                        f"batch norm reaches {moved}, which the exact gradient leaves at rest."
                    ),
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


def _identity(
    name: str,
    short: str,
    says: str = "",
    *,
    at: Mapping[str, Any] | None = None,
    unit: str = "",
    claim: str = "",
    worst: bool = False,
) -> Contrast:
    """Return the contrast that says whether a formula is exact: the mean error of a seed, or its worst."""

    def largest(evidence: Evidence, **where: Any) -> Floats:
        return evidence.per_seed(evidence.select(probe="backward_terms", name=name, **where), pl.col("value").max())

    words = name.replace("_", " ")
    return Contrast(
        Quantity(f"largest {words}", largest) if worst else mean(name, words, probe="backward_terms"),
        "full",
        at=at or {},
        unit=unit,
        name=short,
        claim=claim,
        says=says or f"{{effect}}{' over layers, batch sizes and times' if worst else ' over seeds'}",
        exact_within=EXACT,
    )


def _expected(m: int) -> float:
    """Return the relative error for an uninformative gradient, sqrt(2/(m-2))."""
    return math.sqrt(2 / (m - 2))


def _typical(values: Floats) -> str:
    """Write the mean over seeds that have a number, in percent."""
    kept = values[np.isfinite(values)]
    return _percent(kept.mean()) if len(kept) else "an unknown share"


def _percent(value: float) -> str:
    return f"{100 * float(value):.0f} %" if value >= 0.0995 else f"{100 * float(value):.1f} %"


def _loss(evidence: Evidence, **where: Any) -> Floats:
    """Return the logarithm of the mean loss of the last 20 steps; chance where the run diverged."""
    ended = evidence.last("diverged", **where)
    return np.asarray(np.log(np.where(ended == 1, np.log(10), evidence.final("loss", **where))))


LOSS = Quantity("training loss of the last 20 steps", _loss, logs=True)
FIRST_ERROR = Quantity(
    "error in the first layer at the first step",
    lambda evidence, **where: evidence.per_seed(
        evidence.select(probe="backward_terms", name="error", site="blocks.0.norm", step=0, **where)
    ),
)
