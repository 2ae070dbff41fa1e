"""Does batch norm keep tanh from saturating, and do gamma and beta choose how far?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, accuracy, last, presets
from normscope.studies.case_question import CaseQuestion
from normscope.studies.lab import norms
from normscope.studies.lab.arms import Noted, batch_norm, network, noted, recorder

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

FIXED = {"gamma=0.5": 0.5, "gamma=1": 1.0, "gamma=2": 2.0, "gamma=4": 4.0}
THEORY = {"beyond_3": 0.0027, "flat": 0.0364, "slope": 0.4644}
WORDS = {"beyond_3": "share with |x| > 3", "flat": "share with |tanh x| > 0.97", "slope": "mean squared slope of tanh"}


class TanhSaturation(AbstractTraining):
    r"""Batch norm before tanh prevents saturation; gamma and beta choose how much of it there is.

    ## Claim
    Without batch norm inputs of tanh lie beyond 3, where it is flat and gradients vanish; batch norm prevents that, and
    learnable gamma and beta let the network choose the best saturation (answers to "How does the batch normalization
    layer work?"; Ioffe & Szegedy 2015, section 1).

    ## Method
    Five hidden layers of 100 with tanh, weights s times $1/\sqrt{d}$, s from 0.1 to 10, with batch norm and
    without. At initialization, per layer: the share of inputs of tanh beyond 3, the share of outputs beyond .97, the
    mean squared slope, and the first layer's gradient over the last one's, each over its weights. Judged: the share
    beyond 3 is lower with batch norm by more than 10 points; the headline is at s = 10, where networks saturate. Also
    tried: every other scale. Claims of their own: without batch norm the saturated network's gradient vanishes, per
    layer by more than a factor of 1.1; with batch norm the shares are those of a normal variable; and, of networks
    trained at s = 5/3 with gamma and beta learnt or fixed at four gammas, the learnt ones are as good in test accuracy,
    less half a point, as the fixed gamma that is best on validation data.

    ## Prediction
    Holds at initialization, with the shares of a normal variable (.27 %, 3.64 %, .464). While training gamma moves, and
    saturation rises.

    ## Threats
    At initialization batch norm fixes two moments of each unit, so the claim is half arithmetic; how much it matters
    shows in the arm without norm at the usual s = 5/3, where little saturates either. Saturation need not make
    gradients vanish: the weights that saturate the units also multiply what the flat parts leave, and in wide networks
    the gradient then explodes.
    """

    CODE = "tanh-saturation"
    CARD = 23
    TOPIC = "saturation"
    SOURCES = (
        "Q&A on the layer, answers on saturation",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 1",
        "Karpathy, makemore part 3",
    )
    CLAIM = "Batch norm before tanh prevents saturation."
    ON_A_CASE = CaseQuestion("units", differs="dead units count as saturated ones do")
    ENDPOINT = "Share of inputs of tanh beyond 3 at weights ten times the usual, without minus with batch norm"
    MARGIN = 0.1
    MARGIN_REASON = "a tenth of the units; the rest can carry the gradient"
    CONDITIONS = {"scale": "weights {:.3g} over the root of the inputs"}
    VARIES = {"scale": "initial scale"}
    ARMS = {
        "none": Arm("no batch norm", norms.none()),
        "batch": Arm("batch norm", norms.batch()),
        **{
            name: Arm(f"gamma fixed at {gamma:g}", batch_norm(gain=gamma, learn_gain=False, learn_shift=False))
            for name, gamma in FIXED.items()
        },
    }
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 5, "width": 100},
            "scales": [0.1, 0.5, 1.0, 1.6667, 3.0, 10.0],
            "judged": 10.0,
            "trained": 1.6667,
            "batch": 64,
            "lr": 0.1,
            "steps": 250,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "mlp", "depth": 10, "width": 100}, "steps": 10000},
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms at every scale, and the fixed gammas at the scale that is trained."""
        for scale in settings["scales"]:
            for arm in ("none", "batch"):
                yield arm, {"scale": scale}
        for arm in FIXED:
            yield arm, {"scale": settings["trained"]}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm, the inputs of tanh noted."""
        gain = float(cell.point["scale"]) ** 2
        return network(cell, data, noted(self.norm(cell)), device, activation="tanh", gain=gain)

    def trains(self, cell: Cell) -> bool:
        """Train at the scale that the preset names; at the others only the start is looked at."""
        return bool(cell.point["scale"] == cell.settings["trained"])

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Look at the inputs of tanh."""
        return _look(cell, model, split, 0)

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Look at them again."""
        return _look(cell, model, split, int(cell.settings["steps"]))

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Look at the inputs of tanh, train where the preset says so, and look again."""
        if self.trains(cell):
            return super().run_cell(cell, data, device)
        return self.before(cell, self.network(cell, data, device), self.split(cell, data, device))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the share beyond 3 at large weights; other scales are also tried; gradients, theory, learnt gamma."""
        settings = evidence.settings
        scales = sorted(settings["scales"], key=lambda scale: (scale != settings["judged"], scale))
        for scale in scales:
            yield Contrast(
                _share("beyond_3"),
                "none",
                "batch",
                at={"scale": scale},
                unit="points",
                name=f"weights {scale:.3g}",
                says="the share of inputs of tanh beyond 3 is {effect} with batch norm",
                comparative=("lower", "higher"),
            )
        for scale in scales:
            yield self._vanishes(int(settings["network"]["depth"]), scale)
        for name, expected in THEORY.items():
            yield self._as_theory(name, expected, settings["judged"])
        yield self._learnt(evidence)

    def _vanishes(self, depth: int, scale: float) -> Contrast:
        return Contrast(
            _per_layer(depth),
            "none",
            at={"scale": scale},
            scale="log-ratio",
            margin=math.log(1.1),
            margin_reason="over twenty layers it makes a factor of seven",
            claim="Without batch norm the gradient of tanh networks vanishes toward the first layer.",
            name=f"vanishing, weights {scale:.3g}",
            says="from layer to layer toward the first one the gradient gets {effect}",
            comparative=("smaller", "larger"),
        )

    def _as_theory(self, name: str, expected: float, scale: float) -> Contrast:
        return Contrast(
            _share(name),
            "batch",
            expected,
            at={"scale": scale},
            equal_within=0.05 * expected + 0.003,
            margin_reason="what a batch of 512 through five layers leaves of a normal variable, not more",
            claim=f"With batch norm the {WORDS[name]} is that of a standard normal input.",
            name=f"theory, {name.replace('_', ' ')}",
            endpoint=f"{WORDS[name].capitalize()}, batch norm minus theory",
            labels=("batch norm", "theory"),
            unit="" if name == "slope" else "points",
            says=f"the {WORDS[name]} lies {{effect}} that of a normal variable",
            comparative=("above", "below"),
        )

    def _learnt(self, evidence: Evidence) -> Contrast:
        trained = {"scale": evidence.settings["trained"]}
        best = max(FIXED, key=lambda arm: float(evidence.last("val_accuracy", arm=arm, **trained).mean()))
        return Contrast(
            accuracy(),
            "batch",
            best,
            at=trained,
            no_worse_than=0.005,
            margin_reason="two test images",
            labels=("gamma and beta learnt", f"{self.ARMS[best]}, the best on validation data"),
            claim="Learnt gamma and beta are as good as the best fixed gamma.",
            name="learnt gamma",
            says="with gamma and beta learnt the test accuracy is {effect} than with the best fixed gamma",
            comparative=("higher", "lower"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the shares by scale, and the loss by gamma."""
        share = _share("beyond_3")
        said = ", ".join(
            f"{share.text(evidence, arm='batch', scale=s)} and {share.text(evidence, arm='none', scale=s)} at {s:g}"
            for s in evidence.settings["scales"]
        )
        return [
            self.curves(
                evidence,
                "beyond_3",
                probe="tanh",
                at={"arm": ("none", "batch"), "site": "", "before": 1},
                x="scale",
                slug="share",
                title="Share of the inputs of tanh beyond 3, at initialization",
                x_title="Weights, in units of one over the root of the inputs",
                y_title="Share beyond 3",
                log_x=True,
                caption=f"With batch norm and without: {said}.",
            ),
            self.curves(
                evidence,
                "loss",
                at={"scale": evidence.settings["trained"]},
                slug="loss",
                title="Training loss with gamma learnt and fixed",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate against theory, and what training makes of saturation."""
        rows = []
        for name, expected in THEORY.items():
            found = float(np.mean(_share(name)(evidence, arm="batch", scale=evidence.settings["judged"])))
            rows.append((WORDS[name], f"{found:.4f}", f"{expected:.4f}", f"{found / expected:.3f}"))
        after = Quantity(
            "after training", lambda evidence, **at: evidence.last("beyond_3", probe="tanh", site="", **at)
        )
        start = Quantity("at the start", _share("beyond_3").read)
        return [
            Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(rows)),
            self.grid_table(
                [start, after, last("test_accuracy")],
                evidence,
                rows={"arm": list(self.ARMS)},
                at={"scale": evidence.settings["trained"]},
                title="Share beyond 3",
            ),
        ]


def _per_layer(depth: int) -> Quantity:
    """Return the log of the last hidden layer's gradient over the first one's, per layer between them."""
    return Quantity(
        "last over first layer's gradient, per layer",
        lambda evidence, **at: (
            -evidence.per_seed(
                evidence.select(probe="tanh", name="gradient_ratio", site="", before=1, **at),
                pl.col("value").log().mean(),
            )
            / (depth - 1)
        ),
        logs=True,
    )


def _share(name: str) -> Quantity:
    """Return a share (or the slope) at initialization, over all layers."""
    return Quantity(
        WORDS[name],
        lambda evidence, **at: evidence.per_seed(evidence.select(probe="tanh", name=name, site="", before=1, **at)),
    )


def _look(cell: Cell, model: torch.nn.Module, split: "Split", step: int) -> Iterator[Record]:
    """Record how far the inputs of tanh lie out, by layer and in all, and the ratio of gradients."""
    record = recorder(cell, "tanh")
    model.zero_grad()
    cross_entropy(model(split.x_train[:512]), split.y_train[:512]).backward()
    values: dict[str, list[float]] = {"beyond_3": [], "flat": [], "slope": []}
    for path, module in model.named_modules():
        if isinstance(module, Noted) and module.output is not None:
            x = module.output.detach()
            y = torch.tanh(x)
            found = {
                "beyond_3": (x.abs() > 3).double().mean(),
                "flat": (y.abs() > 0.97).double().mean(),
                "slope": (1 - y * y).square().double().mean(),
            }
            for name, value in found.items():
                values[name].append(float(value))
                yield record(name, value, step, path)
            module.output = None
    for name, listed in values.items():
        yield record(name, math.fsum(listed) / len(listed), step)
    gradients = [
        float(parameter.grad.norm() / parameter.detach().norm())
        for name, parameter in model.named_parameters()
        if "linear.weight" in name and parameter.grad is not None
    ]
    yield record("gradient_ratio", gradients[0] / gradients[-1] if gradients[-1] else math.nan, step)
    model.zero_grad(set_to_none=True)
