"""Folding preserves the function, proves it, and refuses what it cannot prove."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from kit.small_convnets import Residual, assert_same_state, images, small_convnet, state_of, trained_looking, twin
from normscope import layers, surgery
from normscope.surgery import absorb
from normscope.surgery.pairs import search

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
OURS = {1: layers.BatchNorm1d, 2: layers.BatchNorm2d, 3: layers.BatchNorm3d}


@st.composite
def convolutions(draw):
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.integers(1, 3))
    kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    common = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "groups": groups}
    common["bias"] = draw(st.booleans())
    sizes = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    padding = draw(st.integers(0, 2))
    if draw(st.booleans()):
        conv = TRANSPOSED[rank](*sizes, **common, padding=min(padding, dilation * (kernel - 1)))
    else:
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        conv = CONVS[rank](*sizes, **common, padding=padding, padding_mode=mode)
    return rank, conv, draw(st.sampled_from([NORMS, OURS]))[rank], draw(st.booleans())


def inputs(rank, channels):
    return torch.randn(2, channels, *(7, 6, 5)[:rank], dtype=torch.float64)


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_a_norm_after_any_convolution_folds(case):
    rank, conv, norm, affine = case
    torch.manual_seed(0)
    model = trained_looking(nn.Sequential(conv, norm(conv.out_channels, affine=affine))).double().eval()
    x = inputs(rank, conv.in_channels)
    expected, weight = model(x), model[0].weight
    report = surgery.fold(model)
    assert type(model[1]) is nn.Identity
    assert model[0].weight is weight
    assert report["1"].numbers["error"] < 1e-12
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_a_norm_before_a_convolution_folds_exactly_where_padding_allows(case):
    rank, conv, norm, affine = case
    torch.manual_seed(0)
    model = trained_looking(nn.Sequential(norm(conv.in_channels, affine=affine), conv)).double().eval()
    x = inputs(rank, conv.in_channels)
    expected, before = model(x), state_of(model)
    report = surgery.fold(model, x)
    transposed = isinstance(conv, tuple(TRANSPOSED.values()))
    one = conv.kernel_size[0] == 1 and conv.stride[0] == 1
    allowed = one and not any(conv.padding) if transposed else not any(conv.padding) or conv.padding_mode != "zeros"
    assert bool(report.done) == allowed
    if not allowed:
        assert "would differ" in report.skipped[0].why
        assert_same_state(before, state_of(model))
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("transposed", [False, True])
def test_without_a_shift_zero_padding_allows_it(transposed):
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(4, 6, 3, padding=1, stride=2, groups=2)
    model = trained_looking(nn.Sequential(nn.BatchNorm2d(4), conv)).double().eval()
    with torch.no_grad():
        model[0].bias.zero_()
        model[0].running_mean.zero_()
    x = inputs(2, 4)
    expected = model(x)
    assert surgery.fold(model).done
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)


def test_same_padding_is_padding():
    model = trained_looking(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding="same"))).eval()
    assert "pads with zeros" in surgery.fold(model).skipped[0].why
    for free in (nn.Conv2d(2, 2, 1, padding="same"), nn.Conv2d(2, 2, 3, padding="valid")):
        model = trained_looking(nn.Sequential(nn.BatchNorm2d(2), free)).eval()
        expected = model(x := torch.randn(2, 2, 5, 5))
        assert surgery.fold(model).done
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_a_deep_net_folds_whole_and_says_how_well():
    model = small_convnet().eval()
    for make in (lambda m: m, lambda m: surgery.convert(m, "batch").model):
        folded = make(twin(model))
        x = images()
        report = surgery.fold(folded, x)
        assert [c.path for c in report] == ["1", "3.bn1", "3.bn2", "7"]
        assert all(c.numbers["error"] < 1e-6 and c.numbers["error_of_model"] < 1e-5 for c in report)
        assert "torch.fx" in report.notes[0]
        assert "bias was created" in report["3.bn1"].detail
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
        assert "error" in str(report)


def test_linear_needs_to_show_its_axes():
    """A linear layer acts on the last axis, a norm of (N, C, L) on the second."""
    model = trained_looking(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))).double().eval()
    assert "give an example" in surgery.fold(model).skipped[0].why
    x = torch.randn(3, 5, 5, dtype=torch.float64)
    expected = model(x)
    assert "another axis" in surgery.fold(model, x).skipped[0].why
    torch.testing.assert_close(model(x), expected)
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = model(x)
    assert surgery.fold(model, x).done
    torch.testing.assert_close(model(x), expected)
    model = trained_looking(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))).double().eval()
    expected = model(x := torch.randn(3, 4, dtype=torch.float64))
    assert surgery.fold(model, x).done
    torch.testing.assert_close(model(x), expected)


class Wired(nn.Module):
    """A convolution and a norm, wired in one of many ways."""

    def __init__(self, wiring):
        super().__init__()
        self.conv, self.bn, self.wiring = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), wiring
        self.other = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.wiring(self, x)


def reads_values(m, x):
    return m.bn(m.conv(x)) if x.sum() > -1e9 else m.conv(x)


def reads_shape(m, x):
    return m.bn(m.conv(x)) if x.shape[0] > 1 else m.conv(x)


REFUSED = {
    "output used twice": (lambda m, x: m.bn(h := m.conv(x)) + h, "more than once"),
    "output returned": (lambda m, x: (m.bn(h := m.conv(x)), h), "more than once"),
    "module called twice": (lambda m, x: m.bn(m.conv(x)) + m.conv(x + 1), "called 2 times"),
    "norm called twice": (lambda m, x: m.bn(m.conv(x)) + m.bn(m.other(x)), "called 2 times"),
    "activation between": (lambda m, x: m.bn(torch.relu(m.conv(x))), "relu"),
    "in-place in between": (lambda m, x: m.bn(m.conv(x).mul_(2)), "mul_"),
    "weight read elsewhere": (lambda m, x: m.bn(m.conv(x)) * m.conv.weight.sum(), "outside"),
    "sum of two": (lambda m, x: m.bn(m.conv(x) + m.other(x)), "add"),
    "not called": (lambda m, x: m.conv(x), "not called"),
}


@pytest.mark.parametrize("way", ["fx", "export", "example"])
@pytest.mark.parametrize("wiring", REFUSED)
def test_what_would_break_is_refused_however_the_flow_is_seen(wiring, way, monkeypatch):
    refuse_before(way, monkeypatch)
    forward, why = REFUSED[wiring]
    model = trained_looking(Wired(forward)).eval()
    x = torch.randn(2, 3, 5, 5)
    before = state_of(model)
    report = surgery.fold(model, x)
    assert not report.done
    # Watching an example sees who reads an output; which function made an input it sees only of modules.
    unnamed = way == "example" and why in ("relu", "add")
    assert ("no module of interest" if unnamed else why) in report.skipped[0].why
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("way", ["fx", "export", "example"])
def test_each_way_of_seeing_finds_the_pairs(way, monkeypatch):
    refuse_before(way, monkeypatch)
    model, x = surgery.convert(small_convnet().eval(), "batch", only="3.*").model, images()
    expected = model(x)
    report = surgery.fold(model, x)
    assert [c.path for c in report] == ["1", "3.bn1", "3.bn2", "7"]
    assert {"fx": "torch.fx", "export": "torch.export", "example": "an example"}[way] in report.notes[0]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    after = trained_looking(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 2))).eval()
    assert "after" in surgery.fold(after, x)["1"].what


def refuse_before(way, monkeypatch):
    # white box: a fold takes the first way of seeing that works; here each way must work by itself
    from normscope.surgery import _graph

    def refuses(*_):
        raise _graph.UnseenError("not this way")

    for name in ["by_fx", "by_export"][: ["fx", "export", "example"].index(way)]:
        monkeypatch.setattr(_graph, name, refuses)


def test_control_flow_is_not_guessed():
    x = torch.randn(2, 3, 5, 5)
    report = surgery.fold(trained_looking(Wired(reads_values)).eval(), x)
    assert not report.done
    assert "reads values of tensors (__bool__)" in report.skipped[0].why
    report = surgery.fold(trained_looking(Wired(reads_shape)).eval())
    assert report.skipped[0].why.startswith("give example=")
    report = surgery.fold(trained_looking(Wired(reads_shape)).eval(), x)
    assert "torch.export" in report.notes[0]


def test_an_argument_left_at_its_default_is_traced_as_such():
    class Masked(Wired):
        def forward(self, x, mask=None):
            return self.bn(self.conv(x)) if mask is None else self.conv(x) * mask

    model = trained_looking(Masked(None)).eval()
    expected = model(x := torch.randn(2, 3, 4, 4))
    assert surgery.fold(model).done
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def hooked(m):
    m[0].register_forward_hook(lambda *_: None)


def parametrised(m):
    torch.nn.utils.parametrizations.weight_norm(m[0])


def tied(m):
    m[3].weight = m[0].weight


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def subclass(m):
    m[1].__class__ = Doubled


def no_statistics(m):
    m[1].running_mean = m[1].running_var = None


def spoil(value):
    def act(m):
        m[1].running_var[0] = value

    return act


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.train(), "training mode"),
        (lambda m: m[1].train(), "training mode"),
        (hooked, "forward hooks"),
        (parametrised, "parametrised"),
        (tied, "tied"),
        (subclass, "Doubled normalizes in a way of its own"),
        (no_statistics, "no running statistics"),
        (spoil(float("nan")), "not finite"),
        (spoil(-1.0), "not finite"),
    ],
)
def test_other_reasons_to_refuse(change, why):
    model = trained_looking(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))).eval()
    change(model)
    before = state_of(model)
    report = surgery.fold(model)
    assert not report.done
    assert why in report.skipped[0].why
    assert_same_state(before, state_of(model))


def test_a_frozen_norm_in_a_training_model_folds():
    model = trained_looking(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).train()
    surgery.freeze(model)
    expected = model(x := torch.randn(2, 3, 4, 4))
    assert surgery.fold(model).done
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_low_precision_fails_the_bound_and_is_rolled_back():
    model = trained_looking(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).eval().to(torch.bfloat16)
    before = state_of(model)
    report = surgery.fold(model)
    assert "rolled back" in report.skipped[0].why
    assert_same_state(before, state_of(model))
    assert surgery.fold(model, bound=0.05).done


WRONG = {
    "sign of the mean": ("before", lambda linear, s, t, right: (right[0], right[1] - 2 * t)),
    "shift left out": ("before", lambda linear, s, t, right: (right[0], right[1] - t)),
    "scale of the wrong axis": ("before", lambda linear, s, t, right: (right[0].roll(1, 0), right[1])),
    "shift by one tap": ("after", lambda linear, s, t, right: (right[0], right[1] * 1.01)),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("example", [False, True])
def test_a_planted_wrong_algebra_is_caught_by_the_proof(wrong, example, monkeypatch):
    order, spoil = WRONG[wrong]
    right = getattr(absorb, order)
    monkeypatch.setattr(absorb, order, lambda linear, s, t: spoil(linear, s, t, right(linear, s, t)))
    parts = [nn.Conv2d(3, 3, 2), nn.BatchNorm2d(3)][:: 1 if order == "before" else -1]
    model = trained_looking(nn.Sequential(nn.ReLU(), *parts)).eval()
    before = state_of(model)
    report = surgery.fold(model, torch.randn(2, 3, 5, 5)) if example else surgery.fold(model)
    assert "rolled back" in report.skipped[0].why
    assert_same_state(before, state_of(model))


def test_a_pair_that_only_the_whole_model_betrays_is_rolled_back_alone():
    """Someone keeps the convolution's output where no watch can see it; the comparison of outputs does."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.b, self.nb = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.nb(self.b(self.na(self.a(x)))) + self.b.__dict__["_parameters"]["weight"].detach().abs().sum()

    model = trained_looking(Hidden()).eval()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    # white box: a fold takes the first way of seeing that works; here each way must work by itself
    from normscope.surgery import _graph

    def blind(m, names):
        seen = _graph.Flow("a planted blind eye")
        for conv, norm in (("a", "na"), ("b", "nb")):
            seen.calls.update([conv, norm])
            seen.source[norm], seen.readers[conv] = conv, [norm]
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_graph, "by_fx", blind)
        report = surgery.fold(model, x)
    assert [c.path for c in report] == ["na"]
    assert "the model's output is off" in report.skipped[0].why
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_torchs_own_fusion_of_the_same_pair_agrees():
    conv, norm = nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)
    model = trained_looking(nn.Sequential(conv, norm)).eval()
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(*twin(model))
    surgery.fold(model)
    torch.testing.assert_close(model[0].weight, fused.weight)
    torch.testing.assert_close(model[0].bias, fused.bias)


