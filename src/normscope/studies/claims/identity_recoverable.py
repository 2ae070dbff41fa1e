"""Can batch norm be the identity, and does it become it?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from normscope import layers
from normscope.plots import Figure, Table, versus_theory
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, Quantity, last, presets
from normscope.studies.case_question import IDENTITY
from normscope.studies.figures import theory_table
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, recorder, split_of
from normscope.studies.lab.data import Dataset
from normscope.studies.lab.streams import generator

#: Excess kurtosis of what is normalized.
KINDS = {"normal": 0.0, "uniform": -1.2, "laplace": 3.0}
#: The difference from the identity in train mode.
ERROR = last("error_times_m", "difference from the identity times m", probe="identity")


class IdentityRecoverable(AbstractStudy):
    r"""With gamma and beta at the data's standard deviation and mean, batch norm is the identity.

    ## Claim
    With $\gamma = \sqrt{Var[x]}$ and $\beta = E[x]$ batch norm is the identity, so nothing is lost in
    expressiveness; in practice gamma and beta do not go there (questions "What is the effect of batch normalization on
    the gradient?" and "How does the batch normalization layer work?"; Ioffe & Szegedy 2015, section 3; Santurkar et al.
    2018, observation 4.3).

    ## Method
    On normal, uniform and Laplace data of known mean and variance. Over the population (eval mode), the largest
    difference from the identity over sigma, in float32: an identity, exact below 1e-6. In training the statistics are
    those of a batch of m examples, and that is a claim of its own: the root mean square difference from the identity
    over sigma. Theory: $1 + (\rho+2)/4$ times $\sigma^2/m$ in mean square, rho the excess kurtosis, so 1.5
    for normal data; alike within 10 %. Is it a linear transformation (with an offset)? The norm of
    $f(x)+f(y)-f(0)-f(x+y)$ over that of $f(x+y)-f(0)$ for two batches, 0 in eval mode and
    $\sqrt 2 - 1$ in train mode, where f of a zero batch is beta. In trained networks: the median over channels of
    $|\gamma-\sigma|/\sigma$ and of beta's distance from the mean; they stay away if it is above 0.2. Batch norm
    at the identity is put into a network trained without it, and training goes on.

    ## Prediction
    Exact over the population; false in training: noise of 1.5 sigma^2/m is left, a regulariser that gamma and beta
    cannot switch off. Trained gammas stay near 1.

    ## Threats
    Torch normalizes by the biased and stores the unbiased variance: a factor $\sqrt{(m-1)/m}$ more between the
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
    CLAIM = "With gamma and beta at the deviation and mean of the population, batch norm is the identity."
    ON_A_CASE = IDENTITY
    ENDPOINT = "Largest difference from the identity over sigma, population statistics, float32"
    MARGIN = 0.2
    MARGIN_REASON = "within a fifth, gamma and beta nearly give back what was taken"
    VERSION = 2
    ARMS = {
        **{kind: f"{kind} data" for kind in KINDS},
        "trained": "trained network",
        "inserted": "batch norm put in later",
    }
    CONDITIONS = {"m": "batches of {}"}
    PRESETS = presets(
        quick={
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
        full={
            "network": {"name": "vgg-a"},
            "batches": [4, 8, 16, 32, 64, 128, 256],
            "draws": 4000,
            "batch": 128,
            "steps": 15000,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the kinds of data at every batch size, a trained network, and one that gets batch norm late."""
        for batch in settings["batches"]:
            for kind in KINDS:
                yield kind, {"m": batch}
        yield "trained", {"m": 0}
        yield "inserted", {"m": 0}

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Measure the transformation of a kind of data, or a network."""
        if cell.arm in KINDS:
            return _identity(cell)
        return (_trained if cell.arm == "trained" else _inserted)(cell, data, device)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the population; training, linearity and trained networks are claims of their own."""
        at = {"m": evidence.settings["judged"]}
        error = ERROR.text(evidence, arm="normal", **at)
        moved = last("gamma_away", probe="identity").text(evidence, arm="inserted")
        yield Contrast(
            Quantity("largest difference from the identity over sigma, population statistics, float32", _largest_error),
            exact_within=1e-6,
            name="population",
            says=f"over the population it is ({{effect}} of sigma); in training a difference of {error} sigma^2/m is "
            "left in mean square, m the batch size",
        )
        yield Contrast(
            Quantity("root mean square difference from the identity over sigma, in training", _in_training),
            "normal",
            at=at,
            exact_within=1e-6,
            unit="%",
            name="training",
            claim="In training, too, batch norm with the right gamma and beta is the identity.",
            says=f"a difference of {error} sigma^2/m is left in mean square ({{effect}} of sigma)",
            reason=f"The difference is {error} sigma^2/m in training (theory 1.5 for normal data). Put into a trained "
            f"network at the identity, gamma then moves away by {moved}.",
        )
        for kind in KINDS:
            yield Contrast(
                ERROR,
                kind,
                _expected(kind),
                at=at,
                scale="log-ratio",
                equal_within=math.log(1.1),
                margin_reason="theory leaves out terms of order 1/m^2",
                name=f"theory, {kind}",
                claim="The difference in training is that of theory.",
                endpoint=f"Difference from the identity times m, over theory, {kind} data",
                labels=("", "in theory"),
                says=f"the difference times m is {{effect}} the {_expected(kind):g} of theory",
            )
        yield from self._linearity(at)
        for name, words in {"gamma_away": "gamma", "beta_away": "beta"}.items():
            measured = last(name, f"median distance of {words} over sigma after training", probe="identity")
            yield Contrast(
                measured,
                "trained",
                scale="value",
                conditions={"parameter": words},
                unit="%",
                name=f"trained {words}",
                claim="In practice gamma and beta stay away from the original deviation and mean.",
                says=f"after training {words} is {{effect}} of sigma away",
            )
        yield Contrast(
            last("loss_change", "relative change of the loss in eval mode", probe="identity"),
            "inserted",
            exact_within=1e-4,
            name="put in",
            claim="Batch norm put in at the identity leaves the evaluation of a trained network as it is.",
        )

    def _linearity(self, at: Mapping[str, Any]) -> Iterator[Contrast]:
        """Yield whether batch norm is linear, over the population and in training."""
        yield Contrast(
            last("nonlinear_eval", "relative error of adding two inputs, eval mode", probe="identity"),
            "normal",
            at=at,
            exact_within=1e-10,
            name="linear in evaluation",
            claim="In eval mode batch norm is a linear transformation with an offset.",
        )
        yield Contrast(
            last("nonlinear_train", "relative error of adding two batches, train mode", probe="identity"),
            "normal",
            at=at,
            scale="value",
            unit="%",
            margin=0.1,
            margin_reason="an error of a tenth could be called almost linear",
            name="nonlinear in training",
            claim="In train mode batch norm is a nonlinear transformation of its batch.",
            says=f"adding two batches after the layer instead of before it is off by {{effect}} (theory "
            f"{100 * (math.sqrt(2) - 1):.1f} %)",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the difference from the identity by batch size."""
        batches = evidence.settings["batches"]
        lines = [{"m": float(m), "value": _expected(kind), "arm": kind} for kind in KINDS for m in batches]
        return [
            versus_theory(
                evidence.select(probe="identity", name="error_times_m"),
                pl.DataFrame(lines),
                x="m",
                by="arm",
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
        m = evidence.settings["judged"]
        rows = [(f"m times error, {kind}", ERROR(evidence, arm=kind, m=m), _expected(kind)) for kind in KINDS]
        return [theory_table(rows, f"m = {m}.")]


def _in_training(evidence: Evidence, **where: Any) -> np.ndarray:
    """Return the root mean square difference from the identity over sigma."""
    return np.sqrt(ERROR(evidence, **where) / where["m"])


def _largest_error(evidence: Evidence, **where: Any) -> np.ndarray:
    """Return the largest error in eval mode over the kinds of data and the batch sizes."""
    frame = evidence.select(probe="identity", name="eval_error", **where)
    return evidence.per_seed(frame, pl.col("value").max())


def _expected(kind: str) -> float:
    return 1 + (KINDS[kind] + 2) / 4


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


def _median(values: Iterable[Tensor]) -> Tensor:
    """Return the median absolute value over all channels."""
    return torch.cat([value.detach().abs() for value in values]).median()


def _trained(cell: Cell, data: Dataset, device: str) -> Iterator[Record]:
    record, steps = recorder(cell, "identity"), int(cell.settings["steps"])
    model = network(cell, data, norms.batch(), device)
    yield from fit(model, split_of(cell, data, device), cell)
    trained = [(m, m.running_var.sqrt()) for m in _batch_norms(model)]
    yield record("gamma_away", _median((m.weight - sigma) / sigma for m, sigma in trained), steps)
    yield record("beta_away", _median((m.bias - m.running_mean) / sigma for m, sigma in trained), steps)
    yield record("gamma_moved", _median(m.weight - 1 for m, _ in trained), steps)


def _inserted(cell: Cell, data: Dataset, device: str) -> Iterator[Record]:
    """Train without batch norm, put it in at the identity, and go on training."""
    record, steps = recorder(cell, "identity"), int(cell.settings["steps"])
    split = split_of(cell, data, device)
    model: Any = network(cell, data, norms.none(), device)
    yield from fit(model, split, cell)
    with torch.no_grad():
        before = float(nn.functional.cross_entropy(model(split.x_test), split.y_test))
        outputs: dict[nn.Module, Tensor] = {}
        handles = [
            block.linear.register_forward_hook(lambda module, _inputs, out: outputs.__setitem__(module, out.detach()))
            for block in model.blocks
        ]
        model(split.x_train)
        for handle in handles:
            handle.remove()
        for block in model.blocks:
            out = outputs[block.linear]
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
    moved = zip(_batch_norms(model), start, strict=True)
    yield record("gamma_away", _median((m.weight - at) / at.abs().clamp(min=1e-6) for m, at in moved), steps)
