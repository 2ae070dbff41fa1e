"""Curvature against explicit Hessians in train mode; the estimators against their laws."""

import copy
import math

import curvature_twins as twins
import numpy as np
import probe_nets as nets
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from normscope._errors import UsageError
from normscope.modules.rng import RngState
from normscope.probes import Curvature, Scope, _lanczos
from normscope.probes._hessian import Hessian, count, drawn, generator
from normscope.probes._lanczos import hutchinson, lanczos, quantiles
from normscope.probes.curvature import MEASURES

MODES = {"train": False, "frozen": True}


@pytest.mark.parametrize("net", ["mlp", "cnn", "channels", "dropout", "residual", "shared"])
def test_a_product_is_the_limit_of_gradient_differences(net):
    model, (batch,) = nets.make(net, dtype=torch.float64), nets.batches(net, 1, dtype=torch.float64)
    nets.seed_all()
    streams, replay = RngState(), twins.replay_of(model, batch)
    with replay.opened():
        direction = drawn(replay, generator(0, 0))
        found = twins.unpadded(replay, Hessian.of(replay).product(direction))
        flat = twins.unpadded(replay, direction)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ends, h = [], 1e-6
    for sign in (1, -1):
        values, at = {}, 0
        for name, parameter in model.named_parameters():
            if name in names:
                part = flat[at : at + parameter.numel()].view(parameter.shape)
                values[name], at = parameter.detach() + sign * h * part, at + parameter.numel()
        _, gradient = nets.plain_gradients(model, batch, streams, values)
        ends.append(torch.cat([gradient[name].flatten() for name in names]))
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-4, atol=1e-5)
    assert found.norm() > 0.1


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_every_measure_is_that_of_the_explicit_hessian(mode, smooth):
    model, batch = twins.tiny(smooth=smooth), twins.batch_of()
    loss, g, matrix = twins.explicit(model, batch, MODES[mode])
    values = torch.linalg.eigvalsh(matrix)
    probe = Curvature(MEASURES, top=3, tolerance=1e-9, products=100, samples=120, depth=40, runs=12, parts=3, rho=0.2)
    untouched = copy.deepcopy(model)
    found = {
        (s, n.removesuffix(f"@{mode}")): v for (s, n), v in twins.observe(model, batch, probe).items() if mode in n
    }
    assert found["", "top_eigenvalue"] == pytest.approx(values[-1].item(), rel=1e-9)
    assert found["", "eigenvalue_2"] == pytest.approx(values[-2].item(), rel=1e-8)
    assert found["", "eigenvalue_3"] == pytest.approx(values[-3].item(), rel=1e-8)
    assert found["", "converged"] == 1
    assert found["", "gradient_curvature"] == pytest.approx((g @ matrix @ g / (g @ g)).item(), rel=1e-9)
    assert abs(found["", "trace"] - values.sum()) < 4 * found["", "trace_error"]
    spread = 2 * (matrix.square().sum() - matrix.diagonal().square().sum())  # variance of one sample of signs
    assert found["", "trace_error"] == pytest.approx((spread / 120).sqrt().item(), rel=0.25)
    for level in ("p10", "p50", "p90"):
        expected = np.quantile(values.numpy(), int(level[1:]) / 100)
        assert abs(found["", f"density_{level}"] - expected) < 0.05 * values[-1].item()
    least, most = ((values < sign * 1e-3 * values[-1]).double().mean().item() for sign in (-1, 1))  # many are zero
    assert least - 0.05 < found["", "negative_share"] < most + 0.05
    at = twins.slices(model)
    sharpness = {}
    for site in ("0", "3", "6"):
        part = at[f"{site}.weight"]
        weight = model.get_submodule(site).weight.detach()
        sharpness[site] = (torch.linalg.eigvalsh(matrix[part, part])[-1] * weight.square().sum()).item()
        assert found[site, "layer_sharpness"] == pytest.approx(sharpness[site], rel=1e-7)
    assert found["", "layer_sharpness"] == pytest.approx(max(sharpness.values()), rel=1e-7)
    assert found["", "layer_converged"] == 1
    walk, theta = twins.flat_loss(untouched, batch, MODES[mode])
    moved = theta + 0.2 * theta**2 * g / (theta * g).norm()
    assert found["", "adaptive_sharpness"] == pytest.approx(walk(moved).item() - loss, rel=1e-9)
    parts = []
    for index in range(3):
        cut = tuple(tensor[8 * index : 8 * index + 8] for tensor in batch)
        _, g_part, h_part = twins.explicit(untouched, cut, MODES[mode])
        parts.append((g_part @ h_part @ g_part / (g_part @ g_part)).item())
    assert found["", "batch_sharpness"] == pytest.approx(np.mean(parts), rel=1e-9)
    assert found["", "batch_sharpness_error"] == pytest.approx(np.std(parts, ddof=1) / 3**0.5, rel=1e-9)


