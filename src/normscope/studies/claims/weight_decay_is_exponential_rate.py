"""Weight decay in front of a norm is a learning rate that grows exponentially."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope._errors import UsageError
from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, last, presets
from normscope.studies.case_question import IDENTITY
from normscope.studies.lab.arms import batch_norm, network, recorder, split_of
from normscope.studies.lab.data import Dataset
from normscope.studies.lab.train import batch_indices

#: An eps below rounding, which still keeps a unit without any variance from dividing by zero.
NO_EPS = 1e-30
#: How far outputs in float64 may part by rounding over some hundred steps.
ROUNDING = 1e-8
_WORDS = "difference of the outputs of both runs, as a share of them"
APART = last("apart", _WORDS, probe="twins")
#: Some runs part a thousand times as far as others, so the typical one is the geometric mean.
TYPICAL = last("apart", _WORDS, probe="twins", logs=True)


class WeightDecayIsExponentialRate(AbstractStudy):
    r"""In front of a norm, weight decay and a constant rate equal no decay and an exponentially growing rate.

    ## Claim
    "A rigorous proof that it is equivalent to the standard setting of BN + SGD + Standard Rate Tuning + Weight Decay +
    Momentum" (Li & Arora 2019, abstract, of a rate that grows exponentially): both runs compute the same functions.

    ## Method
    Two runs of a dense network of three hidden layers of 64 from the same weights and on the same batches. In the first
    the weights before norms decay by $\lambda$ at a constant rate $\eta$. In the second they do not decay, and their
    rate at step k is $\eta\,\alpha^{-2k-1}$, where $\alpha$ is the larger root of
    $x^2 - (1 + \mu - \eta\lambda)x + \mu$ with momentum $\mu$ as torch has it (without momentum
    $\alpha = 1 - \eta\lambda$), and the momentum begins at $-(1-\alpha)w_0/(\eta\alpha)$. Gamma, beta and the head
    have the constant rate and no decay in both. The headline is an identity: in float64 and without eps, the largest
    difference of the logits of both runs over all steps, as a share of their size, is below 1e-8 in every seed. Also
    tried: with momentum. Claims of their own ask what the identity survives, to a hundredth of the outputs in the
    geometric mean over seeds: torch's eps and one of 0.1, float32, and decay and rate on all parameters, the head,
    gamma and beta too. A premise: runs that only leave the decay out part by more than a hundredth.

    ## Prediction
    Exact: $w_k = \alpha^k \tilde w_k$ in every step, so all normalized values agree. Torch's eps and rounding are
    survived by most runs; the eps of 0.1 is not, nor are parameters that see their own scale.

    ## Threats
    The rate grows by a factor over the run that is recorded (``rate``); what overflows is not asked. Rounding grows in
    chaotic training: many more steps at high rates part runs that are equal in algebra. Biases before the norms are
    left out; they have no gradient. The theorem for changing rates, and its number, are not checked here.
    """

    CODE = "weight-decay-is-exponential-rate"
    CARD = 43
    TOPIC = "scale"
    EXTENSION = True
    SOURCES = (
        "Li & Arora 2019 (arXiv:1910.07454), abstract; recurrence derived here",
        "van Laarhoven 2017 (arXiv:1706.05350), second hand",
    )
    CLAIM = "In front of batch norm, weight decay is a learning rate that grows exponentially."
    ON_A_CASE = IDENTITY
    ENDPOINT = "Difference of the outputs of both runs as a share of them, largest of all steps, float64"
    MARGIN = 0.01
    MARGIN_REASON = "a hundredth of the size of the logits changes few predictions"
    ARMS = {
        "exact": "float64 without eps",
        "eps": "float64 with torch's eps of 1e-5",
        "large eps": "float64 with an eps of 0.1",
        "single": "float32 without eps",
        "everything": "decay and rate on all parameters",
        "left out": "decay left out, rate constant",
    }
    POINTS = {"momentum": "momenta"}
    CONDITIONS = {"momentum": "momentum {:g}"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 64},
            "batch": 64,
            "lr": 0.1,
            "decay": 0.05,
            "steps": 200,
            "momenta": [0.0, 0.9],
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "batch": 128, "decay": 0.005, "steps": 1000},
    )

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Train both runs side by side, and record at every step how far their outputs are apart."""
        kind = torch.float32 if cell.arm == "single" else torch.float64
        eps = {"eps": 1e-5, "large eps": 0.1}.get(cell.arm, NO_EPS)
        split = split_of(cell, data, device)
        bias = {"bias": False} if cell.settings["network"]["name"] == "mlp" else {}
        first, second = (
            network(cell, data, batch_norm(eps=eps, dtype=kind), device, **bias).to(kind) for _ in range(2)
        )
        settings = cell.settings
        momentum, lr, decay = float(cell.point["momentum"]), float(settings["lr"]), float(settings["decay"])
        # With momentum the same rate takes steps 1 / (1 - momentum) as long.
        lr *= 1 - momentum
        growth = 1.0 if cell.arm == "left out" else alpha(lr, decay, momentum)
        runs = (
            Descent(first, lr, momentum, decay=decay, everything=cell.arm == "everything"),
            Descent(second, lr, momentum, growth=growth, everything=cell.arm == "everything"),
        )
        record, worst = recorder(cell, "twins"), 0.0
        order = batch_indices(len(split.y_train), int(settings["batch"]), int(settings["steps"]), cell.seed)
        for step, rows in enumerate(order):
            x, y = split.x_train[rows].to(kind), split.y_train[rows]
            outputs, others = (run.take(x, y) for run in runs)
            # A run without numbers is as far away as can be.
            worst = max(worst, min(1e6, float(torch.nan_to_num((outputs - others).norm() / outputs.norm(), 1e6, 1e6))))
            yield record("difference", max(worst, torch.finfo(torch.float64).tiny), step)
            yield record("rate", runs[1].factor, step)
        yield record("apart", worst, len(order))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the identity, without momentum first; what it survives are claims of their own."""
        momenta = evidence.settings["momenta"]
        for momentum in momenta:
            matters = Contrast(
                TYPICAL,
                "left out",
                self.MARGIN,
                at={"momentum": momentum},
                scale="log-ratio",
                margin=0.0,
                margin_reason="if leaving the decay out changed nothing, neither would the rate",
                labels=("", "a hundredth"),
                claim="Leaving the decay out at a constant rate parts the runs.",
                says="without decay at a constant rate the outputs part by {effect} than a hundredth",
                comparative=("more", "less"),
            )
            yield Contrast(
                APART,
                "exact",
                at={"momentum": momentum},
                exact_within=ROUNDING,
                name=f"identity, momentum {momentum:g}",
                says="both runs put out the same at every step ({effect} of the outputs)",
                premises=(matters,),
            )
        for arm, (claim, words) in SURVIVES.items():
            for momentum in momenta:
                yield Contrast(
                    TYPICAL,
                    self.MARGIN,
                    arm,
                    at={"momentum": momentum},
                    scale="log-ratio",
                    margin=0.0,
                    margin_reason="the hundredth is the bound itself",
                    labels=("a hundredth", ""),
                    name=f"{arm}, momentum {momentum:g}",
                    claim=claim,
                    says=f"{words} the outputs of both runs part by {{effect}} than a hundredth",
                    comparative=("less", "more"),
                )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw how far both runs are apart, and the rate of the second."""
        momentum = evidence.settings["momenta"][0]
        return [
            self.curves(
                evidence,
                "difference",
                probe="twins",
                at={"momentum": momentum},
                slug="difference",
                title="Largest difference of the outputs of both runs so far",
                y_title="Share of the outputs",
                log=True,
                caption="Runs that are equal in algebra differ by rounding, which grows as training goes on.",
            ),
            self.curves(
                evidence,
                "rate",
                probe="twins",
                at={"momentum": momentum, "arm": "exact"},
                slug="rate",
                title="Learning rate of the run without decay over that of the run with decay",
                y_title="Factor",
                log=True,
                arms=["exact"],
                caption="The rate grows by the same factor at every step.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the differences."""
        return [
            self.grid_table(
                [APART, last("rate", "rate at the end over that at the start", probe="twins")],
                evidence,
                rows={"arm": list(self.ARMS), "momentum": evidence.settings["momenta"]},
                title="How far both runs are apart",
                heads={"momentum": "Momentum"},
            )
        ]


#: What the identity may survive, by the arm: the claim, and how its finding begins.
SURVIVES: Mapping[str, tuple[str, str]] = {
    "eps": ("The equivalence survives torch's eps of 1e-5, to a hundredth of the outputs.", "with an eps of 1e-5"),
    "large eps": ("The equivalence survives an eps of 0.1, to a hundredth of the outputs.", "with an eps of 0.1"),
    "single": ("The equivalence survives float32, to a hundredth of the outputs.", "in float32"),
    "everything": (
        "The equivalence holds for the head, gamma and beta too, to a hundredth of the outputs.",
        "with decay and rate on all parameters",
    ),
}


def alpha(lr: float, decay: float, momentum: float) -> float:
    r"""Return the factor by which the decayed weights fall behind those without decay at each step.

    The larger root of $x^2 - (1 + \mu - \eta\lambda)x + \mu$; $1 - \eta\lambda$ without momentum.

    Args:
        lr: Learning rate, $\eta$.
        decay: Weight decay, $\lambda$.
        momentum: $\mu$ in [0, 1).

    Raises:
        UsageError: The roots are not real: the product of rate and decay is larger than $(1-\sqrt\mu)^2$.
    """
    if lr * decay > (1 - math.sqrt(momentum)) ** 2:
        raise UsageError(f"learning rate {lr:g} and decay {decay:g} with momentum {momentum:g}: take a smaller product")
    linear = 1 + momentum - lr * decay
    return (linear + math.sqrt(max(0.0, linear * linear - 4 * momentum))) / 2


@dataclass
class Descent:
    """SGD with momentum by hand, with weight decay or a growing rate on the weights before norms.

    Attributes:
        model: Trained in place.
        lr: Learning rate.
        momentum: Of torch's kind: a step is the rate times the buffer, and the buffer takes the gradient and decay.
        decay: Weight decay of the weights before norms.
        growth: ``alpha`` of the run with decay; the rate of the weights before norms is lr / growth^(2k+1).
        everything: Whether all other parameters are treated as the weights before norms are.
        step: Steps taken.
    """

    model: nn.Module
    lr: float
    momentum: float
    decay: float = 0.0
    growth: float = 1.0
    everything: bool = False
    step: int = 0

    def __post_init__(self) -> None:
        self._treated = [
            (parameter, self.everything or "linear.weight" in name) for name, parameter in self.model.named_parameters()
        ]
        # Where the run with decay rests at step -1, the other one has moved.
        start = -(1 - self.growth) / (self.lr * self.growth)
        self._buffers = [
            parameter.detach() * (start if chosen else 0.0) * (self.momentum > 0) for parameter, chosen in self._treated
        ]

    @property
    def factor(self) -> float:
        """The rate of this step over that of a run with decay."""
        return float(self.growth ** -(2 * self.step + 1))

    def take(self, x: Tensor, y: Tensor) -> Tensor:
        """Take a step on a batch and return the logits (N, classes) before it."""
        outputs: Tensor = self.model(x)
        gradients = torch.autograd.grad(cross_entropy(outputs, y), [parameter for parameter, _ in self._treated])
        with torch.no_grad():
            for (parameter, chosen), buffer, gradient in zip(self._treated, self._buffers, gradients, strict=True):
                buffer.mul_(self.momentum).add_(gradient)
                if chosen:
                    buffer.add_(parameter, alpha=self.decay)
                parameter.sub_(buffer, alpha=self.lr * (self.factor if chosen else 1.0))
        self.step += 1
        return outputs.detach()
