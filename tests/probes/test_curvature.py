"""Curvature against explicit Hessians in train mode."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit import explicit_hessians as hessians, varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from kit.heard import Heard
from kit.plain_gradients import plain_gradients
from kit.readings import read_steps
from kit.traces import differences
from kit.training_loops import seed_all, train
from normscope._errors import UsageError
from normscope.modules.rng import RngState
from normscope.probes import Curvature, Recorder

# white box: products with the Hessian are held against differences of gradients by themselves, in every network.
from normscope.probes._hessian import Hessian, drawn, generator
from normscope.probes.curvature import MEASURES

pytestmark = EMPTY_STEPS

MODES = {"train": False, "frozen": True}


@pytest.mark.parametrize("net", ["mlp", "cnn", "channels", "dropout", "residual", "shared"])
def test_a_product_is_the_limit_of_gradient_differences(net):
    model, (batch,) = nets.make(net, dtype=torch.float64), nets.batches(net, 1, dtype=torch.float64)
    seed_all()
    streams, replay = RngState(), hessians.replay_of(model, batch)
    with replay.opened():
        direction = drawn(replay, generator(0, 0))
        found = hessians.unpadded(replay, Hessian.of(replay).product(direction))
        flat = hessians.unpadded(replay, direction)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ends, h = [], 1e-6
    for sign in (1, -1):
        values, at = {}, 0
        for name, parameter in model.named_parameters():
            if name in names:
                part = flat[at : at + parameter.numel()].view(parameter.shape)
                values[name], at = parameter.detach() + sign * h * part, at + parameter.numel()
        _, gradient = plain_gradients(model, batch, streams, values)
        ends.append(torch.cat([gradient[name].flatten() for name in names]))
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-4, atol=1e-5)
    assert found.norm() > 0.1


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_every_measure_is_that_of_the_explicit_hessian(mode, smooth):
    model, batch = hessians.small_mlp(smooth=smooth), hessians.small_batch()
    loss, g, matrix = hessians.explicit(model, batch, MODES[mode])
    values = torch.linalg.eigvalsh(matrix)
    probe = Curvature(MEASURES, top=3, tolerance=1e-9, products=100, samples=120, depth=40, runs=12, parts=3, rho=0.2)
    untouched = copy.deepcopy(model)
    found = {(s, n.removesuffix(f"@{mode}")): v for (s, n), v in read_steps(model, batch, probe).items() if mode in n}
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
    at = hessians.slices(model)
    sharpness = {}
    for site in ("0", "3", "6"):
        part = at[f"{site}.weight"]
        weight = model.get_submodule(site).weight.detach()
        sharpness[site] = (torch.linalg.eigvalsh(matrix[part, part])[-1] * weight.square().sum()).item()
        assert found[site, "layer_sharpness"] == pytest.approx(sharpness[site], rel=1e-7)
    assert found["", "layer_sharpness"] == pytest.approx(max(sharpness.values()), rel=1e-7)
    assert found["", "layer_converged"] == 1
    walk, theta = hessians.flat_loss(untouched, batch, MODES[mode])
    moved = theta + 0.2 * theta**2 * g / (theta * g).norm()
    assert found["", "adaptive_sharpness"] == pytest.approx(walk(moved).item() - loss, rel=1e-9)
    parts = []
    for index in range(3):
        cut = tuple(tensor[8 * index : 8 * index + 8] for tensor in batch)
        _, g_part, h_part = hessians.explicit(untouched, cut, MODES[mode])
        parts.append((g_part @ h_part @ g_part / (g_part @ g_part)).item())
    assert found["", "batch_sharpness"] == pytest.approx(np.mean(parts), rel=1e-9)
    assert found["", "batch_sharpness_error"] == pytest.approx(np.std(parts, ddof=1) / 3**0.5, rel=1e-9)


def narrow_statistics(model):
    """Running variances far above the batch's: the frozen net is a flat one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_var.fill_(12.0)


