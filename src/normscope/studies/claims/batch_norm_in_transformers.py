"""Batch norm in a transformer on text: how far statistics vary from batch to batch, and what it costs."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record
from normscope.studies import Arm, Best, Contrast, Evidence, Quantity, presets
from normscope.studies.evidence import Floats
from normscope.studies.lab import norms, token_norms
from normscope.studies.lab.arms import recorder, split_of
from normscope.studies.lab.batch_distance import PROBE, BatchDistance
from normscope.studies.lab.data import load
from normscope.studies.lab.held_out import HELD_OUT, chance
from normscope.studies.lab.meters import AbstractMeter
from normscope.studies.lab.models import build
from normscope.studies.lab.train import loss_fn
from normscope.studies.lab.transformer import transformer
from normscope.studies.transformer_training import AbstractTransformerTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

#: The first batch norm of each network.
FIRST = {"batch": "blocks.0.attention_norm.inner", "patches": "blocks.0.attention_norm.inner", "cnn": "blocks.0.norm"}
#: The measures of distance: what is compared, and how.
MEANS, VARIANCES = "batch's means from the running means", "batch's variances from the running variances"
MEASURES = {
    "mean": (MEANS, "over channels"),
    "variance": (VARIANCES, "over channels"),
    "relative_mean": (MEANS, "in standard deviations"),
    "relative_variance": (VARIANCES, "of logarithms"),
}
NATS = "a twentieth of a nat is what some ten more steps bring"
IMAGES = {"cnn": "CNN on digits", "patches": "transformer on digits"}


class BatchNormInTransformers(AbstractTransformerTraining):
    r"""Batch statistics of text vary too much for batch norm.

    ## Claim
    Batch norm does badly in transformers on text, because the statistics of text vary more from batch to batch than
    those of images: the distance of a batch's mean and variance from the running ones, at the first batch norm, is
    orders of magnitude larger in a transformer for translation than in a residual network on CIFAR-10 (Shen et al.
    2020, abstract and figure 2).

    ## Method
    Pre-norm transformers of two blocks of width 32 on characters, 512 of them a batch, with batch norm over all
    positions or layer norm, Adam with a warm-up of 30 of 150 steps, three learning rates. Image nets with batch norm: a
    CNN on the digits, with batches of 64 images (4096 positions) and of 8 (512 positions), and the same transformer on
    the digits in patches. At the first batch norm, over the second half of training: the Euclidean distance of the
    batch's statistics from the running ones over the number of channels, which is the source's measure; the same in
    running standard deviations, which does not depend on the size of activations. The headline is the distance of means
    of the text over the CNN with 64 images. Claims of their own: the same of variances; batch norm ends at a higher
    held-out loss than layer norm (each with statistics estimated anew for evaluation); with running statistics the
    held-out loss is higher than with the statistics of the held-out windows themselves.

    ## Prediction
    Means of n independent values lie $1/\sqrt{n}$ of a standard deviation from the truth, .016 for 4096 and .044 for
    512; a running mean of momentum .1 adds 3 % to it. So most of the difference from images is in the number of
    positions, and it is a factor of about three, not orders of magnitude. Characters are frequent, so batch norm works.

    ## Threats
    96 characters are not a vocabulary of ten thousand words, most of which a batch lacks: the source's fluctuations
    come with rare words. Sentences of the source are padded to one length, windows here are full. Batch norm in a
    causal model sees later characters through the statistics of training, which may help it there and not in
    evaluation. The digits are simple images.
    """

    CODE = "batch-norm-in-transformers"
    CARD = 41
    TOPIC = "transformers"
    EXTENSION = True
    SOURCES = ("Shen et al. 2020 (arXiv:2003.07845), abstract, section 3 and figure 2",)
    CLAIM = "Batch statistics of text vary more than those of images."
    ON_A_CASE = "it compares data, and not networks"
    ENDPOINT = "Distance of a batch's means from the running means, first batch norm, text over a CNN on digits"
    MARGIN = math.log(1.5)
    MARGIN_REASON = "two places in one network differ by as much; the source speaks of orders of magnitude"
    ARMS = {
        "layer": Arm("layer norm, text", token_norms.layer()),
        "batch": Arm("batch norm, text", token_norms.batch()),
        "patches": Arm("batch norm, transformer on digits", token_norms.batch()),
        "cnn": Arm("batch norm, CNN on digits", norms.batch()),
    }
    CONDITIONS = {"batch": "batches of {}", "measure": "", "statistics": "{} statistics"}
    VARIES = {"arms": "image net"}
    PRESETS = presets(
        quick={
            "network": {"width": 32, "blocks": 2, "heads": 2, "init": "xavier"},
            "lrs": [0.003, 0.01, 0.03],
            "judged": 0.01,
            "batch": 8,
            "images": [64, 8],
            "steps": 150,
            "warmup": 30,
            "test": 128,
        },
        full={
            "network": {"width": 128, "blocks": 6, "heads": 4, "init": "xavier"},
            "lrs": [0.0003, 0.001, 0.003],
            "judged": 0.001,
            "batch": 64,
            "images": [128, 16],
            "steps": 5000,
            "warmup": 500,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the text at every rate, and the images at one rate in batches of several sizes."""
        for lr in settings["lrs"]:
            for arm in ("layer", "batch"):
                yield arm, {"lr": lr, "batch": settings["batch"]}
        for arm in ("cnn", "patches"):
            for batch in settings["images"]:
                yield arm, {"lr": settings["judged"], "batch": batch}

    def network(self, cell: Cell, data: "Dataset", device: str) -> Any:
        """Return the network of an arm."""
        if cell.arm == "cnn":
            images, norm = load("digits"), self.norm(cell)
            return build("cnn-s", shape=images.shape, classes=images.classes, norm=norm, seed=cell.seed).to(device)
        if cell.arm == "patches":
            model = transformer(load("digits"), self.norm(cell), seed=cell.seed, **cell.settings["network"])
            return model.to(device).train()
        return super().network(cell, data, device)

    def split(self, cell: Cell, data: "Dataset", device: str) -> "Split":
        """Return the data of an arm."""
        images = cell.arm in ("cnn", "patches")
        return split_of(cell, load("digits"), device) if images else super().split(cell, data, device)

    def meters(self, cell: Cell) -> Sequence[AbstractMeter]:
        """Compare batches with running statistics at the first batch norm."""
        every = max(2, int(cell.settings["steps"]) // 100)
        return [BatchDistance([FIRST[cell.arm]], every=every)] if cell.arm in FIRST else []

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Record the loss of chance."""
        return chance(cell, model) if cell.arm in ("layer", "batch") else ()  # type: ignore[arg-type]

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterator[Record]:
        """Record the held-out loss with running statistics and with those of the held-out windows."""
        if cell.arm != "batch":
            return
        record, batch = recorder(cell, "evaluated"), (split.x_test, split.y_test)
        twin = copy.deepcopy(model)  # running statistics move in a forward pass of training
        with torch.no_grad():
            yield record("running", loss_fn(twin.eval(), batch))
            yield record("own", loss_fn(twin.train(), batch))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield distances of means and of variances, text over images; then losses, and what evaluation costs."""
        settings = evidence.settings
        other = "Batch variances of text vary more than those of images."
        for short, claim in {"mean": self.CLAIM, "variance": other}.items():
            for measure in (short, f"relative_{short}"):
                for arm, batch, name in _image_points(settings):
                    yield _distance(measure, arm, batch, name, settings, claim)
        worse = "With batch norm a transformer on text ends at a higher held-out loss than with layer norm."
        for name, lr in {"own best rates": Best("lr"), **{f"rate {lr:g}": lr for lr in settings["lrs"]}}.items():
            yield Contrast(
                HELD_OUT,
                "batch",
                "layer",
                at={"lr": lr},
                margin=0.05,
                margin_reason=NATS,
                name=f"loss, {name}",
                claim=worse,
                says="the held-out loss is {effect} with batch norm than with layer norm",
                comparative=("higher", "lower"),
            )
        yield Contrast(
            EVALUATED,
            {"arm": "batch", "statistics": "running"},
            {"arm": "batch", "statistics": "own"},
            at={"lr": settings["judged"]},
            margin=0.05,
            margin_reason=NATS,
            labels=("running statistics", "those of the held-out windows"),
            name="evaluation",
            claim="On text, evaluation with running statistics is worse than with the statistics of what is evaluated.",
            says="the held-out loss is {effect} with running statistics than with those of the held-out windows",
            comparative=("higher", "lower"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the distances over steps, and the losses on text."""
        lr, sizes = evidence.settings["judged"], _sizes(evidence.settings)
        drawn = []
        for measure in MEASURES:
            found = evidence.select(probe=PROBE, name=measure, lr=lr)
            kept = found.filter(
                pl.any_horizontal((pl.col("arm") == arm) & (pl.col("batch") == batch) for arm, batch in sizes.items())
            )
            ends = ", ".join(
                f"{DISTANCE.text(evidence, arm=arm, lr=lr, batch=batch, measure=measure)} with {self.ARMS[arm]}"
                for arm, batch in sizes.items()
            )
            drawn.append(
                curves(
                    kept,
                    y=measure,
                    slug=f"distance-{measure}".replace("_", "-"),
                    title=_title(measure),
                    y_title="Distance",
                    arms=list(sizes),
                    labels=self.wording.arms,
                    log=True,
                    caption=f"Second half of training, first batch norm: {ends} (geometric means).",
                )
            )
        return [*drawn, self.curves(evidence, "loss", at={"lr": lr, "arm": ["layer", "batch"]}, slug="loss")]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the distances, and the held-out losses."""
        settings = evidence.settings
        points = [(arm, batch) for arm, batch, _ in _image_points(settings)]
        rows = [
            (str(self.ARMS[arm]), batch, *(
                DISTANCE.text(evidence, arm=arm, batch=batch, lr=settings["judged"], measure=measure)
                for measure in MEASURES
            ))
            for arm, batch in [("batch", settings["batch"]), *points]
        ]  # fmt: skip
        return [
            Table(
                "How far a batch's statistics lie from the running ones",
                ("Network", "Samples of a batch", *map(_title, MEASURES)),
                tuple(rows),
                "First batch norm, second half of training; geometric means. A sample of text is 64 positions, of the "
                "CNN 64, of the transformer on digits 17.",
            ),
            self.grid_table(
                HELD_OUT, evidence, rows={"arm": ["layer", "batch"]}, columns={"lr": settings["lrs"]},
                title="Held-out loss on text",
            ),
        ]  # fmt: skip


def _title(measure: str) -> str:
    return f"Distance of a {', '.join(MEASURES[measure])}"


def _sizes(settings: Mapping[str, Any]) -> dict[str, int]:
    """Return the samples of a batch of each arm with batch norm; of images the larger number."""
    return {"batch": settings["batch"], **dict.fromkeys(("cnn", "patches"), settings["images"][0])}


def _image_points(settings: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Return arm, samples of a batch and a name of each image net that text is compared with."""
    return [(arm, batch, f"{arm} {batch}") for arm in ("cnn", "patches") for batch in settings["images"]]


def _distance(measure: str, arm: str, batch: int, name: str, settings: Mapping[str, Any], claim: str) -> Contrast:
    """Return the contrast of text with images by one measure of distance."""
    compared, how = MEASURES[measure]
    other = f"{IMAGES[arm]} with batches of {batch}"
    return Contrast(
        DISTANCE,
        {"arm": "batch", "batch": settings["batch"]},
        {"arm": arm, "batch": batch},
        at={"lr": settings["judged"], "measure": measure},
        conditions={"measure": how},
        scale="log-ratio",
        labels=("text", other),
        name=f"{measure.replace('_', ' ')}, {name}",
        claim=claim,
        says=f"the distance of a {compared} is {{effect}} on text than in a {other}",
        comparative=("larger", "smaller"),
    )


def _read(evidence: Evidence, measure: str, **where: Any) -> Floats:
    """Return per seed the mean log distance over the second half of training."""
    found = evidence.select(probe=PROBE, name=measure, **where)
    return evidence.mean_log(found.filter(pl.col("step") >= int(evidence.settings["steps"]) / 2))


def _evaluated(evidence: Evidence, statistics: str, **where: Any) -> Floats:
    return evidence.per_seed(evidence.select(probe="evaluated", name=statistics, **where))


DISTANCE = Quantity("distance of batch statistics from the running statistics", _read, logs=True)
EVALUATED = Quantity("held-out loss", _evaluated, unit="nats", held_out=True)
