"""Every operation on norms of other classes: done where a known norm computes the same, else the reason is said."""

import copy

import pytest
import torch
from torch import nn

from kit import foreign_norms as foreign, own_norms as own
from normscope import surgery
from normscope.surgery.foreign import read

# The class, and whether it is of a batch's statistics, frozen, and what follows the norm.
BATCH = {
    "BatchNormAct2d": (lambda: foreign.BatchNormAct2d(8), nn.ReLU()),
    "ABN": (lambda: foreign.ABN(8), nn.LeakyReLU(0.01)),
    "SyncBatchNorm": (lambda: own.SyncBatchNorm(8), nn.Identity()),
    "Standardiser": (lambda: own.Standardiser(8), nn.Identity()),
}
FROZEN = {
    "FrozenBatchNorm2d": (lambda: foreign.FrozenBatchNorm2d(8), nn.Identity()),
    "FrozenBatchNorm2d of MMEngine": (lambda: own.FrozenBatchNorm2d(8), nn.Identity()),
    "FrozenBatchNormAct2d": (lambda: own.FrozenBatchNormAct2d(8), nn.ReLU()),
}
MAPS = {
    "GroupNormAct": lambda: foreign.GroupNormAct(8),
    "LayerNorm2d": lambda: foreign.LayerNorm2d(8),
    "LayerNorm of ConvNeXt": lambda: foreign.LayerNorm(8, data_format="channels_first"),
    "PixelNorm": foreign.PixelNorm,
}
TOKENS = {
    "nanoGPT": lambda: own.LayerNorm(8),
    "nanoGPT without shift": lambda: own.LayerNorm(8, bias=False),
    "LayerNormFp32": lambda: own.LayerNormFp32(8),
    "T5": lambda: foreign.T5LayerNorm(8),
    "Unit": lambda: own.Unit(8),
}
UNKNOWN = {
    "FRN": lambda: own.FRN(8),
    "EvoNormS0": lambda: foreign.EvoNormS0(8),
    "EvoNorm2dB0": lambda: own.EvoNorm2dB0(8),
    "Doubled": lambda: own.Doubled(8),
}
NONE = {
    "GRN": lambda: foreign.GlobalResponseNorm(8),
    "Saturating": own.Saturating,
    "Sign": own.Sign,
    "Softmax": own.Softmax,
    "SqueezeExcite": own.SqueezeExcite,
    "LayerScale": lambda: own.LayerScale(8),
}


def maps(make, *, trained=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), make(), nn.Conv2d(8, 4, 3), nn.Flatten())
    if trained:
        look_trained(model[1])
    return model


def tokens(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), make(), nn.Linear(8, 4))
    look_trained(model[1])
    return model


@torch.no_grad()
def look_trained(norm):
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.add_(0.2 * torch.rand(tensor.shape))


def images(seed=1):
    return 2 * torch.randn(6, 3, 7, 7, generator=torch.Generator().manual_seed(seed)) + 0.5


def outputs(model, x):
    twin = copy.deepcopy(model)
    return [twin.train(training)(x.clone()) for training in (False, True)]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BATCH | FROZEN)
def test_to_batch_the_function_and_the_way_it_trains_are_kept(name):
    make, _ = (BATCH | FROZEN)[name]
    model, x = maps(make), images()
    other, before = copy.deepcopy(model), outputs(model, x)
    report = surgery.convert(model, "torch-batch", example=x)
    assert [change.path for change in report] == ["1"]
    assert "read as BatchNorm2d" in report["1"].detail
    assert_same(outputs(model, x), before)
    for net in (model, other):
        net.train()(x)  # running statistics move alike
    assert_same([model.eval()(x)], [other.eval()(x)])


@pytest.mark.parametrize("name", BATCH | FROZEN)
def test_to_another_kind_what_follows_stays(name):
    make, behind = (BATCH | FROZEN)[name]
    model, x = maps(make), images()
    gain, shift = (torch.as_tensor(t.detach().clone()) for t in _affine(model[1]))
    h, eps = model[0](x), getattr(model[1], "epsilon", 1e-5)
    report = surgery.convert(model, "group", example=x, groups=2)
    assert "GroupNorm(2, 8)" in report["1"].what
    assert_same([model(x)], [model[2:](behind(nn.functional.group_norm(h, 2, gain, shift, eps)))])


