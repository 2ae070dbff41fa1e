"""Lanczos, quadrature and Hutchinson against matrices written out, and against their laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kit import explicit_hessians as hessians
from normscope.probes import _lanczos  # white box: its orthogonalization is switched off

# white box: random vectors are drawn as the probes draw them
from normscope.probes._hessian import count, drawn, generator

# white box: the estimators are held against matrices that no network has.
from normscope.probes._lanczos import hutchinson, lanczos, negative_share, quantiles


def symmetric(size, seed):
    root = np.random.default_rng(seed).normal(size=(size, size))
    return torch.as_tensor(root + root.T)


def operator(matrix):
    return lambda vector: [matrix @ vector[0]]


def normal(size, seed):
    return [torch.as_tensor(np.random.default_rng([seed, 1]).normal(size=size))]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 1000), st.integers(1, 3))
def test_lanczos_with_room_enough_is_exact(size, seed, wanted):
    matrix = symmetric(size, seed)
    found = lanczos(operator(matrix), normal(size, seed), wanted=wanted, tolerance=1e-12, most=size + 5)
    values = np.linalg.eigvalsh(matrix)[::-1][:wanted]
    scale = np.abs(values).max() + 1
    assert np.allclose(found.values[: len(values)], values, atol=1e-8 * scale)
    assert np.isnan(found.values[len(values) :]).all()
    for value, residual, vector in zip(values, found.residuals, found.vectors, strict=False):
        true = (matrix @ vector[0] - value * vector[0]).norm()
        assert vector[0].norm() == pytest.approx(1, abs=1e-9)
        assert abs(true - residual) < 1e-7 * scale


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 30), st.integers(0, 1000), st.integers(2, 6))
def test_the_residual_and_the_quadrature_are_exact_after_a_few_products(size, seed, most):
    matrix, start = symmetric(size, seed), normal(size, seed)
    found = lanczos(operator(matrix), start, wanted=1, tolerance=1e-15, most=most)
    vector = found.vectors[0][0]
    assert (matrix @ vector - found.values[0] * vector).norm() == pytest.approx(found.residuals[0], rel=1e-6)
    v = start[0] / start[0].norm()
    scale = np.abs(np.linalg.eigvalsh(matrix)).max()
    for degree in range(2 * most):
        moment = v @ torch.linalg.matrix_power(matrix / scale, degree) @ v
        assert (found.weights @ (found.nodes / scale) ** degree) == pytest.approx(moment.item(), abs=1e-10)


def spread(size=300):
    """A few outliers over a bulk, as of a trained net: Lanczos converges there and then loses orthogonality."""
    values = np.concatenate([np.random.default_rng(0).normal(size=size - 4) * 0.3, [40.0, 30.0, 20.0, 10.0]])
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))
    return torch.as_tensor(turn * values @ turn.T), np.sort(values)[::-1]


def several(monkeypatch, orthogonal):
    if not orthogonal:
        monkeypatch.setattr(_lanczos._Basis, "remove_from", lambda self, v: self_last_two(self, v))
    matrix, values = spread()
    found = lanczos(operator(matrix), normal(300, 5), wanted=5, tolerance=1e-13, most=60)
    return np.allclose(found.values, values[:5], rtol=1e-2)


def self_last_two(basis, vector):
    for row in basis._rows[0][max(basis.count - 2, 0) : basis.count]:
        vector = [vector[0] - (row @ vector[0]) * row]
    return vector


def test_reorthogonalization_keeps_ghosts_away_and_the_check_sees_them(monkeypatch):
    assert several(monkeypatch, orthogonal=True)
    assert not several(monkeypatch, orthogonal=False)


def trace_errors(samples, repeats, *, fresh=True):
    """Errors and claimed standard errors of repeated estimates on a net's Hessian in train mode."""
    model, batch = hessians.small_mlp(), hessians.small_batch()
    _, _, matrix = hessians.explicit(model, batch)
    replay = hessians.replay_of(model, batch)
    errors, claimed = [], []
    with replay.opened():
        for repeat in range(repeats):
            stream = generator(repeat, samples)
            signs = torch.stack(
                [hessians.unpadded(replay, drawn(replay, stream, "signs")) for _ in range(samples if fresh else 1)]
            )
            values = ((signs @ matrix) * signs).sum(1).repeat(1 if fresh else samples)
            mean, error = hutchinson(values.tolist())
            errors.append(mean - matrix.trace().item())
            claimed.append(error)
        assert count(replay) == matrix.shape[0]
    return np.sqrt(np.mean(np.square(errors))), np.sqrt(np.mean(np.square(claimed)))


@pytest.mark.parametrize("fresh", [True, False])
def test_the_trace_converges_as_one_over_the_root_of_the_samples(fresh):
    sizes = [4, 16, 64]
    found = [trace_errors(n, 120, fresh=fresh) for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log([error for error, _ in found]), 1)[0]
    honest = all(abs(claimed / error - 1) < 0.25 for error, claimed in found)
    assert bool(abs(slope + 0.5) < 0.1 and honest) is fresh  # vectors that are not independent do not pass


def test_the_quadrature_converges_to_the_quantiles():
    values = np.sort(np.random.default_rng(0).normal(size=400))
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(400, 400)))
    matrix = torch.as_tensor(turn * values @ turn.T)
    levels = (0.1, 0.5, 0.9)

    def error(depth, runs):
        spectra = [lanczos(operator(matrix), normal(400, 7 + run), wanted=0, most=depth) for run in range(runs)]
        return np.abs(quantiles(spectra, levels) - np.quantile(values, levels)).max()

    assert error(40, 16) < 0.05
    assert error(40, 16) < error(4, 1)


def test_a_node_counts_as_negative_beyond_the_rounding_of_all_products():
    """Of the norm 2 after 4 products: 4 * 2 * eps * 2."""
    eps = 1e-7
    bound = 16 * eps

    def planted(node):
        return _lanczos.Spectrum(
            np.empty(0), np.empty(0), [], False, 4, np.array([node, 0.5, 2.0]), np.array([0.3, 0.3, 0.4]), 1.0
        )

    assert negative_share([planted(-0.9 * bound)], eps) == 0
    assert negative_share([planted(-1.1 * bound)], eps) == pytest.approx(0.3)
    assert negative_share([planted(-1.0), planted(1.0)], eps) == pytest.approx(0.15)
    assert np.isnan(negative_share([planted(-1.0), planted(np.nan)], eps))