def narrow_statistics(model):
    """Running variances far above the batch's: the frozen net is a flat one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_var.fill_(12.0)


def test_train_mode_is_right_where_frozen_mode_differs_tenfold():
    model, batch = twins.tiny(1), twins.batch_of()
    narrow_statistics(model)
    tops = {
        mode: torch.linalg.eigvalsh(twins.explicit(model, batch, frozen)[2])[-1].item()
        for mode, frozen in MODES.items()
    }
    ratio = tops["train"] / tops["frozen"]
    assert max(ratio, 1 / ratio) > 10, ratio
    found = twins.observe(model, batch, Curvature())
    for mode, top in tops.items():
        assert found["", f"top_eigenvalue@{mode}"] == pytest.approx(top, rel=0.01)
        assert found["", f"converged@{mode}"] == 1
    assert found["", "trace@train"] != found["", "trace@frozen"]


@pytest.mark.parametrize("seed", range(6))
def test_by_default_the_top_eigenvalue_is_within_one_percent_of_the_truth(seed):
    model, batch = twins.tiny(seed), twins.batch_of(seed=seed)
    truth = torch.linalg.eigvalsh(twins.explicit(model, batch)[2])[-1].item()
    found = twins.observe(model.float(), (batch[0].float(), batch[1]), Curvature(modes=("train",), seed=seed))
    assert found["", "top_eigenvalue@train"] == pytest.approx(truth, rel=0.01)
    assert found["", "converged@train"] == 1
    assert found["", "products@train"] <= 20


def test_a_warm_start_is_as_right_and_takes_fewer_products():
    products, errors = {True: 0.0, False: 0.0}, {True: [], False: []}
    for seed in range(5):
        for warm in products:
            model = twins.tiny(seed, smooth=True)
            probe = Curvature(("eigenvalues", "trace"), modes=("train",), warm=warm, products=60)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            scope = Scope(model, nets.loss_fn, optimizer, [probe], every=1)
            for index in range(8):
                # Batches change at first, then one is kept: directions that come and go, and ones that stay.
                batch = twins.batch_of(64, seed=100 * seed + min(index, 4))
                truth = torch.linalg.eigvalsh(twins.explicit(model, batch)[2])[-1].item()
                with scope.step(batch):
                    optimizer.zero_grad()
                    nets.loss_fn(model, batch).backward()
                    optimizer.step()
                found = {record.name: record.value for record in scope.drain()}
                assert found["converged@train"] == 1
                errors[warm].append(abs(found["top_eigenvalue@train"] / truth - 1))
                products[warm] += found["products@train"] if index > 4 else 0
    assert all(np.mean(np.array(found) > 0.01) <= 0.05 for found in errors.values())
    assert products[True] < 0.85 * products[False]


def test_a_warm_start_finds_a_direction_that_was_not_there_before():
    model = nn.Linear(2, 2, bias=False).double()
    probe = Curvature(("eigenvalues",), modes=("train",), warm=True)
    for scales, sharpest in (((4.0, 1.0), 32.0), ((1.0, 9.0), 162.0)):
        at = torch.tensor(scales, dtype=twins.DOUBLE)
        found = twins.observe(model, at, probe, loss_fn=lambda net, scale: (net.weight * scale[:, None]).square().sum())
        assert found["", "top_eigenvalue@train"] == pytest.approx(sharpest, rel=0.01)
    other = nn.Linear(3, 2, bias=False).double()  # another shape: the kept vector does not fit and is not used
    at = torch.tensor((4.0, 1.0), dtype=twins.DOUBLE)
    found = twins.observe(other, at, probe, loss_fn=lambda net, scale: (net.weight * scale[:, None]).square().sum())
    assert found["", "top_eigenvalue@train"] == pytest.approx(32.0, rel=0.01)


def test_too_few_products_are_said_to_be_too_few():
    model, batch = twins.tiny(), twins.batch_of()
    found = twins.observe(model, batch, Curvature(("eigenvalues",), top=2, products=4, tolerance=1e-6))
    assert found["", "converged@train"] == 0
    assert found["", "products@train"] == 4
    assert found["", "residual_2@train"] > 1e-3


def test_a_rescaled_weight_before_batch_norm_changes_raw_but_not_normalized_sharpness():
    model, batch = twins.tiny(2, smooth=True), twins.batch_of()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-12
    probe = Curvature(("layers", "adaptive"), modes=("train",), tolerance=1e-8, products=60)
    before = twins.observe(model, batch, probe)
    with torch.no_grad():
        model[0].weight.mul_(3)
        model[0].bias.mul_(3)
    after = twins.observe(model, batch, probe)
    assert list(after) == list(before)
    for key, value in before.items():
        assert after[key] == pytest.approx(value, rel=1e-6), key


def test_more_ascent_finds_no_less_adaptive_sharpness():
    model, batch = twins.tiny(), twins.batch_of()
    found = [
        twins.observe(model, batch, Curvature(("adaptive",), ascent=n))["", "adaptive_sharpness@train"] for n in (1, 12)
    ]
    assert 0 < found[0] < found[1]


def test_without_a_norm_to_freeze_the_modes_are_one_and_read_once():
    model, batch = twins.tiny(norm=False), twins.batch_of()
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        return nets.loss_fn(model, batch)

    found = twins.observe(model, batch, Curvature(), loss_fn=loss_fn)
    assert len(calls) == 1  # one graph, and nothing else
    assert {n: v for (_, n), v in found.items() if n.endswith("train")} == {
        n.replace("frozen", "train"): v for (_, n), v in found.items() if n.endswith("frozen")
    }


def test_freezing_spares_dropout_and_is_undone():
    model, batch = nets.make("residual"), next(nets.batches("residual", 1))
    replay = twins.replay_of(model, batch)
    modes = [module.training for module in model.modules()]
    with replay.opened():
        plain = float(replay.origin().loss)
        with replay.frozen() as changed:
            assert changed
            assert model.dropout.training
            assert not model.norm1.training
            assert float(replay.origin().loss) != plain
        assert float(replay.origin().loss) == plain
        assert float(replay.evaluate().loss) == plain
    assert [module.training for module in model.modules()] == modes


def test_what_is_not_finite_is_recorded_so():
    model, batch = twins.tiny(), twins.batch_of()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    found = twins.observe(model, batch, Curvature(MEASURES, parts=2))
    flags = {name for _, name in found if name.startswith(("products", "converged", "layer_converged"))}
    assert all(math.isnan(value) for (_, name), value in found.items() if name not in flags)
    assert {found["", name] for name in flags if "converged" in name} == {0.0}


class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def test_differences_step_in_where_there_is_no_second_derivative():
    model, batch = twins.tiny(smooth=True), twins.batch_of()

    def loss_fn(square):
        return lambda model, batch: F.cross_entropy(square(model(batch[0])), batch[1])

    probe = Curvature(("eigenvalues", "gradient"), tolerance=1e-4)
    found = [twins.observe(model, batch, probe, loss_fn=loss_fn(f)) for f in (OnlyOnce.apply, lambda x: x**2)]
    for key in found[0]:
        if "residual" not in key[1]:
            assert found[0][key] == pytest.approx(found[1][key], rel=1e-5), key


@pytest.mark.parametrize("kind", ["dict", "list", "short", "number"])
def test_the_batch_is_cut_whatever_holds_it(kind):
    model, (x, y) = twins.tiny(), twins.batch_of()
    batch = {
        "dict": {"x": x, "y": y, "name": "n"},
        "list": [x, y],
        "short": (x[:5], y[:5]),
        "number": (x, y, torch.tensor(1)),
    }

    def loss_fn(model, batch):
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
        return F.cross_entropy(model(x), y)

    found = twins.observe(model, batch[kind], Curvature(("batch",)), loss_fn=loss_fn)
    if kind in ("short", "number"):
        assert found == {}
    else:
        expected = twins.observe(model, (x, y), Curvature(("batch",)))
        assert found == expected
        assert len(found) == 4


@pytest.mark.parametrize("net", ["cnn", "residual", "shared", "numpy"])
def test_all_measures_together_leave_no_trace(net):
    def make(model, optimizer):
        return Scope(model, nets.loss_fn, optimizer, probes=[Curvature(MEASURES, parts=2, ascent=2)], every=10)

    assert nets.traces(nets.train(net, make), nets.train(net)) == []


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
    model, batch = twins.tiny(), twins.batch_of()
    _, _, matrix = twins.explicit(model, batch)
    replay = twins.replay_of(model, batch)
    errors, claimed = [], []
    with replay.opened():
        for repeat in range(repeats):
            stream = generator(repeat, samples)
            signs = torch.stack(
                [twins.unpadded(replay, drawn(replay, stream, "signs")) for _ in range(samples if fresh else 1)]
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


def test_a_model_without_curvature_and_one_without_gradient():
    linear = nn.Linear(3, 1, bias=False).double()
    x = torch.ones(4, 3, dtype=torch.float64)
    found = twins.observe(linear, x, Curvature(), loss_fn=lambda m, b: m(b).mean())
    assert found["", "top_eigenvalue@train"] == 0
    assert found["", "trace@train"] == 0
    assert found["", "gradient_curvature@train"] == 0
    still = twins.observe(linear, x, Curvature(), loss_fn=lambda m, b: (m(b) - m(b).detach()).square().mean())
    assert math.isnan(still["", "gradient_curvature@train"])
    assert still["", "top_eigenvalue@train"] == pytest.approx(6, rel=1e-9)  # 2/4 X^T X of ones: 2 * 3


@pytest.mark.parametrize(
    "options",
    [
        {"measures": ("trance",)},
        {"modes": ("eval",)},
        {"modes": ()},
        {"top": 0},
        {"products": 1},
        {"parts": 1},
        {"rho": 0.0},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="curvature"):
        Curvature(**options)
