"""Every layer's laws, in one table: those that its page states hold, and all others are broken."""

import inspect
from dataclasses import dataclass
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from normscope import layers
from normscope._unit import discover
from normscope.layers import AbstractLayer

N, C, L = 4, 6, 5
EXACT, BROKEN = 1e-9, 1e-4


def positive(generator, *shape):
    return torch.exp(torch.randn(shape, generator=generator, dtype=torch.float64))


def offset(generator, *shape):
    return 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def permuted(axis, generator):
    order = torch.randperm((N, C, L)[axis], generator=generator)
    return lambda t: t.index_select(axis, order)


def all_but_first(other, x):
    return torch.cat([x[:1], other[1:]])


# Each law: from a generator, what is done to the input and what should then have been done to the output.
LAWS = {
    "shift a channel": lambda g: (partial(torch.add, offset(g, 1, C, 1)), lambda y: y),
    "scale a channel": lambda g: (partial(torch.mul, positive(g, 1, C, 1)), lambda y: y),
    "shift a sample": lambda g: (partial(torch.add, offset(g, N, 1, 1)), lambda y: y),
    "scale a sample": lambda g: (partial(torch.mul, positive(g, N, 1, 1)), lambda y: y),
    "shift all": lambda g: (partial(torch.add, offset(g, 1)), lambda y: y),
    "scale all": lambda g: (partial(torch.mul, positive(g, 1)), lambda y: y),
    "permute samples": lambda g: (permuted(0, g),) * 2,
    "permute channels": lambda g: (permuted(1, g),) * 2,
    "permute positions": lambda g: (permuted(2, g),) * 2,
    # of the output only the first sample is to stay
    "others unseen": lambda g: (partial(all_but_first, offset(g, N, C, L)), "first"),
}
# What a page says where a law holds.
WORDS = {
    "shift a channel": ("adding a constant to a channel", "to a sample or to a channel"),
    "scale a channel": ("scaling a channel", "scaling it by a positive", "scaling either"),
    "shift a sample": ("adding a constant to a sample",),
    "scale a sample": ("scaling a sample", "scaling either"),
    "others unseen": ("does not depend on the others", "mean and biased variance of each channel of each"),
}

SYMMETRIC = {"permute samples", "permute channels", "permute positions"}
WHOLE = {"shift all", "scale all"}
CHANNEL = {"shift a channel", "scale a channel"}
SAMPLE = {"shift a sample", "scale a sample"}


@dataclass
class Row:
    make: object
    holds: set


TABLE = {
    "batch_norm_1d": Row(lambda a: layers.BatchNorm1d(C, eps=0, affine=a), CHANNEL | WHOLE | SYMMETRIC),
    "lp_norm": Row(lambda a: layers.LpNorm(C, 1, eps=0, affine=a), {"scale a channel", "scale all"} | SYMMETRIC),
    "lp_norm of 2": Row(lambda a: layers.LpNorm(C, 2, eps=0, affine=a), {"scale a channel", "scale all"} | SYMMETRIC),
    "lp_norm of inf": Row(
        lambda a: layers.LpNorm(C, float("inf"), eps=0, affine=a), {"scale a channel", "scale all"} | SYMMETRIC
    ),
    "lp_norm centred": Row(lambda a: layers.LpNorm(C, 1, eps=0, affine=a, centred=True), CHANNEL | WHOLE | SYMMETRIC),
    "layer_norm": Row(
        lambda a: layers.LayerNorm((C, L), eps=0, elementwise_affine=a), SAMPLE | WHOLE | SYMMETRIC | {"others unseen"}
    ),
    "rms_norm": Row(
        lambda a: layers.RMSNorm((C, L), eps=0, elementwise_affine=a),
        {"scale a sample", "scale all", "others unseen"} | SYMMETRIC,
    ),
    "dynamic_tanh": Row(lambda a: layers.DynamicTanh((C, L), elementwise_affine=a), {"others unseen"} | SYMMETRIC),
    "group_norm": Row(
        lambda a: layers.GroupNorm(2, C, eps=0, affine=a),
        SAMPLE | WHOLE | {"others unseen", "permute samples", "permute positions"},
    ),
    "instance_norm_1d": Row(lambda a: layers.InstanceNorm1d(C, eps=0, affine=a), set(LAWS)),
}
# Laws of permuted elements are stated where there is no gain and shift of each element.
BARE = {"permute channels", "permute positions"}
# The same code in other ranks, or no norm of the data.
ELSEWHERE = {
    "batch_norm_2d", "batch_norm_3d", "instance_norm_2d", "instance_norm_3d", "lazy_batch_norm_1d",
    "lazy_batch_norm_2d", "lazy_batch_norm_3d", "scalar_bias", "scalar_gain",
    "time_varying_noise", "weight_standardization",
}  # fmt: skip


