"""Any norm to any other, keeping what was learned."""

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from kit.small_convnets import assert_same_state, images, small_convnet, state_of, trained_looking, twin
from normscope import layers, surgery
from normscope._errors import UsageError

MAKERS = {
    "batch": lambda c: layers.BatchNorm2d(c),
    "torch-batch": lambda c: nn.BatchNorm2d(c),
    "group": lambda c: nn.GroupNorm(2, c),
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "layer": lambda c: nn.GroupNorm(1, c),
}


def expected(kind, x, w, b, eps):
    """The norms of a map (N, C, H, W), by their definitions."""
    if kind in ("batch", "torch-batch"):
        axes = (0, 2, 3)
    elif kind == "instance":
        axes = (2, 3)
    elif kind == "group":
        n, c, h, v = x.shape
        y = x.view(n, 2, c // 2, h, v)
        y = (y - y.mean((2, 3, 4), keepdim=True)) / (y.var((2, 3, 4), keepdim=True, correction=0) + eps).sqrt()
        return y.view_as(x) * w.view(-1, 1, 1) + b.view(-1, 1, 1)
    elif kind == "dyt":
        return torch.tanh(0.5 * x) * w.view(-1, 1, 1) + b.view(-1, 1, 1)
    elif kind == "affine":
        return x * w.view(-1, 1, 1) + b.view(-1, 1, 1)
    else:
        axes = (1, 2, 3)
    mean = 0 if kind == "rms" else x.mean(axes, keepdim=True)
    y = (x - mean) / ((x - mean).square().mean(axes, keepdim=True) + eps).sqrt()
    return y * w.view(-1, 1, 1) + b.view(-1, 1, 1)


@pytest.mark.parametrize(
    ("of", "to"),
    list(itertools.product(MAKERS, ["batch", "torch-batch", "group", "layer", "instance", "rms", "dyt", "affine"])),
)
def test_every_pair_has_the_function_of_the_new_norm_with_the_old_gain(of, to):
    model = trained_looking(nn.Sequential(nn.Identity(), MAKERS[of](6))).double()
    w, b, eps = model[1].weight, model[1].bias, model[1].eps
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 + 1
    report = surgery.convert(model, to, groups=2, example=x)
    if not report.done:
        assert "already" in report.skipped[0].why
        assert of == to
    inner = model[1].norm if to == "dyt" else model[1]
    assert inner.weight is w
    assert inner.bias is b
    torch.testing.assert_close(model[1](x), expected(to, x, w, b, eps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("to", ["batch", "torch-batch", "group", "layer", "instance", "rms", "dyt", "affine"])
@pytest.mark.parametrize("last", [False, True], ids=["channels second", "channels last"])
def test_what_a_norm_is_already_it_is_not_converted_to(to, last):
    """A second conversion finds nothing to do and says so; the norm keeps its gain and its function in any case."""
    model = trained_looking(nn.Sequential(nn.Identity(), nn.LayerNorm(6) if last else nn.BatchNorm2d(6))).double()
    x = torch.randn(4, 6, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = surgery.convert(model, to, groups=2, example=x)
    gain, y, norm = model[1].state_dict(), model[1](x), model[1]
    second = surgery.convert(model, to, groups=2, example=x)
    if second.done:
        pytest.fail(f"{second['1']} after {first}")
    assert not second.skipped or "already" in second.skipped[0].why
    assert model[1] is norm
    assert all(torch.equal(model[1].state_dict()[key], value) for key, value in gain.items())
    torch.testing.assert_close(model[1](x), y)


@pytest.mark.parametrize("to", ["batch", "torch-batch", "group", "layer", "instance"])
@pytest.mark.parametrize("last", [False, True], ids=["channels second", "channels last"])
def test_of_the_same_kind_a_norm_with_another_eps_is_another(to, last):
    model = trained_looking(nn.Sequential(nn.Identity(), nn.LayerNorm(6) if last else nn.BatchNorm2d(6)))
    x, found = torch.randn(4, 6, 3, 6), []
    for eps in (0.3, 0.7):
        surgery.convert(model, to, groups=2, example=x, eps=eps)
        found += [module.eps for module in model.modules() if hasattr(module, "eps")]
    assert found == [0.3, 0.7]


def test_the_report_names_the_class_of_the_old_norm_and_of_the_new():
    for old, to, new in (
        (nn.BatchNorm2d(8), "group", "GroupNorm(4, 8)"),
        (nn.GroupNorm(2, 8), "torch-batch", "BatchNorm2d"),
        (nn.InstanceNorm2d(8), "none", "Identity"),
        (nn.BatchNorm2d(8), lambda norm: nn.Softplus(beta=2), "Softplus"),
    ):
        report = surgery.convert(nn.Sequential(nn.Identity(), old), to, groups=4, example=torch.randn(2, 8, 3, 3))
        assert report["1"].what == f"{type(old).__name__} -> {new}"
        assert f"1: {report['1'].what}" in str(report)


def test_opacus_fixer_drops_the_gain_by_its_formula():
    """Opacus' fixer: ``nn.GroupNorm(min(32, C), C, affine=norm.affine)``, and nothing copied."""
    norm = trained_looking(nn.Sequential(nn.Identity(), nn.BatchNorm2d(8)))
    fixed = nn.GroupNorm(min(32, 8), 8, affine=norm[1].affine)
    assert not torch.equal(fixed.weight, norm[1].weight)
    gain = norm[1].weight.clone()
    surgery.convert(norm, "group")
    assert torch.equal(norm[1].weight, gain)


def test_the_optimizer_still_holds_the_gains():
    model = small_convnet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    surgery.convert(model, "group")
    before = model[1].weight.clone()
    model(images()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model[1].weight)


def test_batch_to_batch_keeps_function_statistics_and_mode():
    for training in (False, True):
        model = small_convnet().train(training)
        model[8].p = 0.0
        reference = twin(model)
        surgery.convert(model, "batch")
        assert isinstance(model[1], layers.BatchNorm2d)
        assert [m.training for m in model.modules()] == [m.training for m in reference.modules()]
        torch.testing.assert_close(model(images()), reference(images()), rtol=1e-5, atol=1e-5)
        for (name, a), b in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, msg=name)
        surgery.convert(model, "torch-batch")
        assert type(model[1]) is nn.BatchNorm2d
        assert not surgery.convert(model, "torch-batch").done


def test_shared_stays_shared_and_ties_stay_tied():
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm, nn.BatchNorm1d(4))
    model[4].weight = norm.weight
    surgery.convert(model, "layer")
    assert model[1] is model[3]
    assert isinstance(model[1], nn.GroupNorm)
    assert model[4].weight is model[1].weight


def test_subclasses_parametrised_and_lazy_norms_are_skipped_with_the_reason():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Twice(nn.Module):
        def forward(self, w):
            return 2 * w

    model = nn.Sequential(Doubled(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    torch.nn.utils.parametrize.register_parametrization(model[1], "weight", Twice())
    x = torch.randn(2, 3, 4, 4)
    reference = twin(model)(x)
    report = surgery.convert(model, "batch")
    assert [c.path for c in report] == ["2"]
    assert "Doubled normalizes in a way of its own" in report.skipped[0].why
    assert "give a function of the norm" in report.skipped[0].why
    assert "parametri" in report.skipped[1].why
    torch.testing.assert_close(model(x), reference)
    # torch's converter changes the function (NS115): the doubling is gone.
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(Doubled(3)))[0]) is nn.SyncBatchNorm


def test_dtype_device_requires_grad_mode_and_hooks_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2)).to(torch.bfloat16).eval()
    model[1].bias.requires_grad_(False)
    seen = []
    handle = model[1].register_forward_hook(lambda *_: seen.append(1))
    surgery.convert(model, "batch")
    assert {t.dtype for t in model[1].state_dict().values()} == {torch.bfloat16, torch.int64}
    assert (model[1].eps, model[1].momentum, model[1].training) == (1e-3, 0.2, False)
    assert not model[1].bias.requires_grad
    model(torch.randn(2, 3, 4, 4, dtype=torch.bfloat16))
    handle.remove()
    model(torch.randn(2, 3, 4, 4, dtype=torch.bfloat16))
    assert seen == [1]


