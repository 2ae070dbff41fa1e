"""Does gamma lift gradients that vanish?"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, last, mean, presets, steps_to
from normscope.studies.case_question import CaseQuestion
from normscope.studies.figures import ends_table
from normscope.studies.lab import norms
from normscope.studies.lab.arms import batch_norm, recorder

if TYPE_CHECKING:
    from normscope.studies.lab.data import Split

FACTORS = (0.25, 0.5, 2.0, 4.0)
GAMMA = last("mean", "mean gamma at the end", probe="gamma")
IDENTITIES = {
    "invariance": "Scaling an inner layer's gamma and beta changes no gradient of the first layer.",
    "euler": "Over an inner layer's channels gamma times its gradient and beta times its own add to zero.",
}


class GammaCuresVanishing(AbstractTraining):
    r"""Gamma scales gradients up, and so cures vanishing gradients.

    ## Claim
    Gamma rescales the gradient upward, so batch norm cures vanishing gradients through a learnable parameter; this
    multiplicative factor is why training with it is fast (note on batch norm, section 2).

    ## Method
    Networks of ten hidden layers of 64, with rectifiers, tanh, and (where gradients really vanish) sigmoid with small
    weights. The headline, for rectifiers: steps until training accuracy has come 90 % of the way from chance to the
    best arm's plateau, with gamma fixed at 1 over those with gamma learnt (1.2 times matters). A pair of runs of which
    neither gets there gives no number, and where one side misses the target the effect is only a bound. Also tried:
    tanh and sigmoid. Claims of their own: the mean learnt gamma is above 1 by .05 or more; scaling gamma and beta of
    one inner layer together changes the first layer's gradient not at all (rectifiers, exact, float64); the sum of
    gamma times its gradient and beta times its own over a layer's channels is zero there; normalization without gamma
    already makes training faster.

    ## Prediction
    Gamma makes no difference. With a rectifier and a linear layer after it the next batch norm takes any scale out
    again. Learnt gammas stay near 1. What cures vanishing in sigmoid networks is one over sigma.

    ## Threats
    Steps to a target depend on the learning rate, which is the same in all arms here. The last hidden layer feeds
    logits that are not normalized: there gamma does act.
    """

    CODE = "gamma-cures-vanishing"
    CARD = 8
    TOPIC = "affine"
    SOURCES = ("Note on batch norm (2020), section 2", "Yang et al. 2019 (arXiv:1902.08129), figure 4a")
    CLAIM = "Learning gamma makes training faster."
    ON_A_CASE = CaseQuestion("speed", ("own", "fixed-affine"), differs="gains and shifts learn or stay together")
    ENDPOINT = "Steps to 90 % of the way to the best accuracy, gamma fixed at 1 over gamma learnt, rectifiers"
    MARGIN = math.log(1.2)
    MARGIN_REASON = "a sixth of the steps is about what two seeds differ by"
    ARMS = {
        "learnt": Arm("gamma learnt", batch_norm()),
        "fixed": Arm("gamma fixed at 1", batch_norm(learn_gain=False)),
        "from 2": Arm("gamma learnt from 2", batch_norm(gain=2.0)),
        "none": Arm("no batch norm", norms.none()),
    }
    POINTS = {"activation": "activations"}
    CONDITIONS = {"activation": "{} activations"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 10, "width": 64},
            "activations": ["relu", "tanh", "sigmoid"],
            "batch": 64,
            "lr": 0.1,
            "steps": 150,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "activations": ["relu"], "batch": 128, "steps": 15000},
    )

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the activation and, for dense networks, the spread of the weights."""
        activation = str(cell.point["activation"])
        if cell.settings["network"]["name"] != "mlp":
            return {"activation": activation}
        # Small weights and a sigmoid: the setting in which gradients vanish from layer to layer.
        return {"activation": activation, "gain": {"sigmoid": 1.0, "tanh": 1.0}.get(activation, 2.0)}

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Measure sensitivities, once an activation."""
        return _sensitivity(cell, model, split) if cell.arm == "learnt" else ()

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Read the gains."""
        gains = [m.weight.detach().mean() for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if gains:
            yield recorder(cell, "gamma")("mean", torch.stack(gains).mean(), int(cell.settings["steps"]))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield speed with gamma fixed and learnt; the learnt gamma, invariance and normalization alone."""
        first, *others = evidence.settings["activations"]
        for activation in (first, *others):
            yield Contrast(
                steps_to(0.9),
                "fixed",
                "learnt",
                at={"activation": activation},
                scale="log-ratio",
                name=activation,
                says="training takes {effect} steps with gamma learnt than with gamma fixed at 1",
                comparative=("fewer", "more"),
            )
        for activation in (first, *others):
            yield Contrast(
                GAMMA,
                "learnt",
                1.0,
                at={"activation": activation},
                labels=("", "its start"),
                margin=0.05,
                margin_reason="ten layers of gamma 1.05 scale a gradient by 1.6 at most",
                name=f"gamma, {activation}",
                claim="Learnt gammas end above 1, where they scale gradients up.",
                says="the mean gamma moves by {effect} from its start at 1",
            )
        if first == "relu":
            for name, claim in IDENTITIES.items():
                yield Contrast(
                    mean(name, "relative error", probe="gamma"),
                    at={"activation": first},
                    exact_within=1e-9,
                    name=name,
                    claim=claim,
                )
        for activation in others:
            yield Contrast(
                steps_to(0.9),
                "none",
                "fixed",
                at={"activation": activation},
                scale="log-ratio",
                name=f"without gamma, {activation}",
                claim="Normalization without gamma already makes training faster.",
                says="training takes {effect} steps with batch norm whose gamma is fixed at 1 than without batch norm",
                comparative=("fewer", "more"),
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss of each activation, and the sensitivity to gamma."""
        activations = evidence.settings["activations"]
        return [
            *(
                self.curves(evidence, "loss", at={"activation": activation})
                for activation in dict.fromkeys([activations[0], activations[-1]])
            ),
            self.curves(
                evidence,
                "sensitivity",
                probe="gamma",
                x="step",
                by="activation",
                arms=None,
                labels=None,
                slug="sensitivity",
                title="First layer's gradient when an inner layer's gamma is scaled",
                x_title="Factor on gamma and beta, in percent",
                y_title="Gradient over that at factor 1",
                log=True,
                log_x=True,
                caption="With rectifiers the next batch norm takes any factor out: 1 at every one.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end with each activation."""
        activations = evidence.settings["activations"]
        return [
            self.grid_table(
                [steps_to(0.9), GAMMA],
                evidence,
                rows={"activation": activations, "arm": list(self.ARMS)},
                title="Steps and gammas",
            ),
            ends_table(evidence, self.wording.arms, activation=activations[0]),
        ]


def _sensitivity(cell: Cell, model: nn.Module, split: "Split") -> Iterator[Record]:
    """Scale gamma and beta of one inner layer, in float64, and look at the first layer's gradient."""
    record, model = recorder(cell, "gamma"), copy.deepcopy(model).double()
    x, y = split.x_train[:128].double(), split.y_train[:128]
    layers: list[Any] = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    stream = torch.Generator().manual_seed(cell.seed)
    with torch.no_grad():
        for layer in layers:  # away from 1 and 0, where some terms vanish by themselves
            layer.eps = 1e-30
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
