"""Does gamma lift gradients that vanish?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import ends_table, loss_figure, reached
from normscope.studies.judging import conjunction, exact
from normscope.studies.lab import norms
from normscope.studies.lab.arms import batch_norm, network, recorder
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

ARMS = {
    "learnt": "gamma learnt",
    "fixed": "gamma fixed at 1",
    "from 2": "gamma learnt from 2",
    "none": "no batch norm",
}
FACTORS = (0.25, 0.5, 2.0, 4.0)


class GammaCuresVanishing(AbstractTraining):
    r"""Gamma scales gradients up, and so cures vanishing gradients.

    ## Claim
    Gamma rescales the gradient upward, so batch norm cures vanishing gradients through a learnable parameter; this
    multiplicative factor is why training with it is fast (note on batch norm, section 2).

    ## Method
    Networks of ten hidden layers of 64, with rectifiers, tanh, and (where gradients really vanish) sigmoid with small
    weights. Primary, for rectifiers: steps to 90 % training accuracy with gamma fixed at 1 over those with gamma
    learnt (above 1.2 times for support, below 1.1 for refutation) and the mean learnt gamma (above 1, not above 1):
    supported if both are, refuted if one is. Parts: each of the two by itself; scaling gamma and beta of one inner
    layer together changes the first layer's gradient not at all (rectifiers, exact, float64); the sum of gamma times
    its gradient and beta times its own over a layer's channels is zero there; what tanh makes of it; and in the
    sigmoid network the gain of normalization without gamma against the gain of gamma.

    ## Prediction
    Refuted. With a rectifier and a linear layer after it the next batch norm takes any scale out again. Learnt gammas
    end below 1 more often than above. What cures vanishing in sigmoid networks is one over sigma.

    ## Threats
    Steps to a target depend on the learning rate, which is the same in all arms here. The last hidden layer feeds
    logits that are not normalized: there gamma does act.
    """

    CODE = "gamma-cures-vanishing"
    CARD = 8
    TOPIC = "affine"
    SOURCES = ("Note on batch norm (2020), section 2", "Yang et al. 2019 (arXiv:1902.08129), figure 4a")
    CLAIM = "Learning gamma makes training fast, by scaling gradients up."
    ENDPOINT = "Steps to 90 % with gamma fixed at 1 over gamma learnt, and the learnt gamma less 1, rectifiers"
    MARGIN = math.log(1.2)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 10, "width": 64},
            "activations": ["relu", "tanh", "sigmoid"],
            "batch": 64,
            "lr": 0.1,
            "steps": 150,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "activations": ["relu"],
            "batch": 128,
            "lr": 0.1,
            "steps": 15000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm with every activation."""
        for activation in settings["activations"]:
            for arm in ARMS:
                yield arm, {"activation": activation}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm."""
        return network(cell, data, _FACTORIES[cell.arm], device, **_options(cell))

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Measure sensitivities at the start (once an activation), and train."""
        if cell.arm == "learnt":
            yield from _sensitivity(cell, data, self.split(cell, data, device), device, _options(cell))
        yield from super().run_cell(cell, data, device)

    def run_cells(self, cells: Sequence[Cell], data: "Dataset", device: str) -> Iterable[tuple[Cell, list[Record]]]:
        """Measure sensitivities of each seed, and train all at once."""
        for cell, records in super().run_cells(cells, data, device):
            early: Iterable[Record] = ()
            if cell.arm == "learnt":
                early = _sensitivity(cell, data, self.split(cell, data, device), device, _options(cell))
            yield cell, [*early, *records]

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Read the gains."""
        gains = [m.weight.detach().mean() for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if gains:
            yield recorder(cell, "gamma")("mean", torch.stack(gains).mean(), int(cell.settings["steps"]))

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge speed and learnt gamma with rectifiers together; invariance and other activations are parts too."""
        first = evidence.settings["activations"][0]
        gamma = evidence.last("mean", probe="gamma", arm="learnt", activation=first)
        above = self.part(
            evidence,
            gamma - 1,
            margin=0.0,
            claim="Learnt gammas are above 1.",
            endpoint="Mean gamma at the end less 1",
            reason=f"The mean gamma less 1 ends at {typical(gamma - 1)}.",
        )
        both = [self._slower(evidence, first), above]
        outcome, p, decisive = conjunction(both, 1 - evidence.level)
        parts = [*both]
        if first == "relu":
            for name, claim in (
                ("invariance", "Scaling an inner layer's gamma and beta changes no gradient of the first layer."),
                (
                    "euler",
                    "Over an inner layer's channels gamma times its gradient and beta times its own add to zero.",
                ),
            ):
                values = evidence.per_seed(evidence.select(probe="gamma", name=name, activation="relu"))
                parts.append(exact(self, evidence, values, 1e-9, claim=claim, endpoint="Relative error"))
        for activation in evidence.settings["activations"][1:]:
            parts.append(self._slower(evidence, activation))
            parts.append(self._normalization(evidence, activation))
        return self.verdict(
            outcome,
            decisive.effect,
            endpoint=f"{self.ENDPOINT}; decided by: {decisive.endpoint[0].lower()}{decisive.endpoint[1:]}",
            margin=decisive.margin,
            reason=" ".join(part.reason for part in both),
            p_value=p,
            primary=True,
            parts=parts,
        )

    def _steps(self, evidence: Evidence, arm: str, activation: str) -> tuple[np.ndarray, int]:
        return reached(evidence, arm, 0.9, activation=activation)

    def _slower(self, evidence: Evidence, activation: str) -> Verdict:
        fixed, missed = self._steps(evidence, "fixed", activation)
        learnt, _ = self._steps(evidence, "learnt", activation)
        return self.part(
            evidence,
            np.log(fixed) - np.log(learnt),
            scale="log-ratio",
            refuted_below=math.log(1.1),
            endpoint=f"Steps to 90 % training accuracy with gamma fixed over learnt, {activation}",
            reason=f"{typical(fixed)} steps with gamma fixed, {typical(learnt)} with gamma learnt"
            + (f" ({missed} of {len(fixed)} runs never get there)." if missed else "."),
        )

    def _normalization(self, evidence: Evidence, activation: str) -> Verdict:
        none, missed = self._steps(evidence, "none", activation)
        fixed, _ = self._steps(evidence, "fixed", activation)
        return self.part(
            evidence,
            np.log(none) - np.log(fixed),
            scale="log-ratio",
            claim=f"With {activation} normalization without gamma already makes training faster.",
            endpoint=f"Steps to 90 % without batch norm over with gamma fixed, {activation}",
            reason=f"{typical(none)} steps without, {typical(fixed)} with gamma fixed at 1; {missed} of {len(none)} "
            "runs without batch norm never get there.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss of each activation, and the sensitivity to gamma."""
        found = [
            loss_figure(evidence, ARMS, f"Training loss, {activation}", f"loss-{activation}", activation=activation)
            for activation in dict.fromkeys([evidence.settings["activations"][0], evidence.settings["activations"][-1]])
        ]
        found.append(
            curves(
                evidence.select(probe="gamma", name="sensitivity"),
                y="sensitivity",
                x="step",
                by="activation",
                slug="sensitivity",
                title="First layer's gradient when an inner layer's gamma is scaled",
                x_title="Factor on gamma and beta, in percent",
                y_title="Gradient over that at factor 1",
                log=True,
                log_x=True,
                caption="With rectifiers the next batch norm takes any factor out: 1 at every one.",
            )
        )
        return found

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end with each activation."""
        first = evidence.settings["activations"][0]
        rows = tuple(
            (activation, words, *(typical(self._steps(evidence, arm, activation)[0]),),
             typical(evidence.last("mean", probe="gamma", arm=arm, activation=activation)))
            for activation in evidence.settings["activations"]
            for arm, words in ARMS.items()
        )  # fmt: skip
        columns = ("Activation", "Arm", "Steps to 90 %", "Mean gamma at the end")
        return [Table("Steps and gammas", columns, rows), ends_table(evidence, ARMS, activation=first)]


_FACTORIES = {
    "learnt": batch_norm(),
    "fixed": batch_norm(learn_gain=False),
    "from 2": batch_norm(gain=2.0),
    "none": norms.none(),
}


def _options(cell: Cell) -> dict[str, Any]:
    """Return a network's activation and, for dense ones, the spread of its weights."""
    activation = str(cell.point["activation"])
    # Small weights and a sigmoid: the setting in which gradients vanish from layer to layer.
    options: dict[str, Any] = {"activation": activation}
    if cell.settings["network"]["name"] == "mlp":
        options["gain"] = {"sigmoid": 1.0, "tanh": 1.0}.get(activation, 2.0)
    return options


def _sensitivity(
    cell: Cell, data: "Dataset", split: "Split", device: str, options: Mapping[str, Any]
) -> Iterator[Record]:
    """Scale gamma and beta of one inner layer, in float64, and look at the first layer's gradient."""
    record = recorder(cell, "gamma")
    model = network(cell, data, batch_norm(eps=1e-30, dtype=torch.float64), device, **options).double()
    x, y = split.x_train[:128].double(), split.y_train[:128]
    layers: list[Any] = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    stream = torch.Generator().manual_seed(cell.seed)
    with torch.no_grad():
        for layer in layers:  # away from 1 and 0, where some terms vanish by themselves
            layer.weight.uniform_(0.5, 1.5, generator=stream)
            layer.bias.uniform_(-0.5, 0.5, generator=stream)
    inner = layers[len(layers) // 2]
    first = next(parameter for name, parameter in model.named_parameters() if "linear.weight" in name)

    def gradient() -> list[torch.Tensor]:
        return list(torch.autograd.grad(cross_entropy(model(x), y), [first, inner.weight, inner.bias]))

    base, gamma, beta = gradient()
    terms = inner.weight.detach() * gamma + inner.bias.detach() * beta
    yield record("euler", terms.sum().abs() / terms.abs().sum())
    worst, at = 0.0, (inner.weight.detach().clone(), inner.bias.detach().clone())
    for factor in FACTORS:
        with torch.no_grad():
            inner.weight.copy_(factor * at[0])
            inner.bias.copy_(factor * at[1])
        moved = gradient()[0]
        worst = max(worst, float((moved - base).norm() / base.norm()))
        yield record("sensitivity", moved.norm() / base.norm(), step=round(100 * factor))
    yield record("invariance", worst)
