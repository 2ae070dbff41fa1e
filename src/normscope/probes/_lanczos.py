"""The ends and the density of a symmetric operator's spectrum, from products with vectors alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscope.probes._vectors import Vector, dot, norm

Product = Callable[[Vector], Vector]


@dataclass(frozen=True, slots=True)
class Spectrum:
    r"""The result of a Lanczos run.

    Attributes:
        values: The largest eigenvalues, descending; NaN where the run has found fewer.
        residuals: $\lVert Hv - \lambda v\rVert$ of each, by the recurrence.
        vectors: Unit eigenvectors that belong to ``values``; fewer where values are NaN.
        converged: Whether the estimated error of each value is within the tolerance.
        products: How many products were taken.
        nodes: All Ritz values, ascending.
        weights: Squared first components of the Ritz vectors: with ``nodes`` the Gauss quadrature of the start's
            spectral measure, exact for polynomials of degree ``2 * products - 1``.
        first: $v^T H v$ of the normalized start.
    """

    values: NDArray[np.float64]
    residuals: NDArray[np.float64]
    vectors: list[Vector]
    converged: bool
    products: int
    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    first: float


class _Basis:
    """Orthonormal vectors in one growing matrix a kind, so that a projection is two matrix products."""

    def __init__(self, like: Vector) -> None:
        self._rows = [part.new_empty(4, part.numel()) for part in like]
        self.count, self._lost = 0, 0.0

    def append(self, vector: Vector) -> None:
        for index, part in enumerate(vector):
            if self.count == len(self._rows[index]):
                self._rows[index] = torch.cat([self._rows[index], torch.empty_like(self._rows[index])])
            self._rows[index][self.count] = part
        self.count += 1

    def __getitem__(self, index: int) -> Vector:
        return [rows[index] for rows in self._rows]

    def remove_from(self, vector: Vector) -> Vector:
        """Orthogonalise ``vector`` against the basis; repeat once if cancellation left only rounding error.

        Except for rounding, ``vector`` has components only along the last two basis vectors: these are removed first.
        """
        for first in (max(self.count - 2, 0), 0):
            vector = self._remove_rows(vector, first)
        before = norm(vector)
        vector = self._remove_rows(vector, 0) if self._lost > 0.1 * before else vector
        return vector

    def _remove_rows(self, vector: Vector, first: int) -> Vector:
        basis = [rows[first : self.count] for rows in self._rows]
        along = sum((rows @ part).to(vector[0].device, torch.float64) for rows, part in zip(basis, vector, strict=True))
        assert isinstance(along, Tensor)
        self._lost = float(torch.linalg.vector_norm(along))
        return [torch.addmv(part, rows.T, along.to(part), alpha=-1) for rows, part in zip(basis, vector, strict=True)]

    def combine(self, coefficients: NDArray[np.float64]) -> Vector:
        return [torch.as_tensor(coefficients).to(rows) @ rows[: self.count] for rows in self._rows]


def lanczos(
    product: Product,
    start: Vector,
    *,
    wanted: int = 1,
    tolerance: float = 0.01,
    least: int = 1,
    most: int = 40,
    decide: Callable[[bool], bool] = bool,
) -> Spectrum:
    r"""Find the largest eigenvalues of a symmetric operator, with full reorthogonalization.

    A Ritz value $\theta$ with residual r is within r of an eigenvalue, and within $r^2/\delta$ if the next
    eigenvalue is $\delta$ away (Parlett 1980, theorem 11.7.1); the run stops once the smaller of the two is below
    ``tolerance`` times $|\theta|$ for each value wanted. The gap is estimated from the Ritz values themselves.

    Args:
        product: The operator.
        start: Where to begin; an eigenvector orthogonal to it is never found, so take a random one.
        wanted: How many of the largest eigenvalues; with 0 the run goes on to ``most`` products.
        tolerance: Relative error at which to stop.
        least: Fewest products.
        most: Most products.
        decide: Given whether to stop, returns whether to: the same in all processes that must take the same products.

    Returns:
        What was found. A product that is not finite ends the run with NaN values.
    """
    length = norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    if not (0 < length < np.inf):
        return _all_nan(wanted, 0)
    basis = _Basis(start)
    vector = [part / length for part in start]
    good = False
    while True:
        basis.append(vector)
        image = product(vector)
        diagonal.append(dot(vector, image))
        image = basis.remove_from(image)
        beside.append(norm(image))
        if decide(not (np.isfinite(diagonal[-1]) and np.isfinite(beside[-1]))):
            return _all_nan(wanted, len(diagonal))
        nodes, modes = np.linalg.eigh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))
        residuals = beside[-1] * np.abs(modes[-1])
        scale = float(np.abs(nodes).max())
        # The Krylov space of the start is exhausted: its eigenvalues are exact, and no further vector exists.
        closed = beside[-1] <= 10 * _epsilon(start) * scale
        held = good
        good = _good(nodes, residuals, wanted, tolerance) if wanted else False
        if decide(closed or len(diagonal) >= most or (good and held and len(diagonal) >= least)):
            break
        vector = [part / beside[-1] for part in image]
    top = range(len(nodes) - 1, max(len(nodes) - 1 - wanted, -1), -1)
    values, errors = np.full(wanted, np.nan), np.full(wanted, np.nan)
    values[: len(top)], errors[: len(top)] = nodes[list(top)], residuals[list(top)]
    vectors = [basis.combine(modes[:, index]) for index in top]
    done = len(top) == wanted and (good or closed)
    return Spectrum(values, errors, vectors, bool(done), len(diagonal), nodes, modes[0] ** 2, diagonal[0])


def _good(nodes: NDArray[np.float64], residuals: NDArray[np.float64], wanted: int, tolerance: float) -> bool:
    if len(nodes) <= wanted:  # the gap to the other eigenvalues is not known yet
        return False
    for index in range(len(nodes) - 1, len(nodes) - 1 - wanted, -1):
        others = np.delete(np.arange(len(nodes)), index)
        gap = float(np.min(np.abs(nodes[others] - nodes[index]) - residuals[others]))
        error = residuals[index] if gap <= 0 else min(residuals[index], residuals[index] ** 2 / gap)
        if error > tolerance * abs(nodes[index]):
            return False
    return True


def _all_nan(wanted: int, products: int) -> Spectrum:
    empty = np.full(wanted, np.nan)
    return Spectrum(empty, empty, [], False, products, np.array([np.nan]), np.array([1.0]), np.nan)


def _epsilon(vector: Vector) -> float:
    return max(torch.finfo(part.dtype).eps for part in vector)


def quantiles(spectra: Sequence[Spectrum], levels: Sequence[float]) -> NDArray[np.float64]:
    """Return quantiles of the spectral density by stochastic Lanczos quadrature: the mean of the runs' measures."""
    nodes = np.concatenate([spectrum.nodes for spectrum in spectra])
    weights = np.concatenate([spectrum.weights / spectrum.weights.sum() for spectrum in spectra]) / len(spectra)
    if not np.isfinite(nodes).all():
        return np.full(len(levels), np.nan)
    order = np.argsort(nodes)
    # Half of a node's weight lies on either side of it; between nodes the density is taken as even.
    places = np.cumsum(weights[order]) - weights[order] / 2
    return np.interp(levels, places, nodes[order])