def _affine(norm):
    return (norm.gamma, norm.beta) if isinstance(norm, own.Standardiser) else (norm.weight, norm.bias)


@pytest.mark.parametrize("change", [surgery.fold, lambda m: surgery.strip(m, "population")], ids=["fold", "strip"])
@pytest.mark.parametrize("name", BATCH | FROZEN)
def test_a_batch_norm_by_any_name_goes_into_the_weights(name, change):
    make, behind = (BATCH | FROZEN)[name]
    model, x = maps(make).eval(), images()
    before = model(x)
    report = change(model)
    assert [change.path for change in report] == ["1"]
    assert_same([model(x)], [before])
    assert not any("running" in key or "moving" in key for key in model.state_dict())
    assert [type(m) for m in model[1].modules() if isinstance(m, (nn.ReLU, nn.LeakyReLU))] == (
        [] if isinstance(behind, nn.Identity) else [type(behind)]
    )


@pytest.mark.parametrize("name", BATCH)
def test_what_is_not_folded_is_the_module_it_was(name):
    model = maps(BATCH[name][0])
    norm = model[1]
    report = surgery.fold(model)
    assert [skip.path for skip in report.skipped] == ["1"]
    assert "training mode" in report.skipped[0].why
    assert model[1] is norm


@pytest.mark.parametrize("name", BATCH)
def test_recalibrated_as_torchs_batch_norm_is(name):
    model, x = maps(BATCH[name][0]), images()
    known = nn.Sequential(copy.deepcopy(model[0]), nn.BatchNorm2d(8))
    surgery.recalibrate(known, [x, images(2)])
    norm = model[1]
    assert [change.path for change in surgery.recalibrate(model, [x, images(2)])] == ["1"]
    assert model[1] is norm
    found = [b for b in norm.buffers() if b.ndim == 1]
    assert_same(found, [known[1].running_mean, known[1].running_var])


@pytest.mark.parametrize("name", BATCH)
def test_frozen_it_stays_so_in_any_mode(name):
    model, x = maps(BATCH[name][0]), images()
    expected = model.eval()(x)
    assert [change.path for change in surgery.freeze(model)] == ["1"]
    assert_same([model.train()(x)], [expected])
    assert [change.path for change in surgery.unfreeze(model)] == ["1"]
    assert not torch.allclose(model(x), expected, atol=1e-2)


@pytest.mark.parametrize("name", FROZEN)
def test_what_its_class_freezes_is_not_frozen_or_recalibrated_unasked(name):
    model, x = maps(FROZEN[name][0]), images()
    before = copy.deepcopy(model.state_dict())
    for report in (surgery.freeze(model), surgery.recalibrate(model, [x])):
        assert "frozen by its class" in report.skipped[0].why
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert surgery.recalibrate(model, [x], frozen=True).done
    assert float((model[0](x).mean((0, 2, 3)) - model[1].running_mean).detach().abs().max()) < 1e-5


def test_statistics_that_are_not_finite_hide_no_class():
    model, x = maps(BATCH["Standardiser"][0]), images()
    model[1].moving_mean[2] = float("nan")
    assert surgery.recalibrate(model, [x]).done
    assert model[1].moving_mean.isfinite().all()