def test_torchs_fusion_of_a_grouped_transposed_convolution_is_wrong_or_refused():
    """A transposed weight is (in, out / groups): scaling its second axis by ``out`` scales cannot be right."""
    model = trained_looking(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6))).eval()
    expected = model(x := torch.randn(2, 4, 5, 5))
    with pytest.raises(RuntimeError):
        torch.nn.utils.fusion.fuse_conv_bn_eval(*twin(model), transpose=True)
    surgery.fold(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_the_example_leaves_no_trace_and_an_error_neither():
    model = Residual().eval()
    model.conv2.train()
    before, random = state_of(model), torch.get_rng_state()
    with pytest.raises(RuntimeError):
        surgery.fold(model, torch.randn(1, 9, 4, 4, generator=torch.Generator()))
    assert_same_state(before, state_of(model))
    assert torch.equal(random, torch.get_rng_state())
    surgery.fold(model, torch.zeros(1, 4, 4, 4))
    assert torch.equal(random, torch.get_rng_state())


def test_modes_and_optimizers_hold_on_folded_layers():
    model = small_convnet().eval()
    ids = {id(p) for p in model[0].parameters()}
    surgery.fold(model, images())
    assert {id(p) for p in model[0].parameters()} == ids
    assert not any(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_the_proof_is_made_on_what_the_example_gives_the_first_of_a_pair():
    model, inputs = small_convnet().eval(), {}
    seen, same = search(model, images()), twin(model)
    for path, module in same.named_modules():
        module.register_forward_hook(lambda m, args, output, path=path: inputs.update({path: args[0]}))
    same(images())
    norms = [site for site in seen.by_path.values() if isinstance(site.module, nn.modules.batchnorm._BatchNorm)]
    pairs = [seen.pair(norm, order) for norm in norms for order in ("before", "after")]
    pairs = [pair for pair in pairs if not isinstance(pair, str)]
    assert len(pairs) >= 4
    for pair in pairs:
        assert torch.equal(pair.input, inputs[(pair.linear if pair.order == "before" else pair.norm).path])
