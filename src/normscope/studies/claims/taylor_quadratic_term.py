"""How long a step may be before the loss rises, with batch norm and without."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope.plots import Figure, Table
from normscope.probes import Descent
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Arm, Contrast, Evidence, Quantity, mean, mean_log, presets, typical
from normscope.studies.case_question import CaseQuestion
from normscope.studies.evidence import Floats
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, recorder, split_of
from normscope.studies.lab.models import Block

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

LENGTHS = tuple(float(x) for x in np.geomspace(0.01, 10.0, 13))


class TaylorQuadraticTerm(AbstractStudy):
    r"""Batch norm keeps the quadratic term of the step below the linear one, so steps need no care.

    ## Claim
    Without batch norm minus the gradient is not a descent direction if the quadratic term of the step is too large;
    batch norm scales gradient and Hessian by one over sigma, so that the quadratic term can no longer exceed the
    first-order one, and the step can be chosen without worrying (note on batch norm, section 2). Minus the gradient is
    always a descent direction: it is the *step* that is too long, beyond $\alpha^* = 2 |g|^2 / g^T H g$.

    ## Method
    Smooth (softplus) networks of 3 and 10 layers, weights s times He's, s from 0.1 to 10, with and without batch norm:
    the safe step from exact Hessian-vector products at initialization. The headline is the note's claim, "can no longer
    exceed": it is false if networks with batch norm have a finite safe step and a step up to 10 that raises the loss.
    Claims of their own: batch norm enlarges the safe step (1.5 times matters), at every depth and scale; the ratio of
    curvatures is one over the variance, which the note's rule implies (within twice either way); with batch norm a
    smaller share of training steps raises the loss of its own batch.

    ## Prediction
    False: most networks with batch norm have a step that raises the loss. The safe step hardly depends on s with batch
    norm, and on s strongly without. At He's scale batch norm enlarges it, at small s it shrinks it: with sigma below 1,
    as torch's default initialization gives, one over sigma amplifies.

    ## Threats
    A quadratic model of one step says little of training, which runs at steps near and above the bound (edge of
    stability, Cohen et al. 2021, second hand).
    """

    CODE = "taylor-quadratic-term"
    CARD = 9
    TOPIC = "step size"
    SOURCES = (
        "Note on batch norm (2020), section 2",
        "Santurkar et al. 2018 (arXiv:1805.11604), theorem 4.2",
        "Cohen et al. 2021 (arXiv:2103.00065), second hand",
    )
    CLAIM = "With batch norm the quadratic term of a step can no longer exceed the linear term."
    ON_A_CASE = CaseQuestion("step", differs="the longest step that lowers the loss stands for the term that limits it")
    ENDPOINT = "Share of networks with batch norm in which a step up to 10 raises the loss"
    MARGIN = math.log(1.5)
    MARGIN_REASON = "learning rates are searched in steps of two or three"
    ARMS = {"none": Arm("no batch norm", norms.none()), "batch": Arm("batch norm", norms.batch())}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "width": 100},
            "depths": [3, 10],
            "scales": [0.1, 0.3, 1.0, 3.0, 10.0],
            "batch": 256,
            "lr": 0.1,
            "steps": 60,
            "every": 6,
            "train": None,
            "test": None,
        },
        full={
            "network": {"name": "vgg-a", "width": 64},
            "depths": [None],
            "scales": [1.0],
            "batch": 128,
            "steps": 5000,
            "every": 500,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms at every depth and scale; depth 0 for a network that has none."""
        for depth in settings["depths"]:
            for scale in settings["scales"]:
                for arm in self.ARMS:
                    yield arm, {"depth": depth or 0, "scale": scale}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Measure the safe step at initialization; at He's scale train and go on measuring."""
        depth, scale = int(cell.point["depth"]), float(cell.point["scale"])
        sizes: dict[str, Any] = {"depth": depth, "gain": 2 * scale**2} if depth else {}
        model = network(cell, data, self.ARMS[cell.arm].norm, device, activation="softplus", **sizes)
        split = split_of(cell, data, device)
        yield from safe_steps(cell, model, split.x_train[: cell.settings["batch"]], split.y_train)
        if scale == 1.0 and depth == (cell.settings["depths"][0] or 0):
            yield from fit(model, split, cell, probes=[Descent()], every=int(cell.settings["every"]))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield whether some step raises the loss; the safe step, the note's rule and training are other claims."""
        depths, scales = [depth or 0 for depth in evidence.settings["depths"]], evidence.settings["scales"]
        raised = typical(100 * RISES(evidence, arm="batch"))
        ratios = ", ".join(self._ratio(evidence, depths[0], scale) for scale in scales)
        yield Contrast(
            RISES,
            "batch",
            exact_within=1e-9,
            unit="%",
            name="can no longer exceed",
            says=f"in {raised} % of the networks with batch norm a step up to 10 raises the loss; at "
            f"{', '.join(f'{scale:g}' for scale in scales)} times He's scale the longest safe step is {ratios} times "
            "as long as without batch norm",
        )
        for depth in depths:
            for scale in scales:
                yield self._larger(depth, scale)
        yield self._rule(depths[0])
        yield Contrast(
            Quantity("share of the steps read that raise the loss of their own batch", _raised, unit="points"),
            "none",
            "batch",
            margin=0.05,
            margin_reason="one step in twenty",
            name="rising steps",
            claim="With batch norm fewer training steps raise the loss of their own batch.",
            says="the share of training steps that raise the loss is {effect} with batch norm",
            comparative=("smaller", "larger"),
        )

    def _larger(self, depth: int, scale: float) -> Contrast:
        """Return the contrast of the safe step with and without batch norm."""
        return Contrast(
            SAFE_STEP,
            "batch",
            "none",
            at={"depth": depth, "scale": scale} if depth else {"scale": scale},
            scale="log-ratio",
            name=f"safe step, {depth} layers, scale {scale:g}" if depth else f"safe step, scale {scale:g}",
            claim="Batch norm enlarges the step that still lowers the loss.",
            says="the longest safe step is {effect} with batch norm",
            comparative=("longer", "shorter"),
        )

    def _ratio(self, evidence: Evidence, depth: int, scale: float) -> str:
        """Write the safe step with over without batch norm, a geometric mean over seeds that have one."""
        return SAFE_STEP.typical(self._larger(depth, scale).read(evidence).kept) or "not finite"

    def _rule(self, depth: int) -> Contrast:
        """Return the contrast of the ratio of curvatures with one over the variance, which the note's rule implies."""
        at = {"depth": depth, "scale": 1.0} if depth else {"scale": 1.0}

        def off(evidence: Evidence, **where: Any) -> Floats:
            steps = [SAFE_STEP(evidence, arm=arm, **where) for arm in ("none", "batch")]
            return steps[0] - steps[1] - INVERSE_VARIANCE(evidence, arm="batch", **where)

        return Contrast(
            Quantity("ratio of curvatures over one over the variance", off),
            at=at,
            scale="log-ratio",
            equal_within=math.log(2),
            margin_reason="a rule of thumb may be off by a factor of two",
            name="one over the variance",
            claim="Curvature along the gradient changes by one over sigma squared, as taken for a constant.",
            endpoint="Measured ratio of curvatures with over without batch norm, over one over the variance",
            says="curvature with over without batch norm is {effect} what one over the variance says",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the safe step by scale and during training."""
        scales = evidence.settings["scales"]
        first = self._larger(evidence.settings["depths"][0] or 0, 1.0 if 1.0 in scales else scales[0])
        return [
            self.curves(
                evidence,
                "safe_step",
                probe="safe_step",
                x="scale",
                facet="depth",
                slug="safe-step",
                title="Safe step at initialization by scale of the weights, a panel a depth",
                x_title="Weights, in units of He's",
                y_title="2 |g|^2 / g'Hg",
                log=True,
                log_x=True,
                caption=self.wording.reason(first.read(evidence)),
            ),
            self.curves(
                evidence,
                "safe_step",
                probe="descent",
                slug="training",
                title="Safe step while training",
                y_title="2 |g|^2 / g'Hg",
                log=True,
                reference={"learning rate": evidence.settings["lr"]},
                caption="Where no curve is drawn the curvature along the gradient is negative: no step is too long.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the safe steps."""
        depths = [depth or 0 for depth in evidence.settings["depths"]]
        rows = {"depth": depths, "scale": evidence.settings["scales"]}
        return [
            self.grid_table(
                SAFE_STEP,
                evidence,
                rows=rows,
                columns={"arm": list(self.ARMS)},
                title="Safe step at initialization",
                heads={"scale": "Times He's"},
            )
        ]


RISES = mean("rises", "share of networks in which some step up to 10 raises the loss", probe="safe_step")
SAFE_STEP = mean_log("safe_step", "safe step", probe="safe_step")
INVERSE_VARIANCE = mean_log("inverse_variance", "one over the variance", probe="safe_step")


def _raised(evidence: Evidence, arm: str) -> Floats:
    frame = evidence.select(probe="descent", name="raised", arm=arm)
    return evidence.per_seed(frame.filter(frame["value"].is_finite()))


def safe_steps(cell: Cell, model: nn.Module, x: Tensor, labels: Tensor) -> Iterator[Record]:
    """Yield the largest step along the gradient that still lowers the loss, and whether a step up to 10 raises it."""
    record, y = recorder(cell, "safe_step"), labels[: len(x)]
    variances: list[float] = []
    handles = [
        module.linear.register_forward_hook(
            lambda _m, _i, out: variances.append(float(out.detach().transpose(0, 1).flatten(1).var(1).log().mean()))
        )
        for module in model.modules()
        if isinstance(module, Block)
    ]
    parameters = list(model.parameters())
    loss = cross_entropy(model(x), y)
    for handle in handles:
        handle.remove()
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    square = sum(g.detach().double().square().sum() for g in gradient)
    product = torch.autograd.grad(gradient, parameters, [g.detach() for g in gradient], allow_unused=True)
    curvature = sum(
        (p.double() * g.detach().double()).sum() for p, g in zip(product, gradient, strict=True) if p is not None
    )
    safe = float(2 * square / curvature) if float(curvature) > 0 else math.inf
    yield record("safe_step", safe)
    yield record("inverse_variance", math.exp(-math.fsum(variances) / max(1, len(variances))))
    start = [p.detach().clone() for p in parameters]
    rises = False
    with torch.no_grad():
        for length in LENGTHS:
            for p, at, g in zip(parameters, start, gradient, strict=True):
                p.copy_(at - length * g)
            rises = rises or not float(cross_entropy(model(x), y)) <= float(loss.detach())
        for p, at in zip(parameters, start, strict=True):
            p.copy_(at)
    yield record("rises", float(rises and math.isfinite(safe)))
