"""Dropout before batch norm: the variance that evaluation meets is another one."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, versus_theory
from normscope.records import Cell, Record, Verdict
from normscope.studies._evidence import Evidence, typical
from normscope.studies._judging import equivalent, with_parts
from normscope.studies._study import AbstractStudy
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, one, split_of
from normscope.studies.lab.evaluate import accuracy as right, population_statistics
from normscope.studies.lab.models import Place

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split


class DropoutVarianceShift(AbstractStudy):
    r"""Dropout before batch norm gives it running statistics that evaluation does not meet.

    ## Claim
    Dropout in front of batch norm makes the variance in training larger than in evaluation, so the running variance is
    wrong there; the two are to be combined only after the last batch norm (Li, Chen and Hu 2018, second hand; the
    answer to "What is the effect of batch normalization on the gradient?" compares the two as regularisers).

    ## Method
    Dense networks of three hidden layers of 100 with dropout of keep probability p directly before each batch norm. At
    the end the variance that each channel has in evaluation over its running variance, against
    :math:`v/((c^2+v)/p - c^2)` with mean c and variance v of that channel: primary, the log of measured over theory,
    averaged over channels and layers, within 5 % at p = 0.5 (two one-sided tests). Harm: test accuracy with statistics
    estimated again, dropout off, less with the running ones; supported above half a percentage point.

    ## Prediction
    The ratio is as theory says (p itself where the mean is 0). Harm grows with 1 - p and with depth.

    ## Threats
    Running statistics lag behind weights that move; the last steps are therefore taken at a learning rate of zero. The
    theory takes dropout of each unit by itself.
    """

    CODE = "dropout-variance-shift"
    CARD = 30
    TOPIC = "statistics"
    SOURCES = (
        "Q&A on the gradient, answer on dropout",
        "Li, Chen and Hu 2018 (arXiv:1801.05134), second hand",
    )
    CLAIM = "Dropout before batch norm shrinks the variance in evaluation against the running one as theory says."
    ENDPOINT = "Measured over theoretical ratio of the variance in evaluation to the running variance, keep 0.5"
    MARGIN = math.log(1.05)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
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
        "full": {
            "network": {"name": "vgg-a"},
            "keeps": [0.5, 0.7, 0.9, 1.0],
            "judged": 0.5,
            "batch": 128,
            "lr": 0.1,
            "steps": 15000,
            "settle": 500,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every keep probability."""
        for keep in settings["keeps"]:
            yield "dropout", {"keep": keep}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train, let the running statistics settle, and hold them against evaluation."""
        keep = float(cell.point["keep"])

        def make(place: Place) -> nn.Module:
            batch = norms.batch()(place)
            return nn.Sequential(nn.Dropout(1 - keep), batch)

        model, split = network(cell, data, make, device), split_of(cell, data, device)
        # Dropout draws from the global stream, which a cell sets: the same at every run.
        torch.manual_seed(cell.seed)
        yield from fit(model, split, cell)
        model.train()
        with torch.no_grad():
            for module in _batch_norms(model):
                module.reset_running_stats()
                module.momentum = None
            stream = torch.Generator().manual_seed(cell.seed)
            for _ in range(int(cell.settings["settle"])):
                picked = torch.randint(len(split.x_train), (int(cell.settings["batch"]),), generator=stream)
                model(split.x_train[picked])
        yield from _ratios(cell, model, split, keep)

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the ratio; the other probabilities and harm are parts."""
        judged = evidence.settings["judged"]
        primary = self._theory(evidence, judged, primary=True)
        others = [keep for keep in evidence.settings["keeps"] if keep not in (judged, 1.0)]
        parts = [self._theory(evidence, keep) for keep in others]
        for keep in (judged, *others):
            again, running = (_seen(evidence, name, keep) for name in ("accuracy_again", "accuracy_running"))
            parts.append(
                self.part(
                    evidence,
                    again - running,
                    margin=0.005,
                    claim=f"Dropout before batch norm harms evaluation, keep {keep:g}.",
                    endpoint=f"Test accuracy with statistics estimated again less with the running ones, keep {keep:g}",
                    reason=f"{typical(again)} again, {typical(running)} with the running ones.",
                )
            )
        return with_parts(primary, parts)

    def _theory(self, evidence: Evidence, keep: float, *, primary: bool = False) -> Verdict:
        off = _seen(evidence, "log_ratio", keep)
        measured, theory = _seen(evidence, "measured", keep), _seen(evidence, "theory", keep)
        return equivalent(
            self,
            evidence,
            off,
            self.MARGIN,
            scale="log-ratio",
            claim=self.CLAIM,
            endpoint=self.ENDPOINT if primary else f"Measured over theoretical ratio, keep {keep:g}",
            reason=f"The variance in evaluation is {typical(measured)} of the running one, in theory {typical(theory)}.",
            primary=primary,
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw measured and theoretical ratios by keep probability."""
        keeps = evidence.settings["keeps"]
        rows = [
            {"keep": keep, "seed": seed, "value": value, "of": "measured"}
            for keep in keeps
            for seed, value in zip(evidence.seeds, _seen(evidence, "measured", keep), strict=True)
        ]
        lines = [
            {"keep": keep, "value": float(np.nanmean(_seen(evidence, "theory", keep))), "of": "measured"}
            for keep in keeps
        ]
        return [
            versus_theory(
                pl.DataFrame(rows),
                pl.DataFrame(lines),
                x="keep",
                slug="ratio",
                title="Variance in evaluation over the running variance",
                x_title="Keep probability",
                y_title="Ratio, geometric mean over channels",
                caption="The line is theory with the measured mean and variance of each channel.",
            )
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate against theory, and the accuracies."""
        rows, ends = [], []
        for keep in evidence.settings["keeps"]:
            measured, theory = (float(np.nanmean(_seen(evidence, name, keep))) for name in ("measured", "theory"))
            rows.append(
                (f"variance ratio, keep {keep:g}", f"{measured:.4f}", f"{theory:.4f}", f"{measured / theory:.4f}")
            )
            ends.append(
                (
                    f"{keep:g}",
                    *(typical(_seen(evidence, name, keep)) for name in ("accuracy_running", "accuracy_again")),
                )
            )
        return [
            Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(rows)),
            Table("Test accuracy", ("Keep", "Running statistics", "Estimated again"), tuple(ends)),
        ]


