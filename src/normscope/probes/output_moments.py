"""Whether the sharpest directions of the loss are the directions that shift the distribution of the outputs."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.modules.batches import leading_tensor
from normscope.modules.sites import chosen
from normscope.probes._hessian import (
    MODES,
    Hessian,
    Value,
    check_modes,
    drawn,
    generator,
    in_modes,
    weight_slots,
    whole,
)
from normscope.probes._lanczos import lanczos
from normscope.probes._probe import AbstractProbe
from normscope.probes._replay import Replay
from normscope.probes._step import Step
from normscope.probes._vectors import Vector, norm
from normscope.probes.remarks import Readings, Remark, Urgency, percent
from normscope.records import Record

_SAME = 0.5  # squared cosine with the span


class OutputMoments(AbstractProbe):
    r"""Overlap of the Hessian's top eigenvectors with the gradients of the output moments.

    ## Measures
    With $y_c$ the output (logit) c over the samples, and positions, of the step's own batch, its mean, variance
    (biased) and skewness $E[(y_c-\bar y_c)^3]/\mathrm{Var}^{3/2}$ as functions of the parameters. For the whole
    model, each in two modes named behind an ``@`` (``train``: the step's own pass; ``frozen``: norms use their running
    statistics as constants):

    - ``overlap_mean``: $\lVert Q^T v\rVert^2$ averaged over the ``top`` eigenvectors v of the loss Hessian, Q an
      orthonormal basis of the span of all $\nabla\bar y_c$; ``overlap_all``: the same for mean, variance and
      skewness of each output;
    - ``random_overlap_mean``, ``random_overlap_all``: the control, averaged over ten random vectors; about the
      dimension of the span over the number of parameters;
    - ``top_eigenvalue``, the largest, and ``converged``, 1 if all ``top`` are within ``tolerance``, else 0.

    By weight-bearing layer, ``output_mean_gradient``: $\lVert\partial\bar y_c/\partial W_l\rVert^2$, averaged
    over the outputs c. Before a batch norm in train mode a layer cannot shift the mean of what follows it.

    ## Cost
    In plain steps, for each mode and with C outputs: 2/3 for each of the 3 C gradients, 1 for the Hessian's graph
    (shared with other probes in train mode), and 15 to ``products`` Hessian-vector products of 1.5 (linear layers) to
    3.2 (convolutions): with ten outputs 80 to 120. Memory: 3 C and ``products`` copies of the parameters.

    ## Reads wrongly when
    The outputs have thousands of classes: the memory. ``converged`` is 0: the last eigenvectors are mixtures, which
    lowers the overlap. The span is large against the number of parameters: look at the control. The model's output is
    not the logits (give ``site``). Where the softmax follows, a common shift of all logits changes no loss: one
    direction of the span is idle.

    Args:
        site: Qualified name of the module whose output is meant, of shape (N, C, ...); the model itself if "".
        top: How many eigenvectors.
        modes: ``"train"``, ``"frozen"``, or both.
        tolerance: Relative error of the eigenvalues at which Lanczos stops.
        products: Most Hessian-vector products.
        seed: Seeds the probe's own random stream, together with the number of the step.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: An option is out of range.
    """

    CODE = "output_moments"
    SHOWS = "overlap_mean"
    QUESTION = "sharpness"
    SOURCES = (
        "Page 2019, How to Train Your ResNet 7: Batch Norm (myrtle.ai)",
        "Ghorbani et al. 2019, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density "
        "(arXiv:1901.10159)",
    )
    REPLAYS = True
    NOTHING = "no output of shape (N, C, ...) that depends on the parameters was seen"
    COST = (140.0, 220.0)  # with its defaults, on the models of `normscope bench probes`

    def __init__(
        self,
        site: str = "",
        *,
        top: int = 5,
        modes: Sequence[str] = MODES,
        tolerance: float = 0.05,
        products: int = 40,
        seed: int = 0,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        if top < 1 or products <= top or tolerance <= 0 or seed < 0:
            raise UsageError(
                f"{self.CODE}: top must be 1 or more, products more than top, tolerance positive, seed not negative"
            )
        self.site, self.top, self.modes = site, top, check_modes(self.CODE, modes)
        self.tolerance, self.products, self.seed = tolerance, products, seed

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the values of each mode."""
        for site, name, value in in_modes(step.replay, self.modes, lambda: self._read(step)):
            yield self.record(step, site, name, value)

    def _read(self, step: Step) -> Iterator[Value]:
        replay, stream = step.replay, generator(self.seed, step.index)
        module = chosen(step.model, (self.site,))[self.site]
        gradients = _moment_gradients(replay, module)
        if gradients is None:
            return
        means, others = gradients
        hessian = Hessian.of(replay)
        for site, slots in weight_slots(replay, step.model).items():
            if not hessian.reaches(slots):
                continue
            squares = [
                float(torch.linalg.vector_norm(slot.of(whole(replay, mean)))) ** 2 for mean in means for slot in slots
            ]
            yield site, "output_mean_gradient", math.fsum(squares) / len(means)
        found = lanczos(
            hessian.product,
            drawn(replay, stream, "signs"),
            wanted=self.top,
            tolerance=self.tolerance,
            most=self.products,
        )
        controls = [drawn(replay, stream) for _ in range(10)]
        for name, span in (("mean", means), ("all", [*means, *others])):
            basis = _orthonormal(span)
            yield "", f"overlap_{name}", _overlap(basis, found.vectors, self.top)
            yield "", f"random_overlap_{name}", _overlap(basis, controls, len(controls))
        yield "", "top_eigenvalue", float(found.values[0])
        yield "", "converged", float(found.converged)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of sharp directions that are shifts of the outputs."""
        for name in readings.named("overlap_mean"):
            mode = name.partition("@")[2]
            overlap = readings.late(name).get("", 0.0)
            control = readings.late(f"random_{name}").get("", 0.0)
            if overlap > _SAME and overlap > 10 * control:
                says = (
                    f"The sharpest directions are those that shift the mean of the outputs: {percent(overlap)} of them "
                    f"lies there, {percent(control)} of a random direction ({mode} statistics)."
                )
                yield Remark(says, Urgency.NOTABLE, overlap, ("",), name)


def _moment_gradients(replay: Replay, module: Module) -> tuple[list[Vector], list[Vector]] | None:
    """Return the gradients of the outputs' means, and those of their variances and skewnesses.

    None where no output of shape (N, C, ...) depends on the parameters, as where the model returns its loss.
    """
    kept: list[Tensor] = []

    def hook(_module: Module, _inputs: object, output: object) -> None:
        tensor = leading_tensor(output)
        if tensor is not None:
            kept.append(tensor)

    slots = [slot for slot in replay.slots if slot.trainable]
    every = replay.leaves()
    leaves = [leaf for slot, leaf in zip(replay.slots, every, strict=True) if slot.trainable]
    handle = module.register_forward_hook(hook)
    try:
        with replay.substituted(every):
            replay.loss()
    finally:
        handle.remove()
    if not kept or kept[-1].ndim < 2 or not kept[-1].requires_grad:
        return None
    outputs = kept[-1].movedim(1, 0).flatten(1)
    means = outputs.mean(1)
    centred = outputs - means[:, None]
    variances = centred.square().mean(1)
    skewnesses = (centred**3).mean(1) / variances**1.5

    def gradients(moments: Tensor) -> list[Vector]:
        return [
            replay.start.gather(slots, torch.autograd.grad(moment, leaves, retain_graph=True, allow_unused=True))
            for moment in moments
        ]

    return gradients(means), [*gradients(variances), *gradients(skewnesses)]


def _orthonormal(span: Sequence[Vector]) -> Vector | None:
    """Return an orthonormal basis of the span as rows, kind by kind; None where a vector is not finite.

    By the Gram matrix of unit vectors in float64; directions below rounding (dependent vectors) are left out.
    """
    lengths = [norm(vector) for vector in span]
    if not all(map(math.isfinite, lengths)):
        return None
    rows = [
        torch.stack([part / length if length else part for part, length in zip(parts, lengths, strict=True)])
        for parts in zip(*span, strict=True)
    ]
    gram = sum((part @ part.T).double() for part in rows)
    assert isinstance(gram, Tensor)
    values, modes = torch.linalg.eigh(gram)
    least = max(torch.finfo(part.dtype).eps for part in rows) * 10 * len(span)
    kept = values > least
    turn = modes[:, kept] / values[kept].sqrt()
    return [turn.T.to(part) @ part for part in rows]


def _overlap(basis: Vector | None, vectors: Sequence[Vector], wanted: int) -> float:
    """Return the mean share of the squared length of vectors that lies in the span; NaN if some are missing."""
    if basis is None or len(vectors) < wanted:
        return math.nan
    shares = []
    for vector in vectors:
        along = sum((rows @ part).double() for rows, part in zip(basis, vector, strict=True))
        assert isinstance(along, Tensor)
        shares.append(float((along**2).sum()) / norm(vector) ** 2)
    return math.fsum(shares) / len(shares)