def negative_share(spectra: Sequence[Spectrum], rounding: float) -> float:
    r"""Return the share of eigenvalues that are negative beyond rounding, by stochastic Lanczos quadrature.

    In exact arithmetic a node is $q^T H q$ of a unit vector, so that only an operator with negative eigenvalues
    has a negative node. In floating point the tridiagonal matrix after k products is that of $H + E$ on the
    basis. A column of E is what a product and its projection lose, a few roundings $\epsilon \lVert H \rVert$
    (four are allowed here), so $\lVert E \rVert_F \le 4 \sqrt k\, \epsilon \lVert H \rVert$; and no
    eigenvalue moves by more (Weyl). Zero eigenvalues, of which a singular Hessian has many, come out on either side of
    zero within this bound: a node counts only below it, with the largest node for the norm. A spectrum whose truly
    negative part is nearer to zero cannot be told from one that has none.

    Args:
        spectra: Results of runs from random starts.
        rounding: Relative rounding $\epsilon$ of a product.
    """
    shares = []
    for spectrum in spectra:
        least = 4 * spectrum.products**0.5 * rounding * np.abs(spectrum.nodes).max()
        shares.append(float(spectrum.weights[spectrum.nodes < -least].sum() / spectrum.weights.sum()))
    unknown = any(np.isnan(spectrum.nodes).any() for spectrum in spectra)
    return float("nan") if unknown else float(np.mean(shares))


def hutchinson(samples: Sequence[float]) -> tuple[float, float]:
    """Return the mean of independent samples of a trace and its standard error (NaN for fewer than two)."""
    values = np.asarray(samples, dtype=float)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)