@given(channels=st.integers(1, 48), groups=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_groups_that_do_not_divide_take_the_divisor_below(channels, groups):
    model = nn.Sequential(nn.BatchNorm2d(channels))
    report = surgery.convert(model, "group", groups=groups)
    taken = model[0].num_groups
    assert taken <= groups
    assert channels % taken == 0
    assert not any(channels % d == 0 for d in range(taken + 1, min(groups, channels) + 1))
    assert (str(groups) in report["0"].detail) == (taken != groups)


@pytest.mark.parametrize("groups", [None, 32])
@pytest.mark.parametrize(("channels", "taken"), [(8, 1), (15, 1), (24, 3), (40, 5), (288, 32), (7, 0), (1, 0)])
def test_a_group_of_vectors_has_eight_values_at_least(channels, taken, groups):
    """Of two values a norm leaves the sign of their difference; of one, nothing."""
    model = nn.Sequential(nn.BatchNorm1d(channels))
    report = surgery.convert(model, "group", groups=groups)
    if taken:
        assert model[0].num_groups == taken
    else:
        assert f"{channels} value" in report.skipped[0].why
        assert type(model[0]) is nn.BatchNorm1d


@pytest.mark.parametrize(
    ("channels", "side", "taken"),
    [(16, 1, 2), (16, 2, 8), (6, 5, 3), (32, 8, 16), (128, 8, 32), (4, 1, 0), (4, 2, 2), (5, 3, 1)],
)
def test_a_map_is_told_from_an_instance_and_its_positions_count(channels, side, taken):
    model, x = nn.Sequential(nn.BatchNorm2d(channels)), torch.randn(3, channels, side, side)
    report = surgery.convert(model, "group", example=x)
    assert [norm.num_groups for norm in model if isinstance(norm, nn.GroupNorm)] == [taken] * (taken > 0)
    assert len(report.skipped) == (taken == 0)


def test_groups_of_a_map_of_unknown_size_rest_on_its_channels():
    for channels, taken in ((4, 1), (16, 2), (512, 32)):
        model = nn.Sequential(nn.BatchNorm2d(channels))
        surgery.convert(model, "group")
        assert model[0].num_groups == taken


@pytest.mark.parametrize("width", [16, 64])
def test_a_converted_norm_is_no_sign_function(width):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(9, width), nn.BatchNorm1d(width)), torch.randn(50, 9)
    surgery.convert(model, "group", example=x)
    out = model(x).detach().abs()
    assert float(((out - 1).abs() < 0.05).double().mean()) < 0.15  # a normal value: .05


