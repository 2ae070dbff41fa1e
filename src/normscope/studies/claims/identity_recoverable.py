"""Can batch norm be the identity, and does it become it?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from normscope import layers
from normscope.plots import Figure, Table, versus_theory
from normscope.records import Cell, Outcome, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import equivalent, exact, with_parts
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, recorder, split_of
from normscope.studies.lab.streams import generator
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

#: Excess kurtosis of what is normalized.
KINDS = {"normal": 0.0, "uniform": -1.2, "laplace": 3.0}


class IdentityRecoverable(AbstractStudy):
    r"""With gamma and beta at the data's standard deviation and mean, batch norm is the identity.

    ## Claim
    With :math:`\gamma = \sqrt{Var[x]}` and :math:`\beta = E[x]` batch norm is the identity, so nothing is lost in
    expressiveness; in practice gamma and beta do not go there (questions "What is the effect of batch normalization on
    the gradient?" and "How does the batch normalization layer work?"; Ioffe & Szegedy 2015, section 3; Santurkar et al.
    2018, observation 4.3).

    ## Method
    On normal, uniform and Laplace data of known mean and variance: in eval mode, the largest difference from the
    identity in float32 (below 1e-6 of sigma). In train mode, the mean squared difference over the variance, times the
    batch size m: the claim "exactly, in training too" is the primary endpoint, measured as minus that number, refuted
    if the interval lies below 0 by more than 0.5. Theory: :math:`1 + (\rho+2)/4`, rho the excess kurtosis, so 1.5 for
    normal data. Is it a linear transformation (with an offset)? The norm of :math:`f(x)+f(y)-f(0)-f(x+y)` over that of
    :math:`f(x+y)-f(0)` for two batches, 0 in eval mode and :math:`\sqrt 2 - 1` in train mode, where f of a zero batch
    is beta. In trained networks: the median over channels of :math:`|\gamma-\sigma|/\sigma`; "does not go there" if it
    is above 0.2 and its interval above 0.1. Batch norm at the identity is put into a network trained without it, and
    training goes on.

    ## Prediction
    Exact in eval mode; refuted in train mode: noise of 1.5 sigma^2/m stays, a regulariser that gamma and beta cannot
    switch off. Trained gammas stay near 1.

    ## Threats
    Torch normalizes by the biased and stores the unbiased variance: a factor :math:`\sqrt{(m-1)/m}` more between the
    modes. Eps must be counted in; a channel of variance zero cannot be recovered.
    """

    CODE = "identity-recoverable"
    CARD = 3
    TOPIC = "affine"
    SOURCES = (
        "Q&A on the gradient, answer on gamma and beta",
        "Article on batch norm, definition",
        "Q&A on the layer, answers on the identity",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 3",
        "Santurkar et al. 2018 (arXiv:1805.11604), observation 4.3",
    )
    CLAIM = "With the right gamma and beta batch norm is the identity in training too."
    ENDPOINT = "Minus batch size times mean squared difference from the identity over the variance (0 = the identity)"
    MARGIN = -0.5
    VERSION = 2
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batches": [8, 16, 64, 256],
            "judged": 64,
            "draws": 400,
            "batch": 64,
            "lr": 0.1,
            "steps": 300,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "batches": [4, 8, 16, 32, 64, 128, 256],
            "judged": 64,
            "draws": 4000,
            "batch": 128,
            "lr": 0.1,
            "steps": 15000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the kinds of data at every batch size, a trained network, and one that gets batch norm late."""
        for batch in settings["batches"]:
            for kind in KINDS:
                yield kind, {"m": batch}
        yield "trained", {"m": 0}
        yield "inserted", {"m": 0}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Measure one of them."""
        if cell.arm in KINDS:
            return _identity(cell)
        if cell.arm == "trained":
            return _trained(cell, data, device)
        return _inserted(cell, data, device)

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the train mode; eval mode, theory and trained networks are parts."""
        judged = evidence.settings["judged"]
        error = _seen(evidence, "error_times_m", arm="normal", m=judged)
        primary = self.part(
            evidence,
            -error,
            scale="value",
            endpoint=self.ENDPOINT,
            reason=f"The difference is {typical(error)} sigma^2/m in training (theory 1.5 for normal data).",
        )
        parts = [
            exact(
                self,
                evidence,
                np.max([_seen(evidence, "eval_error", arm=kind, m=judged) for kind in KINDS], axis=0),
                1e-6,
                claim="In eval mode batch norm with the right gamma and beta is the identity.",
                endpoint="Largest difference over sigma, float32",
            )
        ]
        parts += [
            equivalent(
                self,
                evidence,
                _seen(evidence, "error_times_m", arm=kind, m=judged) - _expected(kind),
                0.1 * _expected(kind),
                claim="The difference in training is that of theory.",
                endpoint=f"Difference times m less theory, {kind} data",
                reason=f"{typical(_seen(evidence, 'error_times_m', arm=kind, m=judged))} measured, "
                f"{_expected(kind):g} in theory.",
            )
            for kind in KINDS
        ]
        parts += self._linear(evidence, judged)
        parts.append(self._goes_there(evidence))
        kept = _seen(evidence, "loss_change", arm="inserted")
        stays = _seen(evidence, "gamma_away", arm="inserted")
        parts.append(
            exact(
                self,
                evidence,
                kept,
                1e-4,
                claim="Batch norm put in at the identity leaves the evaluation of a trained network as it is.",
                endpoint="Relative change of the loss in eval mode",
            )
        )
        return with_parts(
            primary, parts, f"Put into a trained network at the identity, gamma then moves away by {typical(stays)}."
        )

    def _linear(self, evidence: Evidence, judged: int) -> list[Verdict]:
        """Judge whether batch norm is a linear transformation with an offset, in either mode."""
        kind = {"arm": "normal", "m": judged}
        off = _seen(evidence, "nonlinear_train", **kind)
        return [
            exact(
                self,
                evidence,
                _seen(evidence, "nonlinear_eval", **kind),
                1e-10,
                claim="In eval mode batch norm is a linear transformation with an offset.",
                endpoint="Relative error of adding two inputs, eval mode",
            ),
            self.part(
                evidence,
                off,
                scale="value",
                margin=0.1,
                claim="In train mode batch norm is not a linear transformation of its batch.",
                endpoint="Relative error of adding two batches, train mode",
                reason=f"The error is {typical(off)} (theory {math.sqrt(2) - 1:.3f}).",
            ),
        ]

    def _goes_there(self, evidence: Evidence) -> Verdict:
        """Judge whether trained gammas stay away from sigma: two thresholds, one on the interval, one on the mean."""
        away = _seen(evidence, "gamma_away", arm="trained")
        part = self.part(
            evidence,
            away,
            scale="value",
            margin=0.1,
            claim="In practice gamma and beta do not become the original deviation and mean.",
            endpoint="Median of |gamma - sigma| / sigma over channels after training",
            reason=f"The median distance is {typical(away)}, of beta "
            f"{typical(_seen(evidence, 'beta_away', arm='trained'))} sigma from the mean; from its start at 1 gamma "
            f"has moved by {typical(_seen(evidence, 'gamma_moved', arm='trained'))}.",
        )
        if part.outcome is Outcome.SUPPORTED and part.effect.point <= 0.2:
            part = replace(part, outcome=Outcome.INCONCLUSIVE, reason=f"{part.reason} That is not above 0.2.")
        return part

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the difference from the identity by batch size."""
        batches = evidence.settings["batches"]
        measured = [
            {"m": float(m), "seed": seed, "value": value, "data": kind}
            for kind in KINDS
            for m in batches
            for seed, value in zip(evidence.seeds, _seen(evidence, "error_times_m", arm=kind, m=m), strict=True)
        ]
        lines = [{"m": float(m), "value": _expected(kind), "data": kind} for kind in KINDS for m in batches]
        return [
            versus_theory(
                pl.DataFrame(measured),
                pl.DataFrame(lines),
                x="m",
                by="data",
                slug="by-batch",
                title="Difference from the identity in training, times the batch size",
                x_title="Batch size m",
                y_title="m times mean squared difference over variance",
                log_x=True,
                caption="Lines are 1 + (rho + 2)/4, rho the excess kurtosis of the data.",
            )
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate against theory."""
        judged = evidence.settings["judged"]
        rows = []
        for kind in KINDS:
            found = float(np.nanmean(_seen(evidence, "error_times_m", arm=kind, m=judged)))
            expected = _expected(kind)
            rows.append((f"m times error, {kind}", f"{found:.4f}", f"{expected:.4f}", f"{found / expected:.4f}"))
        return [Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(rows), f"m = {judged}.")]