def test_train_mode_is_right_where_frozen_mode_differs_tenfold():
    model, batch = hessians.small_mlp(1), hessians.small_batch()
    narrow_statistics(model)
    tops = {
        mode: torch.linalg.eigvalsh(hessians.explicit(model, batch, frozen)[2])[-1].item()
        for mode, frozen in MODES.items()
    }
    ratio = tops["train"] / tops["frozen"]
    assert max(ratio, 1 / ratio) > 10, ratio
    found = read_steps(model, batch, Curvature())
    for mode, top in tops.items():
        assert found["", f"top_eigenvalue@{mode}"] == pytest.approx(top, rel=0.01)
        assert found["", f"converged@{mode}"] == 1
    assert found["", "trace@train"] != found["", "trace@frozen"]


@pytest.mark.parametrize("seed", range(6))
def test_by_default_the_top_eigenvalue_is_within_one_percent_of_the_truth(seed):
    model, batch = hessians.small_mlp(seed), hessians.small_batch(seed=seed)
    truth = torch.linalg.eigvalsh(hessians.explicit(model, batch)[2])[-1].item()
    found = read_steps(model.float(), (batch[0].float(), batch[1]), Curvature(modes=("train",), seed=seed))
    assert found["", "top_eigenvalue@train"] == pytest.approx(truth, rel=0.01)
    assert found["", "converged@train"] == 1
    assert found["", "products@train"] <= 20


def test_a_warm_start_is_as_right_and_takes_fewer_products():
    products, errors = {True: 0.0, False: 0.0}, {True: [], False: []}
    truths = {}  # the same for both: the probe leaves no trace in the training
    for seed in range(5):
        for warm in products:
            model = hessians.small_mlp(seed, smooth=True)
            probe = Curvature(("eigenvalues", "trace"), modes=("train",), warm=warm, products=60)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            scope = Recorder(model, nets.loss_fn, optimizer, [probe], every=1)
            for index in range(8):
                # Batches change at first, then one is kept: directions that come and go, and ones that stay.
                batch = hessians.small_batch(64, seed=100 * seed + min(index, 4))
                if warm:
                    truths[seed, index] = torch.linalg.eigvalsh(hessians.explicit(model, batch)[2])[-1].item()
                with scope.step(batch):
                    optimizer.zero_grad()
                    nets.loss_fn(model, batch).backward()
                    optimizer.step()
                found = {record.name: record.value for record in scope.drain()}
                assert found["converged@train"] == 1
                errors[warm].append(abs(found["top_eigenvalue@train"] / truths[seed, index] - 1))
                products[warm] += found["products@train"] if index > 4 else 0
    assert all(np.mean(np.array(found) > 0.01) <= 0.05 for found in errors.values())
    assert products[True] < 0.85 * products[False]


def test_a_warm_start_finds_a_direction_that_was_not_there_before():
    model = nn.Linear(2, 2, bias=False).double()
    probe = Curvature(("eigenvalues",), modes=("train",), warm=True)
    for scales, sharpest in (((4.0, 1.0), 32.0), ((1.0, 9.0), 162.0)):
        at = torch.tensor(scales, dtype=hessians.DOUBLE)
        found = read_steps(model, at, probe, loss_fn=lambda net, scale: (net.weight * scale[:, None]).square().sum())
        assert found["", "top_eigenvalue@train"] == pytest.approx(sharpest, rel=0.01)
    other = nn.Linear(3, 2, bias=False).double()  # another shape: the kept vector does not fit and is not used
    at = torch.tensor((4.0, 1.0), dtype=hessians.DOUBLE)
    found = read_steps(other, at, probe, loss_fn=lambda net, scale: (net.weight * scale[:, None]).square().sum())
    assert found["", "top_eigenvalue@train"] == pytest.approx(32.0, rel=0.01)


def test_too_few_products_are_said_to_be_too_few():
    model, batch = hessians.small_mlp(), hessians.small_batch()
    found = read_steps(model, batch, Curvature(("eigenvalues",), top=2, products=4, tolerance=1e-6))
    assert found["", "converged@train"] == 0
    assert found["", "products@train"] == 4
    assert found["", "residual_2@train"] > 1e-3


