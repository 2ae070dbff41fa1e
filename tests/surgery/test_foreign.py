"""Norms of other libraries are known by what they compute, and stand-ins compute the same."""

import pytest
import torch
from torch import nn

from kit import foreign_norms as foreign
from normscope import layers, surgery
from normscope.surgery.foreign import read, stand_in

MAP, TOKENS = (4, 8, 5, 6), (4, 5, 8)
KNOWN = {
    "BatchNormAct2d": (lambda: foreign.BatchNormAct2d(8, act_layer=nn.SiLU), MAP, ["BatchNorm2d", "SiLU"]),
    "with dropout": (
        lambda: foreign.BatchNormAct2d(8, drop_layer=nn.Dropout2d),
        MAP,
        ["BatchNorm2d", "Dropout2d", "ReLU"],
    ),
    "GroupNormAct": (lambda: foreign.GroupNormAct(8), MAP, ["GroupNorm", "ReLU"]),
    "LayerNorm2d": (lambda: foreign.LayerNorm2d(8), MAP, ["ChannelsFirst"]),
    "LayerNormAct": (lambda: foreign.LayerNormAct(8), TOKENS, ["LayerNorm", "ReLU"]),
    "FrozenBatchNorm2d": (lambda: foreign.FrozenBatchNorm2d(8), MAP, ["BatchNorm2d"]),
    "ConvNeXt, last": (lambda: foreign.LayerNorm(8), (4, 5, 6, 8), ["LayerNorm"]),
    "ConvNeXt, first": (lambda: foreign.LayerNorm(8, data_format="channels_first"), MAP, ["ChannelsFirst"]),
    "Llama": (lambda: foreign.LlamaRMSNorm(8), TOKENS, ["RMSNorm"]),
    "T5": (lambda: foreign.T5LayerNorm(8), TOKENS, ["RMSNorm"]),
    "Gemma": (lambda: foreign.GemmaRMSNorm(8), TOKENS, ["RMSNorm"]),
    "global channels": (lambda: foreign.GlobalChannelLayerNorm(8), (4, 8, 5), ["GroupNorm"]),
    "PixelNorm": (foreign.PixelNorm, MAP, ["ChannelsFirst"]),
    "GroupNorm32": (lambda: foreign.GroupNorm32(2, 8), MAP, ["GroupNorm"]),
    "surgery's": (lambda: surgery.convert(nn.Sequential(nn.LayerNorm(8)), "rms").model[0], TOKENS, ["RMSNorm"]),
    "ABN": (lambda: foreign.ABN(8), MAP, ["BatchNorm2d", "LeakyReLU"]),
    "normscope's": (lambda: layers.BatchNorm2d(8, activation="relu"), MAP, ["BatchNorm2d", "ReLU"]),
    "normscope's layer": (lambda: layers.LayerNorm(8), TOKENS, ["LayerNorm"]),
}


def made(name):
    make, shape, _ = KNOWN[name]
    dtype = torch.float32 if name == "GroupNorm32" else torch.float64
    norm = make().to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=dtype))
    return norm, 2 * torch.randn(shape, generator=generator, dtype=dtype) + 0.5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["with its input", "without"])
@pytest.mark.parametrize("name", KNOWN)
def test_a_stand_in_computes_the_same_on_the_same_parameters(name, given, training):
    norm, x = made(name)
    model = nn.Sequential(norm).train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    expected = model(x)
    (site,) = surgery.norm_sites(model)
    reading = read(norm, x if given else None)
    if name == "PixelNorm" and not given:
        assert reading.is_norm
        assert "does not say how many channels it has" in reading.why
        return
    assert reading.norm is not None, reading.why
    assert [type(part).__name__ for part in (reading.norm, *reading.then)] == KNOWN[name][2]
    own = {id(p) for p in norm.parameters()}
    stand_in(site, reading)
    torch.testing.assert_close(model(x), expected.to(x.dtype), rtol=1e-5, atol=1e-5)  # Gemma's computes in float32
    if name not in ("Gemma", "global channels"):
        assert {id(p) for p in model.parameters() if p.requires_grad} == own


@pytest.mark.parametrize("make", [foreign.AnnotatedLayerNorm, foreign.EvoNormS0])
def test_a_norm_of_a_kind_of_its_own_is_taken_out_and_not_converted(make):
    model = nn.Sequential(nn.Conv2d(8, 8, 1), make(8), nn.ReLU())
    x = torch.randn(4, 8, 6, 8)
    bare, report = surgery.arm(model, "none", example=x)
    torch.testing.assert_close(bare(x), model[0](x).relu())
    assert "taken out whole" in report.notes[0]
    planned = surgery.plan(model, "batch", example=x)
    assert "normalizes in a way of its own" in planned.refuses()


@pytest.mark.parametrize(
    "make", [lambda: foreign.Normalize([0.1, 0.2, 0.3], [2.0, 3.0, 4.0]), lambda: foreign.GlobalResponseNorm(3)]
)
def test_a_module_that_is_only_named_a_norm_stays(make):
    model = nn.Sequential(make(), nn.Conv2d(3, 4, 1))
    planned = surgery.plan(model, "none", example=torch.rand(2, 3, 4, 4))
    assert planned.refuses() == "none: a model without norms"
    assert "follows its input's scale" in planned.notes[0]


def test_of_a_wrapper_the_inner_norm_counts():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), foreign.WrappedLayerNorm(8))
    x = torch.randn(2, 3, 4, 4)
    bare, report = surgery.arm(model, "none", example=x)
    assert [change.path for change in report.changes] == ["1.norm"]
    torch.testing.assert_close(bare(x), model[0](x))
    assert surgery.arm(model, "batch", example=x)[0](x).shape == (2, 8, 4, 4)


@pytest.mark.parametrize("make", [nn.SyncBatchNorm, lambda c: nn.LazyBatchNorm2d(), lambda c: nn.LocalResponseNorm(2)])
def test_torchs_rarer_norms_are_taken_out(make):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), make(8), nn.ReLU())
    x = torch.randn(2, 3, 4, 4)
    if isinstance(model[1], nn.LazyBatchNorm2d):
        model(x)
    bare, report = surgery.arm(model.eval(), "none", example=x)
    torch.testing.assert_close(bare(x), model[0](x).relu())
    assert len(report.changes) == 1


def test_an_input_of_zeros_does_not_make_all_norms_equal():
    norm = foreign.LlamaRMSNorm(8)
    assert type(read(norm, torch.zeros(4, 5, 8)).norm) is nn.RMSNorm
    assert type(read(foreign.LayerNorm(8), torch.zeros(1, 8)).norm) is nn.LayerNorm


def test_a_local_response_norm_can_only_be_taken_out():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LocalResponseNorm(2))
    assert "can only be taken out" in surgery.plan(model, "batch", example=torch.randn(2, 3, 4, 4)).refuses()


def test_norms_in_a_plain_list_alone_are_taken_out():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.norms = [nn.Sequential(nn.BatchNorm1d(8), nn.ReLU())]

        def forward(self, x):
            return self.norms[0](self.fc(x))

    model, x = Hidden(), torch.randn(4, 8)
    bare, report = surgery.arm(model, "none", example=x)
    assert [change.path for change in report.changes] == ["norms.0.0"]
    torch.testing.assert_close(bare(x), model.fc(x).relu())
    assert isinstance(model.norms[0][0], nn.BatchNorm1d)