def _expected(kind: str) -> float:
    return 1 + (KINDS[kind] + 2) / 4


def _seen(evidence: Evidence, name: str, **where: Any) -> np.ndarray:
    return evidence.last(name, probe="identity", **where)


def _draw(kind: str, count: int, stream: torch.Generator) -> Tensor:
    """Draw from a distribution of mean 0 and variance 1, float64."""
    u = torch.rand(count, generator=stream, dtype=torch.float64)
    if kind == "normal":
        return torch.randn(count, generator=stream, dtype=torch.float64)
    if kind == "uniform":
        return (u - 0.5) * math.sqrt(12)
    return -torch.sign(u - 0.5) * torch.log1p(-2 * (u - 0.5).abs()) / math.sqrt(2)


def _identity(cell: Cell) -> Iterator[Record]:
    record, m, draws = recorder(cell, "identity"), int(cell.point["m"]), int(cell.settings["draws"])
    stream = generator(cell.seed, f"identity:{cell.arm}")
    mean, sigma, eps = 0.7, 1.8, 1e-5
    x = mean + sigma * _draw(cell.arm, m * draws, stream).reshape(m, draws)  # a channel a batch
    layer: Any = layers.BatchNorm1d(draws, eps=eps, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(math.sqrt(sigma**2 + eps))
        layer.bias.fill_(mean)
        error = float((layer(x) - x).square().mean()) / sigma**2
        yield record("nonlinear_train", _nonlinear(layer, x, _draw(cell.arm, m * draws, stream).reshape(m, draws)))
        layer.running_mean.fill_(mean)
        layer.running_var.fill_(sigma**2)
        layer.eval()
        yield record("nonlinear_eval", _nonlinear(layer, x, _draw(cell.arm, m * draws, stream).reshape(m, draws)))
        single = layer.eval().float()
        yield record("eval_error", float((single(x.float()) - x.float()).abs().max()) / sigma)
    yield record("error_times_m", m * error)


def _nonlinear(layer: nn.Module, x: Tensor, more: Tensor) -> float:
    """Return how far a layer is from additive but for an offset: 0 for a linear transformation and an offset."""
    y = float(x.std()) * more
    offset = layer(torch.zeros_like(x))
    together = layer(x + y) - offset
    return float((layer(x) + layer(y) - 2 * offset - together).norm() / together.norm())


def _batch_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _away(model: nn.Module) -> float:
    found = [((m.weight - m.running_var.sqrt()) / m.running_var.sqrt()).detach().abs() for m in _batch_norms(model)]
    return float(torch.cat(found).median())


def _shift_away(model: nn.Module) -> float:
    found = [((m.bias - m.running_mean) / m.running_var.sqrt()).detach().abs() for m in _batch_norms(model)]
    return float(torch.cat(found).median())


def _trained(cell: Cell, data: "Dataset", device: str) -> Iterator[Record]:
    record, steps = recorder(cell, "identity"), int(cell.settings["steps"])
    model = network(cell, data, norms.batch(), device)
    yield from fit(model, split_of(cell, data, device), cell)
    yield record("gamma_away", _away(model), steps)
    yield record("beta_away", _shift_away(model), steps)
    yield record("gamma_moved", torch.cat([(m.weight - 1).detach().abs() for m in _batch_norms(model)]).median(), steps)


def _inserted(cell: Cell, data: "Dataset", device: str) -> Iterator[Record]:
    """Train without batch norm, put it in at the identity, and go on training."""
    record, steps = recorder(cell, "identity"), int(cell.settings["steps"])
    split = split_of(cell, data, device)
    model: Any = network(cell, data, norms.none(), device)
    yield from fit(model, split, cell)
    with torch.no_grad():
        before = float(nn.functional.cross_entropy(model(split.x_test), split.y_test))
        seen: dict[nn.Module, Tensor] = {}
        handles = [
            block.linear.register_forward_hook(lambda module, _inputs, out: seen.__setitem__(module, out.detach()))
            for block in model.blocks
        ]
        model(split.x_train)
        for handle in handles:
            handle.remove()
        for block in model.blocks:
            out = seen[block.linear]
            kind = layers.BatchNorm2d if out.ndim == 4 else layers.BatchNorm1d
            block.norm = kind(out.shape[1]).to(device)
            variance, mean = torch.var_mean(out.transpose(0, 1).flatten(1), 1, correction=0)
            block.norm.running_mean.copy_(mean)
            block.norm.running_var.copy_(variance)
            block.norm.weight.copy_((variance + block.norm.eps).sqrt())
            block.norm.bias.copy_(mean)
        model.eval()
        after = float(nn.functional.cross_entropy(model(split.x_test), split.y_test))
        yield record("loss_change", abs(after - before) / max(before, 1e-12))
    model.train()
    start = [m.weight.detach().clone() for m in _batch_norms(model)]
    fit(model, split, cell, steps=max(1, steps // 3))
    moved = [
        ((m.weight - at).abs() / at.abs().clamp(min=1e-6)).detach()
        for m, at in zip(_batch_norms(model), start, strict=True)
    ]
    yield record("gamma_away", torch.cat(moved).median(), steps)