def test_a_rescaled_weight_before_batch_norm_changes_raw_but_not_normalized_sharpness():
    model, batch = hessians.small_mlp(2, smooth=True), hessians.small_batch()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-12
    probe = Curvature(("layers", "adaptive"), modes=("train",), tolerance=1e-8, products=60)
    before = read_steps(model, batch, probe)
    with torch.no_grad():
        model[0].weight.mul_(3)
        model[0].bias.mul_(3)
    after = read_steps(model, batch, probe)
    assert list(after) == list(before)
    for key, value in before.items():
        assert after[key] == pytest.approx(value, rel=1e-6), key


def test_more_ascent_finds_no_less_adaptive_sharpness():
    model, batch = hessians.small_mlp(), hessians.small_batch()
    found = [
        read_steps(model, batch, Curvature(("adaptive",), ascent=n))["", "adaptive_sharpness@train"] for n in (1, 12)
    ]
    assert 0 < found[0] < found[1]


def test_without_a_norm_to_freeze_the_modes_are_one_and_read_once():
    model, batch = hessians.small_mlp(norm=False), hessians.small_batch()
    calls = Heard()

    def loss_fn(model, batch):
        calls.append(1)
        return nets.loss_fn(model, batch)

    found = read_steps(model, batch, Curvature(), loss_fn=loss_fn)
    assert len(calls.all()) == 1  # one graph, and nothing else
    assert {n: v for (_, n), v in found.items() if n.endswith("train")} == {
        n.replace("frozen", "train"): v for (_, n), v in found.items() if n.endswith("frozen")
    }


def test_freezing_spares_dropout_and_is_undone():
    model, batch = nets.make("residual"), next(nets.batches("residual", 1))
    replay = hessians.replay_of(model, batch)
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
    model, batch = hessians.small_mlp(), hessians.small_batch()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    found = read_steps(model, batch, Curvature(MEASURES, parts=2))
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
    model, batch = hessians.small_mlp(smooth=True), hessians.small_batch()

    def loss_fn(square):
        return lambda model, batch: F.cross_entropy(square(model(batch[0])), batch[1])

    probe = Curvature(("eigenvalues", "gradient"), tolerance=1e-4)
    found = [read_steps(model, batch, probe, loss_fn=loss_fn(f)) for f in (OnlyOnce.apply, lambda x: x**2)]
    for key in found[0]:
        if "residual" not in key[1]:
            assert found[0][key] == pytest.approx(found[1][key], rel=1e-5), key


class WithALinearTerm(nn.Module):
    """A network beside a parameter in which the loss is linear, so that no second derivative reaches it."""

    def __init__(self):
        super().__init__()
        self.inner = hessians.small_mlp(norm=False, smooth=True)
        self.free = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        return self.inner(x), self.free


def with_a_linear_term(model, batch):
    out, free = model(batch[0])
    return F.cross_entropy(out, batch[1]) + (free * torch.arange(4.0, dtype=torch.float64)).sum()


def test_a_parameter_in_which_the_loss_is_linear_has_zero_in_every_product():
    model, batch = WithALinearTerm(), hessians.small_batch()
    replay = hessians.replay_of(model, batch, with_a_linear_term)
    with replay.opened():
        direction = drawn(replay, generator(0, 0))
        hessian = Hessian.of(replay)
        found = hessians.unpadded(replay, hessian.product(direction))
        flat = hessians.unpadded(replay, direction)
    _, _, matrix = hessians.explicit(model, batch, loss_fn=with_a_linear_term)
    torch.testing.assert_close(found, matrix @ flat, rtol=1e-9, atol=1e-12)
    at = hessians.slices(model)["free"]
    assert not found[at].any()
    assert flat[at].any()
    assert hessian.exact