def _seen(evidence: Evidence, name: str, keep: float) -> np.ndarray:
    return evidence.last(name, probe="dropout", keep=keep)


def _batch_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _ratios(cell: Cell, model: nn.Module, split: "Split", keep: float) -> Iterator[Record]:
    note = one(cell, "dropout")
    seen: dict[nn.Module, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda layer, inputs: seen.__setitem__(layer, inputs[0].detach()))
        for module in _batch_norms(model)
    ]
    # What stands before dropout in training: what passes it in eval mode with the norms still in train mode.
    model.eval()
    for module in _batch_norms(model):
        module.train()
        module.momentum = 0.0
    kept = [(module.running_mean.clone(), module.running_var.clone()) for module in _batch_norms(model)]
    with torch.no_grad():
        model(split.x_train)
    measured, theory = [], []
    for module, (_, variance) in zip(_batch_norms(model), kept, strict=True):
        x = seen[module].transpose(0, 1).flatten(1).double()
        v, c = torch.var_mean(x, 1, correction=0)
        alive = v > 1e-6
        ratio = v[alive] / variance.double()[alive]
        expected = v[alive] / ((c[alive].square() + v[alive]) / keep - c[alive].square())
        measured.append(ratio.log().mean())
        theory.append(expected.log().mean())
    for handle in handles:
        handle.remove()
    model.eval()
    off = float(torch.stack(measured).mean() - torch.stack(theory).mean())
    yield note("log_ratio", off)
    yield note("measured", math.exp(float(torch.stack(measured).mean())))
    yield note("theory", math.exp(float(torch.stack(theory).mean())))
    with torch.no_grad():
        yield note("accuracy_running", right(model(split.x_test), split.y_test))
    with population_statistics(model, split.x_train), torch.no_grad():
        yield note("accuracy_again", right(model(split.x_test), split.y_test))