@pytest.mark.parametrize(
    ("to", "channels", "side", "refused"),
    [
        ("layer", 2, 1, True), ("layer", 3, 1, False), ("layer", 1, 1, True), ("layer", 1, 2, False),
        ("rms", 1, 1, True), ("rms", 2, 1, False), ("instance", 9, 1, True), ("instance", 9, 2, False),
    ],
)  # fmt: skip
def test_what_would_leave_signs_alone_is_refused(to, channels, side, refused):
    model, x = nn.Sequential(nn.BatchNorm2d(channels)), torch.randn(8, channels, side, side)
    report = surgery.convert(model, to, example=x)
    assert bool(report.skipped) == refused
    if not refused:
        assert float(((model(x).detach().abs() - 1).abs() < 0.05).double().mean()) < 0.3


@pytest.mark.parametrize("groups", [None, 32])
@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_no_number_of_channels_makes_a_group_of_few(dims, groups):
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims]
    for channels in (1, 2, 3, 5, 6, 7, 8, 9, 13, 24, 31, 35, 49, 77, 121, 127):
        for side in (1, 2, 3) if dims else (1,):
            model, values = nn.Sequential(kind(channels)), channels * side**dims
            report = surgery.convert(model, "group", groups=groups, example=torch.randn(4, channels, *[side] * dims))
            assert bool(report.done) == (values >= 8), f"{channels} channels, {side}: {report}"
            assert not report.done or values // model[0].num_groups >= 8
            if report.done and groups is None:
                assert model[0].num_groups == 1 or channels // model[0].num_groups >= 2