@pytest.mark.parametrize("kind", ["dict", "list", "short", "number"])
def test_the_batch_is_cut_whatever_holds_it(kind):
    model, (x, y) = hessians.small_mlp(), hessians.small_batch()
    batch = {
        "dict": {"x": x, "y": y, "name": "n"},
        "list": [x, y],
        "short": (x[:5], y[:5]),
        "number": (x, y, torch.tensor(1)),
    }

    def loss_fn(model, batch):
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
        return F.cross_entropy(model(x), y)

    found = read_steps(model, batch[kind], Curvature(("batch",)), loss_fn=loss_fn)
    if kind in ("short", "number"):
        assert found == {}
    else:
        expected = read_steps(model, (x, y), Curvature(("batch",)))
        assert found == expected
        assert len(found) == 4


@pytest.mark.parametrize("net", ["cnn", "residual", "shared", "numpy"])
def test_all_measures_together_leave_no_trace(net):
    def make(model, optimizer):
        return Recorder(model, nets.loss_fn, optimizer, probes=[Curvature(MEASURES, parts=2, ascent=2)], every=10)

    assert differences(train(net, make), train(net)) == []


def test_a_model_without_curvature_and_one_without_gradient():
    linear = nn.Linear(3, 1, bias=False).double()
    x = torch.ones(4, 3, dtype=torch.float64)
    found = read_steps(linear, x, Curvature(), loss_fn=lambda m, b: m(b).mean())
    assert found["", "top_eigenvalue@train"] == 0
    assert found["", "trace@train"] == 0
    assert found["", "gradient_curvature@train"] == 0
    still = read_steps(linear, x, Curvature(), loss_fn=lambda m, b: (m(b) - m(b).detach()).square().mean())
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


# The share of negative eigenvalues


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def logistic(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class OnceDifferentiable(torch.autograd.Function):
    """The identity, whose gradient has no gradient: products with the Hessian are differences then."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


def in_bfloat16(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return squares(lambda x: model(x).float(), batch)


def by_differences(model, batch):
    return squares(lambda x: OnceDifferentiable.apply(model(x)), batch)


@pytest.mark.parametrize("depth", [12, 40])
@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("loss", [squares, logistic, in_bfloat16, by_differences])
def test_a_convex_loss_with_flat_directions_has_no_negative_share(loss, offset, depth):
    """More parameters than samples: most eigenvalues are zero, and their nodes lie on either side of it."""
    stream = torch.Generator().manual_seed(8)
    x = torch.randn(20, 45, generator=stream) + offset
    labels = torch.randint(3, (20,), generator=stream)
    torch.manual_seed(8)
    target = labels if loss is logistic else torch.randn(20, 3, generator=stream)
    probe = Curvature(("density",), modes=("train",), depth=depth)
    found = read_steps(nn.Linear(45, 3), (x, target), probe, lr=0.01, loss_fn=loss)
    assert found["", "negative_share@train"] == 0


class Saddle(nn.Module):
    """Half the sum of squares, each with its own factor: these are the eigenvalues, on the axes."""

    def __init__(self, eigenvalues):
        super().__init__()
        self.at = nn.Parameter(torch.linspace(-1, 1, len(eigenvalues)))
        self.register_buffer("eigenvalues", torch.as_tensor(eigenvalues))

    def forward(self, x):
        return x.mean() * (self.eigenvalues * self.at.square()).sum() / 2


@pytest.mark.parametrize("size", [-2.0, -1e-2, -1e-4])
def test_the_negative_share_of_a_saddle_is_exact(size):
    """A start of signs has as much of every axis, so that the quadrature has no noise here."""
    model = Saddle([3.0] * 25 + [0.0] * 40 + [size] * 35)
    probe = Curvature(("density",), modes=("train",))
    batch = (torch.ones(4, 1), torch.zeros(4))
    found = read_steps(model, batch, probe, lr=0.01, loss_fn=lambda model, batch: model(batch[0]))
    assert found["", "negative_share@train"] == pytest.approx(0.35, abs=1e-3)