def build(code, law):
    layer = TABLE[code].make(law not in BARE).double()
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


@torch.no_grad()
def violation(layer, law, seed):
    """How far the output is from what the law wants, relative to the largest output."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, L, generator=generator, dtype=torch.float64) + 0.5
    onto_input, onto_output = LAWS[law](generator)
    before, after = layer(x), layer(onto_input(x))
    if onto_output == "first":
        before, after = before[:1], after[:1]
    else:
        before = onto_output(before)
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize(
    ("code", "law"), [(code, law) for code, row in TABLE.items() for law in LAWS if law in row.holds]
)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31))
def test_holds(code, law, seed):
    assert violation(build(code, law), law, seed) < EXACT


@pytest.mark.parametrize(
    ("code", "law"), [(code, law) for code, row in TABLE.items() for law in LAWS if law not in row.holds]
)
def test_is_broken_where_it_is_not_stated(code, law):
    assert max(violation(build(code, law), law, seed) for seed in range(5)) > BROKEN


DIRECTIONS = {
    "shift a channel": lambda x: [torch.ones_like(x[:, c]) for c in range(C)],
    "scale a channel": lambda x: [x[:, c] for c in range(C)],
    "shift a sample": lambda x: [torch.ones_like(x[n]) for n in range(N)],
    "scale a sample": lambda x: [x[n] for n in range(N)],
}


@pytest.mark.parametrize(
    ("code", "law"), [(code, law) for code, row in TABLE.items() for law in DIRECTIONS if law in row.holds]
)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31))
def test_the_gradient_does_not_propose_what_changes_nothing(code, law, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(N, C, L, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()
    y = build(code, law)(x)
    (g,) = torch.autograd.grad(y, x, torch.randn(y.shape, generator=generator, dtype=torch.float64))
    x = x.detach()
    parts = g.unbind(1 if "channel" in law else 0)
    for part, direction in zip(parts, DIRECTIONS[law](x), strict=True):
        assert float((part * direction).sum().abs()) < 1e-10 * float(part.norm() * direction.norm() + 1e-12)


def test_every_layer_is_in_the_table():
    codes = {unit.CODE for unit in discover(layers, AbstractLayer)}
    assert codes <= set(TABLE) | ELSEWHERE


@pytest.mark.parametrize("unit", list(discover(layers, AbstractLayer)), ids=lambda unit: unit.__name__)
def test_pages_are_whole_and_state_the_laws(unit):
    assert unit.page()
    assert unit.SOURCES
    assert not unit.title().startswith("##")
    if unit.CODE in TABLE:
        page = " ".join(inspect.cleandoc(unit.__doc__).lower().split())
        for law in TABLE[unit.CODE].holds & WORDS.keys():
            assert any(words in page for words in WORDS[law]), f"{unit.CODE}: {law} is not stated"


class NoMean(torch.nn.Module):
    """A layer norm that forgets the mean."""

    def forward(self, x):
        return x / x.std((1, 2), keepdim=True)


class PeeksAtOthers(torch.nn.Module):
    """An instance norm with the batch's standard deviation."""

    def forward(self, x):
        return (x - x.mean(2, keepdim=True)) / x.std((0, 2), keepdim=True)


@pytest.mark.parametrize(("wrong", "law"), [(NoMean(), "shift a sample"), (PeeksAtOthers(), "others unseen")])
def test_a_wrong_layer_is_caught(wrong, law):
    assert max(violation(wrong, law, seed) for seed in range(3)) > BROKEN