def test_layer_norm_needs_to_see_the_layout():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
    assert "give an example" in surgery.convert(model, "batch").skipped[0].why
    assert type(model[1]) is nn.LayerNorm
    tokens = torch.randn(3, 5, 4)
    trained_looking(model)
    surgery.convert(model, "batch", example=tokens)
    h = model[0](tokens)
    w, b = model[1].norm.weight, model[1].norm.bias
    flat = (h - h.mean((0, 1))) / (h.var((0, 1), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(model[1](h), flat * w + b, rtol=1e-4, atol=1e-4)
    vectors = nn.Sequential(nn.LayerNorm(6))
    surgery.convert(vectors, "torch-batch", example=torch.randn(3, 6))
    assert type(vectors[0]) is nn.BatchNorm1d


def test_layer_norm_over_a_map_gives_one_gain_per_channel_only_where_it_has_one():
    model = nn.Sequential(nn.LayerNorm((3, 4, 4)))
    x = torch.randn(2, 3, 4, 4)
    reference = twin(model)(x)
    surgery.convert(model, "layer", example=x)
    assert isinstance(model[0], nn.GroupNorm)
    torch.testing.assert_close(model(x), reference)
    model = nn.Sequential(nn.LayerNorm((3, 4, 4)))
    nn.init.normal_(model[0].weight)
    assert "differs by position" in surgery.convert(model, "layer", example=x).skipped[0].why


def test_rms_of_tokens_keeps_the_shift_torchs_has_not():
    model = trained_looking(nn.Sequential(nn.LayerNorm(6)))
    w, b = model[0].weight, model[0].bias
    surgery.convert(model, "rms")
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(model(x), nn.functional.rms_norm(x, (6,), w, 1e-5) + b)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.LayerNorm(6, bias=False), nn.RMSNorm(6), nn.BatchNorm1d(6)])
def test_dynamic_tanh_needs_no_example_and_keeps_gain_and_shift(norm):
    model = trained_looking(nn.Sequential(nn.Identity(), norm))
    w, b = norm.weight, getattr(norm, "bias", None)
    report = surgery.convert(model, "dyt", alpha=0.8)
    assert "alpha is a new parameter" in report["1"].detail
    inner = model[1].norm if isinstance(norm, nn.BatchNorm1d) else model[1]
    assert type(inner) is layers.DynamicTanh
    assert inner.weight is w
    assert inner.bias is b
    x = torch.randn(5, 6)
    torch.testing.assert_close(model(x), torch.tanh(0.8 * x) * w + (0 if b is None else b))
    assert not surgery.convert(model, "dyt").done


def test_dynamic_tanh_takes_alpha_alone():
    with pytest.raises(UsageError, match="takes no such option"):
        surgery.convert(nn.Sequential(nn.LayerNorm(6)), "dyt", eps=1e-3)
    with pytest.raises(UsageError, match="give a number but 0"):
        surgery.convert(nn.Sequential(nn.LayerNorm(6)), "dyt", alpha=0)


def test_ambiguous_dimensions_are_not_guessed():
    assert "how many axes" in surgery.convert(nn.Sequential(nn.GroupNorm(2, 4)), "batch").skipped[0].why
    model = nn.Sequential(nn.GroupNorm(2, 4))
    surgery.convert(model, "torch-batch", dims=3)
    assert type(model[0]) is nn.BatchNorm3d
    model = nn.Sequential(nn.BatchNorm1d(4))
    assert "dims=1" in surgery.convert(model, "instance").skipped[0].why
    assert "1 value" in surgery.convert(model, "instance", example=torch.randn(3, 4)).skipped[0].why
    surgery.convert(model, "instance", dims=1)
    assert type(model[0]) is nn.InstanceNorm1d
    unbatched = nn.Sequential(nn.InstanceNorm1d(4))
    assert "unbatched" in surgery.convert(unbatched, "batch", example=torch.randn(4, 9)).skipped[0].why


