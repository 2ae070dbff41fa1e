"""Residual networks by scheme: what theory says of each at initialisation, and that they train."""

import copy
import math

import pytest
import torch
from torch import nn

from normscope._errors import UsageError
from normscope.builders import SCHEMES, residual_cnn, residual_mlp, scalar_groups
from normscope.layers import BatchNorm1d, BatchNorm2d, ScalarBias, ScalarGain

GAUSSIAN = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))


def mlp(scheme, depth=8, width=512, **options):
    return residual_mlp(depth, width, **{"inputs": 64, "outputs": 10, "scheme": scheme, "seed": 0, **options})


@torch.no_grad()
def signals(net, x):
    """Mean square of the stream after the stem and after each block."""
    return [float(part.double().square().mean()) for part in net.stream(x)]


def averaged(make, x, seeds=4):
    """Geometric mean over seeds of the signal after each block, by the signal after the stem."""
    runs = torch.tensor([signals(make(seed), x) for seed in range(seeds)]).log()
    return (runs - runs[:, :1]).mean(0).exp().tolist()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_signal_of_the_stream(scheme):
    # 8 blocks of width 512: the predictions are limits of wide layers
    found = averaged(lambda seed: mlp(scheme, seed=seed), GAUSSIAN)
    wanted = [SCHEMES[scheme].signal(block, SCHEMES[scheme].alpha or 0.0) for block in range(9)]
    assert found == pytest.approx(wanted, rel=0.12 if scheme == "none" else 0.06)


def test_signals_are_those_of_the_papers():
    assert [SCHEMES["batch"].signal(n, 0) for n in (0, 1, 5)] == [1, 2, 6]
    assert [SCHEMES["none"].signal(n, 0) for n in (0, 1, 5)] == [1, 2, 32]
    assert SCHEMES["nf"].signal(5, 0.2) == pytest.approx(1.2)
    assert {SCHEMES[s].signal(9, SCHEMES[s].alpha) for s in ("fixup", "skipinit", "rezero")} == {1.0}


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["batch", "layer", "group", "none"])
def test_share_of_the_branches(scheme):
    net = mlp(scheme, depth=20)
    stream = net.stream(GAUSSIAN)
    for blocks in (1, 5, 10, 20):
        added = float((stream[blocks] - stream[blocks - 1]).square().mean() / stream[blocks].square().mean())
        wanted = 0.5 if scheme == "none" else 1 / (blocks + 1)
        assert added == pytest.approx(wanted, rel=0.2)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["fixup", "skipinit", "rezero"])
def test_the_stack_is_the_identity_at_first(scheme):
    for net, x in (
        (mlp(scheme, depth=32, width=64), GAUSSIAN),
        (residual_cnn(4, 16, stages=1, scheme=scheme, seed=0), torch.randn(2, 3, 8, 8)),
    ):
        first, *_, last = net.stream(x)
        assert torch.equal(first, last)


@torch.no_grad()
def test_fixup_starts_at_outputs_of_zero():
    assert torch.equal(mlp("fixup")(GAUSSIAN), torch.zeros(256, 10))
    assert torch.equal(residual_cnn(3, 8, scheme="fixup")(torch.randn(2, 3, 16, 16)), torch.zeros(2, 10))


@pytest.mark.parametrize(("layers", "depth"), [(2, 1), (2, 16), (3, 16), (2, 64)])
def test_fixup_scales_the_first_layers_of_each_branch(layers, depth):
    net = mlp("fixup", depth=depth, width=128, branch_layers=layers)
    for block in net.blocks:
        *first, last = [part for part in block.branch if isinstance(part, nn.Linear)]
        assert len(first) == layers - 1
        assert not last.weight.any()
        for layer in first:
            wanted = math.sqrt(2 / 128) * depth ** (-1 / (2 * layers - 2))
            assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.05)
            assert layer.bias is None
        # a scalar bias before each activation and each layer, one factor a branch
        assert sum(isinstance(part, ScalarBias) for part in block.branch) == 2 * layers
        (gain,) = [part for part in block.branch if isinstance(part, ScalarGain)]
        assert gain.value.item() == 1


def test_one_layer_a_fixup_branch_is_zero():
    net = mlp("fixup", depth=4, width=16, branch_layers=1)
    assert all(not part.weight.any() for block in net.blocks for part in block.branch if isinstance(part, nn.Linear))


def test_skipinit_with_its_other_factor():
    found = averaged(lambda seed: mlp("skipinit", depth=16, alpha=0.25, seed=seed), GAUSSIAN)
    assert found[-1] == pytest.approx((1 + 0.25**2) ** 16, rel=0.1)


def recorded(net, kind, x):
    """Outputs of all modules of a kind."""
    found = []
    hooks = [m.register_forward_hook(lambda m, i, y: found.append(y)) for m in net.modules() if isinstance(m, kind)]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.SiLU])
def test_normalizer_free_activations_have_unit_variance(activation):
    # the known scales divide the stream, so that each activation sees a Gaussian of variance 1
    net = mlp("nf", depth=12, width=512, activation=activation)
    fixed = [m for m in net.modules() if isinstance(m, ScalarGain)]
    assert not any(list(m.parameters()) for m in fixed)
    seen = recorded(net, activation, GAUSSIAN)
    gains = [m for block in net.blocks for m in [*block.entry, *block.branch] if isinstance(m, ScalarGain)]
    gain = max(float(m.value) for m in gains)
    assert len(seen) == 2 * 12 + 1
    for part in seen[:-1]:
        assert float((gain * part).var(0).mean()) == pytest.approx(1, rel=0.1)


