"""The curvature of the loss: how far a quadratic model of it reaches."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Generator

from normscope._errors import UsageError
from normscope.modules.batches import cut
from normscope.probes._curvature_remarks import remarks_on_curvature
from normscope.probes._hessian import (
    MODES,
    Hessian,
    Value,
    check_modes,
    count,
    drawn,
    generator,
    in_modes,
    weight_slots,
    whole,
    zeros,
)
from normscope.probes._lanczos import Spectrum, hutchinson, lanczos, negative_share, quantiles
from normscope.probes._probe import AbstractProbe
from normscope.probes._replay import Replay
from normscope.probes._start_state import Slot
from normscope.probes._step import Step
from normscope.probes._vectors import Vector, norm
from normscope.probes.remarks import Readings, Remark
from normscope.records import Record

MEASURES = ("eigenvalues", "trace", "gradient", "density", "batch", "layers", "adaptive")
_LEAST_WARM = 5
LEVELS = {"p01": 0.01, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}


class Curvature(AbstractProbe):
    r"""Eigenvalues, trace, density and sharpness of the loss Hessian.

    ## Measures
    $H = \nabla^2 L(\theta)$ on the step's own batch, over all P trainable parameters, at those with which the
    step began; in two modes, named behind an ``@``: ``train`` is the step's own pass, in which batch norm normalizes by
    the statistics of the batch and H includes that they depend on the weights; in ``frozen`` the norms use their
    running statistics as constants. What is measured, by the names given to ``measures``:

    - *eigenvalues*: ``top_eigenvalue``, then ``eigenvalue_2``, ..., the algebraically largest, by Lanczos with full
      reorthogonalization from a random start; ``residual`` (``residual_2``, ...) $\lVert Hv-\lambda v\rVert$;
      ``converged``, 1 if the error of each, the smaller of r and $r^2/$ gap, is within ``tolerance``
      $|\lambda|$, else 0; ``products``, how many Hessian-vector products it took;
    - *trace*: ``trace`` by Hutchinson, the mean of $v^T H v$ over vectors of random signs (the start of each
      Lanczos run counts as one), and ``trace_error``, its standard error;
    - *gradient*: ``gradient_curvature`` $g^T H g / g^T g$;
    - *density*: ``density_p01``, ``_p10``, ``_p50``, ``_p90``, ``_p99``, quantiles of the eigenvalues, and
      ``negative_share``, the share below $-4\sqrt k\,\epsilon$ times the largest in size, by stochastic Lanczos
      quadrature with k products: what is nearer to zero may be the rounding of zero, as a flat direction's is;
    - *batch*: ``batch_sharpness`` $E_B[g_B^T H_B g_B / g_B^T g_B]$, the mean over ``parts`` equal parts of the
      batch, and ``batch_sharpness_error``, its standard error; left out where a batch cannot be cut. At the full batch
      size it is the mean of ``gradient_curvature`` over steps;
    - *layers*: ``layer_sharpness`` $\lambda_{max}(\lVert W_l\rVert_F^2 H_{ll})$ by layer, its maximum over layers
      for the whole model, and ``layer_converged``;
    - *adaptive*: ``adaptive_sharpness`` $\max_{\lVert\delta/|w|\rVert_2\le\rho} L(w+\delta) - L(w)$, the largest
      found by ``ascent`` projected steps; with one step $\delta = \rho\, w^2 g / \lVert w g\rVert$, the solution
      to first order.

    Without a norm to freeze both modes are one, and are measured once. What is not finite is recorded as NaN.

    ## Cost
    In plain steps, for each mode: 1 to record the gradient's graph (shared with other probes in train mode), then 1.5
    to 2.5 (linear layers) or 3.2 (convolutions) a product. Lanczos takes 4 to 7 products for one eigenvalue to 1 % in
    training and 7 to 13 at initialization, the trace ``samples - 1``, *gradient* 1, *density* ``runs * depth``,
    *batch* about 5 in all, *layers* 3 to 12 a layer, *adaptive* ``ascent``. One eigenvalue in train mode came to 37
    plain steps (multilayer perceptron, three layers of 100) and 40 (eight convolutions), each time from a random start;
    to 23 and 16 with ``warm``. Memory: the graph of a double backward pass, and one copy of the parameters for each
    product of the longest Lanczos run.

    ## Reads wrongly when
    ``converged`` is 0: then the value is only a lower bound. A start that happens to be almost orthogonal to the
    sharpest direction has the run settle on another one, with ``converged`` at 1: against that the error must be within
    the tolerance after two products in a row; in a net of 120 parameters it was still so in 1 reading of 100. ``warm``
    is as often wrong. Lanczos sees one copy of a repeated eigenvalue. The kinks
    of ReLU and max-pooling have no curvature here, though a step that crosses them meets some. Early in training the
    running statistics of ``frozen`` are not yet those of the data. Raw eigenvalues and the trace change when a weight
    before batch norm is rescaled, which changes no output: compare networks by the scale-free ``layer_sharpness`` and
    ``adaptive_sharpness``. The latter is a maximum found, not proven. Where an operation has no second derivative,
    products are differences of gradients, and kinks falsify them. Where a softmax is saturated (probabilities 0 and 1
    to rounding), H itself is rounding, and ``negative_share`` may be anything.

    Args:
        measures: Which of the measures to take.
        modes: ``"train"``, ``"frozen"``, or both.
        top: How many eigenvalues.
        tolerance: Relative error of the eigenvalues at which Lanczos stops.
        products: Most Hessian-vector products in a Lanczos run.
        samples: Vectors for the trace.
        runs: Lanczos runs for the density.
        depth: Products in each of them.
        parts: Into how many parts to cut the batch for the batch sharpness.
        rho: Radius of the adaptive sharpness.
        ascent: Its steps; from the second on each is ``2 rho / ascent`` long and costs a gradient.
        warm: Whether Lanczos begins from the sum of the last reading's eigenvector and a random vector as long, and not
            from a random vector alone. Cheaper where readings follow closely; see above.
        seed: Seeds the probe's own random stream, together with the number of the step.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: An option is out of range.
    """

    CODE = "curvature"
    SHOWS = "top_eigenvalue"
    QUESTION = "sharpness"
    SOURCES = (
        "Pearlmutter 1994, Fast Exact Multiplication by the Hessian",
        "Parlett 1980, The Symmetric Eigenvalue Problem, chapters 11 and 13",
        "Hutchinson 1990, A Stochastic Estimator of the Trace",
        "Ghorbani et al. 2019, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density "
        "(arXiv:1901.10159)",
        "Andreyev and Beneventano 2024, Edge of Stochastic Stability (arXiv:2412.20553)",
        "Kwon et al. 2021, ASAM, equations 3 and 6 (arXiv:2102.11600)",
    )
    REPLAYS = True
    COST = (55.0, 180.0)  # with its defaults, on the models of `normscope bench probes`

    def __init__(
        self,
        measures: Sequence[str] = ("eigenvalues", "trace", "gradient"),
        *,
        modes: Sequence[str] = MODES,
        top: int = 1,
        tolerance: float = 0.01,
        products: int = 40,
        samples: int = 4,
        runs: int = 2,
        depth: int = 12,
        parts: int = 4,
        rho: float = 0.5,
        ascent: int = 1,
        warm: bool = False,
        seed: int = 0,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        unknown = [measure for measure in measures if measure not in MEASURES]
        if unknown:
            raise UsageError(f"{self.CODE}: no measure {unknown[0]!r}; there are {', '.join(MEASURES)}")
        if min(top, samples, runs, ascent) < 1 or min(depth, parts) < 2 or products <= top:
            raise UsageError(
                f"{self.CODE}: top, samples, runs and ascent must be 1 or more, depth and parts 2 or more, and "
                "products more than top"
            )
        if tolerance <= 0 or rho <= 0 or seed < 0:
            raise UsageError(f"{self.CODE}: tolerance and rho must be positive, and seed not negative")
        self.measures, self.modes = tuple(measures), check_modes(self.CODE, modes)
        self.top, self.tolerance, self.products = top, tolerance, products
        self.samples, self.runs, self.depth, self.parts = samples, runs, depth, parts
        self.rho, self.ascent, self.warm, self.seed = rho, ascent, warm, seed
        self._sharpest: dict[str, Vector] = {}

    def read(self, step: Step) -> Iterator[Record]:
        """Yield the values of each mode."""
        for site, name, value in in_modes(step.replay, self.modes, lambda: self._read(step)):
            yield self.record(step, site, name, value)

    def _read(self, step: Step) -> Iterator[Value]:
        replay, stream = step.replay, generator(self.seed, step.index)
        hessian, size = Hessian.of(replay), count(replay)
        traces: list[float] = []
        if "eigenvalues" in self.measures:
            signs = drawn(replay, stream, "signs")
            near = self._near(replay, signs)
            found = lanczos(
                hessian.product,
                signs if near is None else near,
                wanted=self.top,
                tolerance=self.tolerance,
                least=1 if near is None else min(_LEAST_WARM, self.products),
                most=self.products,
                decide=_decide(step.replay),
            )
            if near is None:
                traces.append(size * found.first)
            if self.warm and found.vectors and found.converged:
                self._sharpest[replay.mode] = found.vectors[0]
            yield from _eigenvalues(found)
        if "density" in self.measures:
            spectra = [
                lanczos(
                    hessian.product, drawn(replay, stream, "signs"), wanted=0, most=self.depth, decide=_decide(replay)
                )
                for _ in range(self.runs)
            ]
            traces += [size * spectrum.first for spectrum in spectra]
            for name, value in zip(LEVELS, quantiles(spectra, tuple(LEVELS.values())), strict=True):
                yield "", f"density_{name}", float(value)
            yield "", "negative_share", negative_share(spectra, hessian.rounding)
        if "trace" in self.measures:
            while len(traces) < self.samples:
                signs = drawn(replay, stream, "signs")
                traces.append(_product(signs, hessian.product(signs)))
            trace, error = hutchinson(traces)
            yield "", "trace", trace
            yield "", "trace_error", error
        if "gradient" in self.measures:
            yield "", "gradient_curvature", hessian.gradient_curvature()
        if "layers" in self.measures:
            yield from self._layers(step, hessian, stream)
        if "adaptive" in self.measures:
            yield "", "adaptive_sharpness", self._adaptive(replay, hessian)
        if "batch" in self.measures:
            yield from self._batch(replay)

    def _near(self, replay: Replay, signs: Vector) -> Vector | None:
        """Return a start near the last eigenvector of this mode; None if there is none of this shape."""
        last = self._sharpest.get(replay.mode) if self.warm else None
        if last is None or [(part.shape, part.device) for part in last] != [(p.shape, p.device) for p in signs]:
            return None
        share = 1 / norm(signs)
        return [part + share * random for part, random in zip(last, signs, strict=True)]

    def _layers(self, step: Step, hessian: Hessian, stream: Generator) -> Iterator[Value]:
        values, converged = [], True
        for site, slots in weight_slots(step.replay, step.model).items():
            if not hessian.reaches(slots):
                continue
            found = lanczos(
                lambda vector, slots=slots: hessian.product(vector, along=slots, wanted=slots),  # type: ignore[misc]
                drawn(step.replay, stream, "signs", slots),
                tolerance=self.tolerance,
                most=self.products,
                decide=_decide(step.replay),
            )
            square = math.fsum(_length(step.replay, slot) ** 2 for slot in slots)
            values.append(square * float(found.values[0]))
            converged = converged and found.converged
            yield site, "layer_sharpness", values[-1]
        unknown = not values or any(math.isnan(value) for value in values)
        yield "", "layer_sharpness", math.nan if unknown else max(values)
        yield "", "layer_converged", float(converged)

    def _adaptive(self, replay: Replay, hessian: Hessian) -> float:
        size = [part.abs() for part in replay.trainable(replay.start.flat)]
        moved, gradient = zeros(replay), hessian.gradient
        length = self.rho if self.ascent == 1 else 2 * self.rho / self.ascent
        losses = []
        for index in range(self.ascent):
            uphill = [scale * part for scale, part in zip(size, gradient, strict=True)]
            steepest = norm(uphill)
            if not 0 < steepest < math.inf:
                break
            moved = [at + length / steepest * part for at, part in zip(moved, uphill, strict=True)]
            beyond = max(1.0, norm(moved) / self.rho)
            moved = [at / beyond for at in moved]
            replay.move([scale * at for scale, at in zip(size, moved, strict=True)], -1.0)
            there = replay.evaluate(gradient=index + 1 < self.ascent)
            losses.append(float(there.loss))
            gradient = there.gradient
        replay.reset()
        if not losses or any(math.isnan(loss) for loss in losses):
            return math.nan
        return max(losses) - hessian.loss

    def _batch(self, replay: Replay) -> Iterator[Value]:
        batches = cut(replay.batch, self.parts)
        if batches is None:
            return
        mean, error = hutchinson([Hessian(replay.with_batch(batch)).gradient_curvature() for batch in batches])
        yield "", "batch_sharpness", mean
        yield "", "batch_sharpness_error", error

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of a sharpness that changed or depends on the statistics, of the sharpest layer, of lower bounds."""
        return remarks_on_curvature(readings)


def _decide(replay: Replay) -> Callable[[bool], bool]:
    return bool if replay.processes is None else replay.processes.decide


def _eigenvalues(found: Spectrum) -> Iterator[Value]:
    for index, (value, residual) in enumerate(zip(found.values, found.residuals, strict=True), 1):
        yield "", "top_eigenvalue" if index == 1 else f"eigenvalue_{index}", float(value)
        yield "", "residual" if index == 1 else f"residual_{index}", float(residual)
    yield "", "converged", float(found.converged)
    yield "", "products", float(found.products)


def _product(a: Vector, b: Vector) -> float:
    """Inner product in float64: the terms of a trace cancel."""
    return math.fsum(float((p.double() * q.double()).sum()) for p, q in zip(a, b, strict=True))


def _length(replay: Replay, slot: Slot) -> float:
    return float(torch.linalg.vector_norm(slot.of(whole(replay, replay.trainable(replay.start.flat)))))
