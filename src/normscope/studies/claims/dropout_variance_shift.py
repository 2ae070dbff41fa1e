"""Dropout before batch norm: the variance that evaluation meets is another one."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, versus_theory
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, Quantity, last, presets, typical
from normscope.studies.figures import theory_table
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, recorder, split_of
from normscope.studies.lab.data import Dataset, Split
from normscope.studies.lab.evaluate import accuracy as right, population_statistics
from normscope.studies.lab.models import Place

MEASURED = last("measured", probe="dropout")
THEORY = last("theory", probe="dropout")
MET = last("evaluation", "variance in evaluation over the running one", probe="dropout")
#: Which statistics evaluation uses: a further value of the condition, beside the keep probability.
STATISTICS = {"running": "running statistics", "again": "statistics estimated again"}
ACCURACY = Quantity(
    "test accuracy",
    lambda evidence, statistics, **where: evidence.last(f"accuracy_{statistics}", probe="dropout", **where),
    unit="points",
    floor=lambda evidence: evidence.floor,
    held_out=True,
)


class DropoutVarianceShift(AbstractStudy):
    r"""Dropout before batch norm gives it running statistics that evaluation does not meet.

    ## Claim
    Dropout in front of batch norm makes the variance in training larger than in evaluation, so the running variance is
    wrong there; the two are to be combined only after the last batch norm (Li, Chen and Hu 2018, second hand; the
    answer to "What is the effect of batch normalization on the gradient?" compares the two as regularisers).

    ## Method
    Dense networks of three hidden layers of 100 with dropout of keep probability p directly before each batch norm.
    After training, running statistics are taken anew with the weights at rest, and with them mean c and variance v of
    what each dropout is given, the dropout of the layers before it at work as in training. The headline is harm, which
    is what the source speaks of: test accuracy with statistics estimated again, dropout off, less that with the running
    statistics, at p = 0.5; also tried are the other p. The ratio is a claim of its own: v over the running variance of
    the norm behind, against $v/((c^2+v)/p - c^2)$, the log of measured over theory averaged over channels and
    layers, alike within 5 % (two one-sided tests). So is the shift: the variance that evaluation meets over the running
    variance, where the layers before have lost their dropout too (smaller by more than 5 %).

    ## Prediction
    The ratio is as theory says (p itself where the mean is 0). In evaluation the first layer's variance is smaller by
    that ratio, those of deeper layers by more. Harm grows with 1 - p and with depth; in shallow networks it is small.

    ## Threats
    The running statistics of training lag behind weights that move, which is another gap (train-test-statistics-gap):
    here they are taken with the weights at rest. That the ratio is right where inputs are those of training is
    arithmetic of independent dropout; what evaluation meets is not.
    """

    CODE = "dropout-variance-shift"
    CARD = 30
    TOPIC = "statistics"
    SOURCES = ("Li, Chen and Hu 2018 (arXiv:1801.05134), second hand",)
    EXTENSION = True
    CLAIM = "Dropout before batch norm harms evaluation."
    ON_A_CASE = "rule NS125 looks for it: `normscope check`"
    ENDPOINT = "Test accuracy with statistics estimated again minus with running statistics, keep 0.5"
    MARGIN = 0.005
    MARGIN_REASON = "one or two test images"
    VERSION = 2
    ARMS = {"dropout": "dropout before batch norm"}
    POINTS = {"keep": "keeps"}
    CONDITIONS = {"keep": "keep probability {:g}", "statistics": "statistics: {}"}
    VARIES = {"keep": "keep probability"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "keeps": [0.5, 0.7, 0.9, 1.0],
            "judged": 0.5,
            "batch": 128,
            "lr": 0.1,
            "steps": 200,
            "settle": 100,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "steps": 15000, "settle": 500},
    )

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Train, let the running statistics settle, and hold them against evaluation."""
        keep = float(cell.point["keep"])

        def make(place: Place) -> nn.Module:
            return nn.Sequential(WatchedDropout(1 - keep), norms.batch()(place))

        model, split = network(cell, data, make, device), split_of(cell, data, device)
        # Dropout draws from the global stream, which a cell sets: the same at every run.
        torch.manual_seed(cell.seed)
        yield from fit(model, split, cell)
        _settle(cell, model, split)
        yield from _ratios(cell, model, split, keep)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield harm at each probability; the ratio and the shift are claims of their own."""
        judged, shift = evidence.settings["judged"], math.log(1.05)
        keeps = [judged, *(keep for keep in evidence.settings["keeps"] if keep not in (judged, 1.0))]
        for keep in keeps:
            yield Contrast(
                ACCURACY,
                {"statistics": "again"},
                {"statistics": "running"},
                at={"keep": keep},
                labels=(STATISTICS["again"], STATISTICS["running"]),
                name=f"harm, keep {keep:g}",
                says="with the running statistics the test accuracy is {effect} than with statistics estimated without "
                "dropout",
                comparative=("lower", "higher"),
            )
        for keep in keeps:
            yield Contrast(
                last("log_ratio", "measured over theoretical ratio", probe="dropout"),
                at={"keep": keep},
                scale="log-ratio",
                equal_within=shift,
                margin_reason="theory is exact for independent dropout; a twentieth is more than the sampling error",
                name=f"ratio, keep {keep:g}",
                claim="The running variance is larger than the variance without dropout, as much as theory says.",
                endpoint="Measured over theoretical ratio of the variance before dropout to the running variance, "
                f"keep {keep:g}",
                says=f"the variance without dropout is {MEASURED.text(evidence, keep=keep)} of the running variance, "
                f"{THEORY.text(evidence, keep=keep)} in theory: {{effect}}",
                reason=f"The variance before dropout is {MEASURED.text(evidence, keep=keep)} of the running one, in "
                f"theory {THEORY.text(evidence, keep=keep)}.",
            )
        for keep in keeps:
            layers = evidence.select(probe="dropout", name="evaluation_layer", keep=keep)
            by_layer = (typical(evidence.per_seed(layer)) for _, layer in sorted(layers.group_by("site"), key=_site))
            yield Contrast(
                MET,
                1.0,
                "dropout",
                at={"keep": keep},
                scale="log-ratio",
                margin=shift,
                margin_reason="a norm's output off by 2.5 % is less than the noise of its batch",
                name=f"shift, keep {keep:g}",
                claim="Evaluation meets a smaller variance than the running variance.",
                endpoint=f"Running variance over the variance in evaluation, keep {keep:g}",
                says="evaluation meets a variance that is {effect} than the running variance",
                comparative=("smaller", "larger"),
                reason=f"The variance in evaluation is {MET.text(evidence, keep=keep)} of the running one; by layer "
                f"{', '.join(by_layer)}.",
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw measured and theoretical ratios by keep probability."""
        words = {"measured": "before dropout, in training", "evaluation": "in evaluation"}
        frame = evidence.select(probe="dropout")
        ratios = [frame.filter(pl.col("name") == name).with_columns(of=pl.lit(said)) for name, said in words.items()]
        theory = (
            frame.filter(pl.col("name") == "theory").group_by("keep", maintain_order=True).agg(pl.col("value").mean())
        )
        return [
            versus_theory(
                pl.concat(ratios),
                pl.concat([theory.with_columns(of=pl.lit(said)) for said in words.values()]),
                x="keep",
                by="of",
                slug="ratio",
                title="Variance without dropout over the running variance",
                x_title="Keep probability",
                y_title="Ratio, geometric mean over channels",
                caption="The line is theory with the measured mean and variance of each channel. In evaluation the "
                "layers before have lost their dropout too.",
            )
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate against theory, and the accuracies."""
        keeps = evidence.settings["keeps"]
        return [
            theory_table(
                (f"variance ratio, keep {keep:g}", MEASURED(evidence, keep=keep), THEORY(evidence, keep=keep))
                for keep in keeps
            ),
            self.grid_table(ACCURACY, evidence, rows={"keep": keeps}, columns={"statistics": list(STATISTICS)}),
        ]


def _site(item: tuple[tuple[object, ...], pl.DataFrame]) -> str:
    return str(item[0][0])


def _batch_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class WatchedDropout(nn.Module):
    """Dropout that keeps the moments of what it is given while training: what the norm behind it would see without."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(share)
        self.watching = False
        self.batches = 0
        self.variance: torch.Tensor | float = 0.0
        self.square: torch.Tensor | float = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop units; add the batch's unbiased variance and mean square of each channel to the sums if watched."""
        if self.watching:
            values = x.detach().transpose(0, 1).flatten(1).double()
            self.batches += 1
            self.variance = self.variance + values.var(1)
            self.square = self.square + values.square().mean(1)
        out: torch.Tensor = self.dropout(x)
        return out

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean variance and the mean square of each channel."""
        return torch.as_tensor(self.variance) / self.batches, torch.as_tensor(self.square) / self.batches


def _dropouts(model: nn.Module) -> list[WatchedDropout]:
    return [module for module in model.modules() if isinstance(module, WatchedDropout)]


def _settle(cell: Cell, model: nn.Module, split: Split) -> None:
    """Take running statistics anew in train mode with the weights at rest, and watch what dropout is given."""
    model.train()
    for module in _batch_norms(model):
        module.reset_running_stats()
        module.momentum = None  # the plain average over batches
    for watched in _dropouts(model):
        watched.watching = True
    stream = torch.Generator().manual_seed(cell.seed)
    with torch.no_grad():
        for _ in range(int(cell.settings["settle"])):
            picked = torch.randint(len(split.x_train), (int(cell.settings["batch"]),), generator=stream)
            model(split.x_train[picked])
    for watched in _dropouts(model):
        watched.watching = False


def _ratios(cell: Cell, model: nn.Module, split: Split, keep: float) -> Iterator[Record]:
    record = recorder(cell, "dropout")
    measured, theory, met = [], [], []
    evaluated = _evaluated(model, split)
    for watched, module in zip(_dropouts(model), _batch_norms(model), strict=True):
        v, square = watched.moments()
        alive = v > 1e-6
        running = module.running_var.double()[alive]
        # (c^2 + v)/p - c^2, with c^2 + v the mean square.
        measured.append((v[alive] / running).log().mean())
        theory.append((v[alive] / (v[alive] + square[alive] * (1 / keep - 1))).log().mean())
        met.append((evaluated[module][alive].clamp(min=1e-12) / running).log().mean())
    found, expected, shift = (torch.stack(values) for values in (measured, theory, met))
    yield record("log_ratio", (found - expected).mean())
    yield record("measured", found.mean().exp())
    yield record("theory", expected.mean().exp())
    yield record("evaluation", shift.mean().exp())
    for index, value in enumerate(shift):
        yield record("evaluation_layer", value.exp(), site=f"blocks.{index}.norm")
    model.eval()
    with torch.no_grad():
        yield record("accuracy_running", right(model(split.x_test), split.y_test))
    with population_statistics(model, split.x_train), torch.no_grad():
        yield record("accuracy_again", right(model(split.x_test), split.y_test))


def _evaluated(model: nn.Module, split: Split) -> dict[nn.Module, torch.Tensor]:
    """Return the variance per channel of what each norm is given in evaluation, on the training data."""
    found: dict[nn.Module, torch.Tensor] = {}

    def keep(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found[layer] = inputs[0].detach().transpose(0, 1).flatten(1).double().var(1)

    handles = [module.register_forward_pre_hook(keep) for module in _batch_norms(model)]
    model.eval()
    with torch.no_grad():
        model(split.x_train)
    for handle in handles:
        handle.remove()
    return found