def test_normalizer_free_scales_start_anew_at_each_stage():
    net = residual_cnn(9, 8, scheme="nf", padding_mode="circular", seed=0)
    betas = [float(block.entry[0].value) ** -2 for block in net.blocks]
    step = 0.2**2
    wanted = [1, 1 + step, 1 + 2 * step]  # the stream that enters each block
    wanted += [1 + 3 * step, 1 + step, 1 + 2 * step] * 2
    assert betas == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_signal_of_a_convolutional_stream(scheme):
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def make(seed):
        return residual_cnn(4, 64, stages=1, scheme=scheme, padding_mode="circular", seed=seed)

    found = averaged(make, x, seeds=3)
    wanted = [SCHEMES[scheme].signal(block, SCHEMES[scheme].alpha or 0.0) for block in range(5)]
    assert found == pytest.approx(wanted, rel=0.25 if scheme == "none" else 0.15)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shapes_of_a_convolutional_network(scheme):
    net = residual_cnn(6, 8, channels=1, outputs=5, scheme=scheme)
    x = torch.randn(3, 1, 16, 16)
    assert [tuple(part.shape[1:]) for part in net.stream(x)] == [(8, 16, 16)] * 3 + [(16, 8, 8)] * 2 + [(32, 4, 4)] * 2
    assert net(x).shape == (3, 5)
    assert net(torch.randn(3, 1, 9, 7)).shape == (3, 5)


@pytest.mark.trains
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_parameter_learns(scheme, kind):
    generator = torch.Generator().manual_seed(3)
    if kind == "mlp":
        net, x = mlp(scheme, depth=3, width=32), torch.randn(64, 64, generator=generator)
    else:
        net, x = residual_cnn(3, 8, scheme=scheme, seed=0), torch.randn(16, 3, 8, 8, generator=generator)
    before = copy.deepcopy(net.state_dict())
    target = torch.randint(0, 10, (len(x),), generator=generator)
    optimizer = torch.optim.SGD(scalar_groups(net, 0.1), momentum=0.9)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    for name, parameter in net.named_parameters():
        assert not torch.equal(before[name], parameter), name


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_one_seed_draws_the_same_weights_for_every_scheme(kind):
    def directions(scheme):
        net = mlp(scheme, depth=3, width=32) if kind == "mlp" else residual_cnn(3, 8, scheme=scheme, seed=0)
        found = []
        for name, parameter in net.state_dict().items():
            is_weight = parameter.ndim > 1 and "factor" not in name
            if is_weight:
                flat = parameter.flatten()
                found.append(flat / flat.norm() if flat.any() else None)
        return found

    base = directions("none")
    for scheme in SCHEMES:
        found = directions(scheme)
        assert len(found) == len(base)
        for ours, theirs in zip(found, base, strict=True):
            if ours is not None:
                torch.testing.assert_close(ours, theirs)


def test_a_seed_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    first, second = mlp("nf", width=16), mlp("nf", width=16)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, mlp("nf", width=16, seed=1).head.weight)
    torch.manual_seed(0)
    first = mlp("nf", width=16, seed=None)
    torch.manual_seed(0)
    assert torch.equal(first.head.weight, mlp("nf", width=16, seed=None).head.weight)


def test_norms_are_ours_and_only_where_asked_for():
    assert sum(isinstance(m, BatchNorm1d) for m in mlp("batch", depth=3, width=16).modules()) == 7
    assert sum(isinstance(m, BatchNorm2d) for m in residual_cnn(3, 8).modules()) == 7
    for scheme in ("none", "fixup", "skipinit", "rezero", "nf"):
        assert not any("Norm" in type(m).__name__ for m in mlp(scheme, depth=3, width=16).modules())


def test_parameter_groups():
    net = mlp("fixup", depth=3, width=16)
    rest, scalars = scalar_groups(net, 0.5)
    assert scalars["lr"] == pytest.approx(0.05)
    assert rest["lr"] == 0.5
    assert all(p.ndim == 0 for p in scalars["params"])
    assert len(rest["params"]) + len(scalars["params"]) == len(list(net.parameters()))
    assert len(scalars["params"]) == 3 * (4 + 1) + 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_copies_and_state(scheme):
    net = mlp(scheme, depth=2, width=16)
    other = mlp(scheme, depth=2, width=16, seed=5)
    other.load_state_dict(net.state_dict())
    wanted = net.eval()(GAUSSIAN)
    assert torch.equal(other.eval()(GAUSSIAN), wanted)
    assert torch.equal(copy.deepcopy(net)(GAUSSIAN), wanted)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("choose one of none, batch", lambda: mlp("batchnorm")),
        ("leave alpha out", lambda: mlp("batch", alpha=0.1)),
        ("depth is a size", lambda: mlp("batch", depth=0)),
        ("branch_layers is a size", lambda: mlp("batch", branch_layers=0)),
        ("5 equal groups", lambda: mlp("group", width=16, groups=5)),
        ("multiple of 3", lambda: residual_cnn(4)),
    ],
)
def test_bad_arguments(words, call):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