def test_instance_statistics_are_kept_and_remarked_on():
    model = nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True))
    model[0].running_mean.fill_(2.0)
    report = surgery.convert(model, "batch")
    assert model[0].running_mean.eq(2).all()
    assert "different things" in report["0"].detail


def test_none_affine_callable_only_and_options():
    model = small_convnet()
    report = surgery.convert(model, "none", only="1")
    assert type(model[1]) is nn.Identity
    assert "lost" in report["1"].detail
    surgery.convert(model, lambda old: nn.GroupNorm(1, old.num_features) if old.num_features == 6 else None)
    assert type(model[7]) is nn.GroupNorm
    assert type(model[3].bn1) is nn.BatchNorm2d
    surgery.convert(model, "batch", only=lambda path, m: path.endswith("bn2"), momentum=0.5)
    assert model[3].bn2.momentum == 0.5
    assert type(model[3].bn1) is nn.BatchNorm2d
    with pytest.raises(UsageError, match="to is one of"):
        surgery.convert(model, "butch")
    before = state_of(model)
    with pytest.raises(UsageError, match="no such option"):
        surgery.convert(model, "group", momentum_=3)
    assert_same_state(before, state_of(model))


def test_affine_false_and_bias_false_stay_so():
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.LayerNorm(4, bias=False))
    surgery.convert(model, "group")
    assert model[0].weight is None
    x = torch.randn(2, 3, 5, 4)
    model = nn.Sequential(nn.LayerNorm(4, bias=False))
    surgery.convert(model, "group", example=x, groups=2)
    assert model[0].norm.bias is None
    assert model(x).shape == x.shape


def test_sync_runs_on_the_cpu():
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert surgery.convert(model, "sync").done
    assert model[0].statistics == "sync"
    model(torch.randn(2, 3, 4, 4))


def test_torchs_encoder_layer_would_ignore_the_new_norm():
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    report = surgery.convert(model, "rms")
    assert not report.done
    assert "fast path" in report.skipped[0].why


def test_a_frozen_norm_stays_frozen():
    model = small_convnet()
    surgery.freeze(model, only="1")
    report = surgery.convert(model, "batch", only="1")
    assert surgery.is_frozen(model[1])
    assert "still frozen" in report["1"].detail
    assert not model.train()[1].training
    assert "no longer frozen" in surgery.convert(model, "group", only="1")["1"].detail


@pytest.mark.parametrize("to", ["torch-batch", "batch"])
def test_a_fused_activation_is_not_dropped(to):
    model = trained_looking(nn.Sequential(nn.Conv2d(3, 3, 1), layers.BatchNorm2d(3, activation="relu"))).eval()
    x, expected = images(), model(images())
    for change in (
        lambda m: surgery.convert(m, to, eps=1e-5),
        lambda m: surgery.fold(m),
        lambda m: surgery.strip(m, "population"),
    ):
        other = twin(model)
        assert len(change(other).done) == 1 or to == "batch"
        torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-5)
    for other in (surgery.convert(twin(model), "group").model, surgery.strip(twin(model)).model):
        assert other(x).min() == 0


def test_the_model_itself_is_not_replaced():
    assert "Sequential" in surgery.convert(nn.BatchNorm1d(3), "layer").skipped[0].why


def test_an_error_midway_leaves_everything():
    model = small_convnet()
    before = state_of(model)

    def fails_later(old):
        if old.num_features == 6:
            raise RuntimeError("no")
        return nn.Identity()

    with pytest.raises(RuntimeError, match="no"):
        surgery.convert(model, fails_later)
    assert_same_state(before, state_of(model))
    with pytest.raises(RuntimeError):
        surgery.convert(model, "group", example=torch.randn(2, 99))
    assert_same_state(before, state_of(model))