@pytest.mark.parametrize("name", MAPS)
def test_a_norm_of_maps_becomes_one_of_maps(name):
    model, x = maps(MAPS[name]), images()
    affine = name != "PixelNorm"
    gain, shift = (model[1].weight.detach().clone(), model[1].bias.detach().clone()) if affine else (None, None)
    h, eps = model[0](x), getattr(model[1], "eps", 1e-8)
    report = surgery.convert(model, "instance", example=x)
    assert "InstanceNorm2d" in report["1"].what
    assert not any(type(m).__name__.startswith("Channels") for m in model.modules()), "turned twice"
    behind = torch.relu if name == "GroupNormAct" else (lambda y: y)
    y = behind(nn.functional.instance_norm(h, weight=gain, bias=shift, eps=eps))
    torch.testing.assert_close(model(x), model[2:](y), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", TOKENS)
def test_a_norm_of_tokens_becomes_one_of_tokens(name):
    model = tokens(TOKENS[name])
    x = torch.randn(4, 5, 3)
    h, gain = model[0](x), next(model[1].parameters()).detach().clone()
    shift = model[1].bias.detach().clone() if getattr(model[1], "bias", None) is not None else None
    surgery.convert(model, "rms", example=x)
    y = h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain
    torch.testing.assert_close(model[:2](x), y if shift is None else y + shift, rtol=1e-3, atol=1e-3)


OPERATIONS = {
    "convert": lambda m, x: surgery.convert(m, "group", example=x),
    "convert without example": lambda m, x: surgery.convert(m, "batch"),
    "fold": lambda m, x: surgery.fold(m.eval()),
    "strip": lambda m, x: surgery.strip(m, "population"),
    "freeze": lambda m, x: surgery.freeze(m),
    "recalibrate": lambda m, x: surgery.recalibrate(m, [x]),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_norm_is_passed_over_in_silence(operation):
    for name, make in ((n, m) for n, m in ({n: m for n, (m, _) in (BATCH | FROZEN).items()} | MAPS | UNKNOWN).items()):
        report = OPERATIONS[operation](maps(make), images())
        said = [each.path for each in (*report.done, *report.skipped)] or " ".join(report.notes)
        assert said == ["1"] or type(make()).__name__ in said, f"{name}: {report}"
    for name, make in TOKENS.items():
        report = OPERATIONS[operation](tokens(make), torch.randn(6, 5, 3))
        said = [each.path for each in (*report.done, *report.skipped)] or " ".join(report.notes)
        assert said == ["1"] or type(make()).__name__ in said, f"{name}: {report}"


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_norm_is_left_and_a_function_may_replace_it(name):
    model, x = maps(UNKNOWN[name]), images()
    before = outputs(model, x)
    for change in (surgery.convert, surgery.fold, lambda m: surgery.strip(m, "population")):
        report = change(model)
        assert "normalizes in a way of its own" in report.skipped[0].why
        assert ("give a function" in report.skipped[0].why) == (change is surgery.convert)
    assert_same(outputs(model, x), before)
    surgery.convert(model, lambda old: nn.GroupNorm(2, 8))
    assert type(model[1]) is nn.GroupNorm
    assert "taken out whole" in surgery.strip(maps(UNKNOWN[name]))["1"].detail


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_norm_is_taken_for_none(name):
    model, x = maps(NONE[name]), images()
    module = model[1]
    for change in OPERATIONS.values():
        report = change(model, x)
        assert not [each for each in (*report.done, *report.skipped) if "own kind" not in str(each)] or name == "GRN"
        assert report.notes or report.skipped
        assert model[1] is module
    assert surgery.plan(model, "none", example=x).is_own


def test_a_norm_as_a_function_is_named():
    class Adaptive(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Linear(4, 8)

        def forward(self, x):
            return nn.functional.layer_norm(x, (8,)) * self.gain(x[..., :4])

    for report in (surgery.convert(tokens(Adaptive)), surgery.strip(tokens(Adaptive)), surgery.fold(tokens(Adaptive))):
        assert "calls layer_norm" in report.notes[-1]


@pytest.mark.parametrize("training", [True, False])
def test_a_fresh_norm_is_read_as_what_it_computes_at_other_values(training):
    """At a gain of 1, a shift of 0 and statistics 0 and 1 a frozen, a doubled and a plain norm are hard to tell."""
    assert read(own.Doubled(8).train(training)).norm is None
    assert surgery.is_frozen(read(own.FrozenBatchNorm2d(8).train(training)).norm)
    assert not surgery.is_frozen(read(foreign.ABN(8).train(training)).norm)
    assert read(own.Standardiser(8).train(training)).norm.momentum == pytest.approx(0.01)


def test_of_a_class_that_takes_vectors_and_maps_an_example_must_say_which():
    report = surgery.convert(maps(BATCH["ABN"][0]), "group")
    assert "give an example or dims" in report.skipped[0].why
    assert surgery.convert(maps(BATCH["ABN"][0]), "group", dims=2).done
    vectors = nn.Sequential(nn.Linear(3, 8), own.Standardiser(8))
    surgery.convert(vectors, "group", example=torch.randn(4, 3))
    assert vectors[1].num_groups == 1
