"""Does batch norm lead to flatter minima, once flatness is measured so that rescaling weights does not change it?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import nn
from torch.nn.functional import cross_entropy

from normscope.plots import Figure, Table
from normscope.probes import Recorder
from normscope.probes.curvature import Curvature
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Arm, Contrast, Evidence, Quantity, last, presets
from normscope.studies.case_question import CaseQuestion
from normscope.studies.lab import norms
from normscope.studies.lab.arms import batch_norm, network, recorder, split_of
from normscope.studies.lab.data import Dataset, Split
from normscope.studies.lab.evaluate import accuracy, population_statistics
from normscope.studies.lab.train import batch_indices, loss_fn

#: Measures of sharpness, by the name of the record; the first is primary.
MEASURES = {
    "layer_sharpness@train": "layer-normalized sharpness, batch statistics",
    "layer_sharpness@frozen": "layer-normalized sharpness, fixed statistics",
    "adaptive_sharpness@train": "adaptive sharpness, batch statistics",
    "top_eigenvalue@train": "top eigenvalue, batch statistics",
    "trace@train": "trace, batch statistics",
}


class FlatMinima(AbstractStudy):
    r"""Batch norm leads to flatter minima.

    ## Claim
    Batch norm pushes the optimization toward flat minima and hence generalizes better (review of Santurkar et al.;
    there, section 6, it is a speculation). That flatter minima generalize better is a claim of its own.

    ## Method
    Three hidden layers of 100, learning rates .03, .1 and .3, weight decay 0 and 5e-4, each trained until the loss over
    a fixed 512 training images is at most .05: equal loss, equal learning rate. Then, on these images, the measure of
    the headline: the largest eigenvalue of each layer's Hessian block times the layer's squared norm, at its largest
    over the layers, which no rescaling of weights before a norm changes. The sources name no measure and no rate; the
    headline takes the middle rate and no weight decay. Also tried: the other rates, weight decay, fixed statistics in
    place of the batch's, adaptive sharpness, and the raw eigenvalue and trace. Claims of their own: sharper minima
    generalize worse (Kendall's correlation of sharpness with test error over all runs of a seed, above .3); and the
    exact law that weights before norms times 10 divide the raw eigenvalue by up to 100 and change no output, so that
    raw flatness means nothing.

    ## Prediction
    Raw flatness differs a lot and means nothing; the scale-free one follows the learning rate, with a small or
    undecided effect of batch norm.

    ## Threats
    Equal loss is reached after different numbers of steps. Three learning rates; the smallest networks. Sharpness at
    a loss of .05 is not that at interpolation. What other authors found is from their abstracts.
    """

    CODE = "flat-minima"
    CARD = 17
    TOPIC = "landscape"
    SOURCES = (
        "Article on batch norm, what does it do then",
        "Santurkar et al. 2018 (arXiv:1805.11604), section 6",
        "Bjorck et al. 2018 (arXiv:1806.02375), section 2",
        "Dinh et al. 2017 (arXiv:1703.04933)",
    )
    CLAIM = "Batch norm leads to flatter minima."
    ON_A_CASE = CaseQuestion("flatness", differs="the largest eigenvalue of the Hessian decides")
    ENDPOINT = "Layer-normalized sharpness at equal loss and learning rate, without batch norm over with"
    MARGIN = math.log(1.25)
    MARGIN_REASON = "a quarter of the sharpness is less than what the learning rates of the grid make"
    ARMS = {"none": Arm("no batch norm", norms.none()), "batch": Arm("batch norm", norms.batch())}
    POINTS = {"lr": "lrs", "decay": "decays"}
    CONDITIONS = {"decay": "weight decay {:g}"}
    VARIES = {"decay": "weight decay"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batch": 64,
            "lrs": [0.03, 0.1, 0.3],
            "decays": [0.0, 5e-4],
            "loss": 0.05,
            "probe": 512,
            "steps": 2000,
            "check": 10,
            "train": None,
            "test": None,
        },
        full={
            "network": {"name": "vgg-a", "width": 64},
            "batch": 128,
            "lrs": [0.01, 0.03, 0.1],
            "steps": 40000,
            "check": 50,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms at every learning rate and weight decay, and the law of rescaling."""
        yield from super().grid(settings)
        yield "law", {"lr": settings["lrs"][0], "decay": 0.0}

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Train one arm to the loss and measure how sharp it is there, or measure the law."""
        if cell.arm == "law":
            return _law(cell, data, device)
        return _to_loss(cell, network(cell, data, self.ARMS[cell.arm].norm, device), split_of(cell, data, device))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the scale-free sharpness at the middle rate; other rates and measures, correlation and law after it."""
        rates, decays = evidence.settings["lrs"], evidence.settings["decays"]
        primary, *others = MEASURES
        middle = rates[len(rates) // 2]
        yield self._flatter(primary, middle)
        for rate in rates:
            if rate != middle:
                yield self._flatter(primary, rate)
        if max(decays) > 0:
            yield self._flatter(primary, middle, max(decays))
        for name in others:
            yield self._flatter(name, middle)
        for arm, words in self.wording.arms.items():
            yield Contrast(
                Quantity("Kendall's correlation of sharpness and test error over runs", _correlation),
                arm,
                scale="value",
                margin=0.3,
                margin_reason="a weaker correlation of six runs cannot be told from none",
                claim="Sharper minima generalize worse.",
                name=f"correlation, {words}",
                endpoint=f"Kendall's correlation of sharpness and test error over runs, {words}",
                says="the correlation of sharpness with test error is {effect}",
            )
        yield Contrast(
            last("error", "largest relative error of outputs and of the curvature times a hundred", probe="law"),
            "law",
            exact_within=1e-6,
            claim="Weights before norms times ten divide the curvature there by a hundred and change no output.",
            name="rescaling",
            endpoint="Largest relative error of outputs and of the curvature times a hundred, float64",
            says="weights before norms times ten divide the curvature by a hundred: {effect}",
        )

    def _flatter(self, name: str, lr: float, decay: float = 0.0) -> Contrast:
        short = name.partition("@")[0].replace("_", "-") + (", fixed statistics" if "frozen" in name else "")
        return Contrast(
            _sharpness(name),
            "none",
            "batch",
            at={"lr": lr, "decay": decay},
            conditions={"measure": MEASURES[name]},
            scale="log-ratio",
            name=f"{short}, {lr:g}{', weight decay' if decay else ''}",
            says="sharpness is {effect} with batch norm",
            comparative=("smaller", "larger"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw sharpness by learning rate."""
        return [
            self.curves(
                evidence,
                name,
                probe="curvature",
                at={"site": "", "decay": 0.0},
                x="lr",
                slug=name.split("@")[0].replace("_", "-"),
                title=f"{MEASURES[name].capitalize()}, at equal training loss",
                x_title="Learning rate",
                y_title="Sharpness",
                log=True,
                log_x=True,
                caption="; ".join(
                    f"{words}: "
                    + ", ".join(
                        _sharpness(name).text(evidence, arm=arm, lr=lr, decay=0.0) for lr in evidence.settings["lrs"]
                    )
                    for arm, words in self.wording.arms.items()
                ),
            )
            for name in ("layer_sharpness@train", "top_eigenvalue@train")
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate all measures."""
        settings = evidence.settings
        return [
            self.grid_table(
                [
                    *(_sharpness(name) for name in MEASURES if "frozen" not in name),
                    last("steps", probe="minimum"),
                    last("test_accuracy", probe="minimum"),
                ],
                evidence,
                rows={"lr": settings["lrs"], "decay": settings["decays"], "arm": list(self.ARMS)},
                heads={"decay": "Weight decay"},
                title=f"At a training loss of at most {settings['loss']:g}",
                caption="Of sharpness geometric means over the seeds that reached the loss.",
            )
        ]


def _sharpness(name: str) -> Quantity:
    """Return the log of a measure; without a norm there is nothing to freeze, and both modes are one."""
    return Quantity(
        MEASURES[name],
        lambda evidence, arm, **point: np.log(
            _sharp(evidence, name.replace("frozen", "train") if arm == "none" else name, arm=arm, **point)
        ),
        logs=True,
    )


def _sharp(evidence: Evidence, name: str, **where: Any) -> np.ndarray:
    """Return a measure at the end per seed; NaN where the loss was not reached or the eigenvalue did not converge."""
    values = evidence.last(name, probe="curvature", site="", **where)
    ended = evidence.last("reached", probe="minimum", **where) > 0
    return np.where(ended & (values > 0), values, np.nan)


def _correlation(evidence: Evidence, arm: str) -> np.ndarray:
    """Return Kendall's correlation of sharpness and test error over the runs of a seed; NaN where errors are equal."""
    points = [(lr, decay) for lr in evidence.settings["lrs"] for decay in evidence.settings["decays"]]
    where = [{"arm": arm, "lr": lr, "decay": decay} for lr, decay in points]
    sharp = np.array([_sharp(evidence, "layer_sharpness@train", **point) for point in where])
    wrong = 1 - np.array([evidence.last("test_accuracy", probe="minimum", **point) for point in where])
    taus = np.full(len(evidence.seeds), np.nan)
    for index in range(len(taus)):
        keep = np.isfinite(sharp[:, index]) & np.isfinite(wrong[:, index])
        if keep.sum() > 2 and np.ptp(wrong[keep, index]) > 0:
            taus[index] = kendalltau(sharp[keep, index], wrong[keep, index]).statistic
    return taus


def _to_loss(cell: Cell, model: nn.Module, split: Split) -> Iterator[Record]:
    settings, record = cell.settings, recorder(cell, "minimum")
    optimizer = torch.optim.SGD(model.parameters(), lr=float(cell.point["lr"]), weight_decay=float(cell.point["decay"]))
    count, steps = int(settings["probe"]), int(settings["steps"])
    x, y = split.x_train[:count], split.y_train[:count]
    order = batch_indices(len(split.y_train), int(settings["batch"]), steps, cell.seed).to(y.device)
    reached = False
    for step in range(steps):
        if step % int(settings["check"]) == 0:
            with torch.no_grad():
                value = float(cross_entropy(model(x), y))
            if not math.isfinite(value):
                break
            if value <= float(settings["loss"]):
                reached = True
                break
        optimizer.zero_grad()
        loss_fn(model, (split.x_train[order[step]], split.y_train[order[step]])).backward()
        optimizer.step()
    yield record("reached", float(reached))
    if not reached:
        return
    yield record("steps", step)
    yield record("loss", value)
    with population_statistics(model, split.x_train), torch.no_grad():
        yield record("test_accuracy", accuracy(model(split.x_test), split.y_test))
    probe = Curvature(("eigenvalues", "trace", "layers", "adaptive"), modes=("train", "frozen"), seed=cell.seed)
    with Recorder(model, loss_fn, optimizer, probes=[probe], every=1, cell=cell.id) as scope:
        with scope.step((x, y)):
            optimizer.zero_grad()
            loss_fn(model, (x, y)).backward()
        yield from scope.drain()


def _law(cell: Cell, data: Dataset, device: str) -> Iterator[Record]:
    """Compare the curvature along a layer's gradient before and after its weights are multiplied by ten."""
    split = split_of(cell, data, device)
    model = network(cell, data, batch_norm(eps=1e-30, dtype=torch.float64), device).double()
    x, y = split.x_train[:64].double(), split.y_train[:64]
    weights = [p for name, p in model.named_parameters() if "linear.weight" in name]
    source = torch.Generator().manual_seed(cell.seed)
    directions = [torch.randn(w.shape, generator=source, dtype=torch.float64).to(w.device) for w in weights]

    def read() -> tuple[torch.Tensor, float]:
        out = model(x)
        gradient = torch.autograd.grad(cross_entropy(out, y), weights, create_graph=True)
        along = torch.stack([(g * d).sum() for g, d in zip(gradient, directions, strict=True)]).sum()
        product = torch.autograd.grad(along, weights)
        curved = math.fsum(float((h * d).sum()) for h, d in zip(product, directions, strict=True))
        return out.detach(), curved

    before, curved = read()
    with torch.no_grad():
        for weight in weights:
            weight.mul_(10)
    after, flatter = read()
    change = float((after - before).abs().max() / before.abs().max())
    yield recorder(cell, "law")("error", max(change, abs(100 * flatter / curved - 1)))
