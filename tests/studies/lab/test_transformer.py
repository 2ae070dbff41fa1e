"""The small transformer: written-out blocks, causality, one set of weights for all arms, and its warm-up."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from normscope._errors import UsageError
from normscope.studies.lab import token_norms
from normscope.studies.lab.data import load
from normscope.studies.lab.transformer import Patches, Shape, transformer
from normscope.studies.lab.warm_up import WarmAdam

NORMS = [getattr(token_norms, name) for name in ("none", "layer", "rms", "dyt", "batch")]


def small(data="text", norm=token_norms.layer, seed=0, **options):
    options = {"width": 16, "blocks": 2, "heads": 2, "context": 8} | options
    return transformer(load(data), norm(), seed=seed, **options)


def characters(count=3, length=8, seed=0):
    return torch.randint(0, load("text").classes, (count, length), generator=torch.Generator().manual_seed(seed))


def jolted(model):
    """The model with no parameter at its initial value, so that no term is hidden."""
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=source)
    return model


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("norm", [token_norms.none, token_norms.layer, token_norms.rms, token_norms.dyt])
def test_no_position_sees_a_later_one(norm, placement):
    model, x = jolted(small(norm=norm, placement=placement)), characters()
    changed = x.clone()
    changed[:, 5:] = (x[:, 5:] + 1) % load("text").classes
    before, after = model(x), model(changed)
    assert before.shape == (3, load("text").classes, 8)
    torch.testing.assert_close(before[..., :5], after[..., :5], rtol=1e-5, atol=1e-5)
    assert (before[..., 5:] - after[..., 5:]).abs().amax() > 1e-3


def test_attention_is_that_of_torch():
    attention = jolted(small()).blocks[0].attention
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    heads = [part(x).view(2, 8, 2, 8).transpose(1, 2) for part in (attention.query, attention.key, attention.value)]
    mixed = scaled_dot_product_attention(*heads, is_causal=True)
    torch.testing.assert_close(attention(x), attention.out(mixed.transpose(1, 2).reshape(2, 8, 16)))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_block_is_its_formula(placement):
    model = jolted(small(placement=placement, residual_scale=lambda index: 0.5 + index))
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    for block, scale in zip(model.blocks, (0.5, 1.5), strict=True):
        a, f, n, m = block.attention, block.feedforward, block.attention_norm, block.feedforward_norm
        if placement == "pre":
            middle = x + scale * a(n(x))
            expected = middle + scale * f.contract(nn.functional.gelu(f.expand(m(middle))))
        else:
            middle = n(x + scale * a(x))
            expected = m(middle + scale * f.contract(nn.functional.gelu(f.expand(middle))))
        torch.testing.assert_close(block(x), expected)


def test_the_last_norm_is_there_before_the_head_of_a_pre_norm_network():
    kinds = {
        (placement, final): isinstance(small(placement=placement, final_norm=final).norm, nn.LayerNorm)
        for placement in ("pre", "post")
        for final in (None, True, False)
    }
    assert kinds == {
        ("pre", None): True, ("pre", True): True, ("pre", False): False,
        ("post", None): False, ("post", True): True, ("post", False): False,
    }  # fmt: skip


@pytest.mark.parametrize("data", ["text", "digits"])
def test_arms_share_their_weights_and_draw_nothing_from_the_global_stream(data):
    state = torch.get_rng_state()
    plain = dict(small(data, token_norms.none).named_parameters())
    for norm in NORMS:
        for placement in ("pre", "post"):
            other = dict(small(data, norm, placement=placement, qk_norm=norm()).named_parameters())
            assert plain.keys() <= other.keys()
            assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(plain["head.weight"], small(data, seed=1).head.weight)


def test_initial_weights_have_the_spread_of_their_source():
    gpt2, xavier = (small(width=128, blocks=3, heads=2, init=init).requires_grad_(False) for init in ("gpt2", "xavier"))
    block, other = gpt2.blocks[1], xavier.blocks[1]
    for weight in (block.attention.query.weight, block.feedforward.expand.weight, gpt2.embed.weight, gpt2.head.weight):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    for weight in (block.attention.out.weight, block.feedforward.contract.weight):
        assert float(weight.std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert float(other.attention.value.weight.var()) == pytest.approx(1 / 128, rel=0.1)
    assert float(other.feedforward.contract.weight.var()) == pytest.approx(2 / (5 * 128), rel=0.1)
    assert float(xavier.embed.weight.var()) == pytest.approx(1, rel=0.1)
    scaled = small(width=128, blocks=3, heads=2, init="xavier-scaled").requires_grad_(False)
    for name, parameter in scaled.named_parameters():
        last = name.endswith(("attention.out.weight", "feedforward.contract.weight"))
        torch.testing.assert_close(parameter * (math.sqrt(6) if last else 1), xavier.get_parameter(name))


def test_norms_of_queries_and_keys_bound_the_logits():
    seen = {}
    for name, qk_norm in {"none": None, "rms": token_norms.rms()}.items():
        model = small(qk_norm=qk_norm)
        with torch.no_grad():
            for block in model.blocks:
                block.attention.query.weight.mul_(1e3)
        model.blocks[0].attention.logits.register_forward_hook(
            lambda module, inputs, out, name=name: seen.update({name: float(out.detach().abs().max())})
        )
        model(characters())
    size = 16 // 2
    assert seen["rms"] <= math.sqrt(size) * 1.001 < seen["none"]  # Cauchy and Schwarz: |q||k|/sqrt(size)


def test_patches_hold_the_pixels_of_their_place():
    patches = Patches(1, 8, 8, 4)
    with torch.no_grad():
        patches.linear.weight.copy_(torch.eye(4))
        patches.linear.bias.zero_()
    image = torch.arange(64.0).view(1, 1, 8, 8)
    assert patches(image)[0, 0].tolist() == [0, 1, 8, 9]
    assert patches(image)[0, 6].tolist() == [20, 21, 28, 29]


@pytest.mark.parametrize(("pool", "positions"), [("class", 17), ("mean", 16)])
def test_images_are_classified_from_16_patches(pool, positions):
    model = jolted(small("digits", pool=pool))
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert model.stream(x).shape == (5, positions, 16)
    assert model(x).shape == (5, 10)
    h = model.stream(x)
    for block in model.blocks:
        h = block(h)
    h = model.norm(h)
    torch.testing.assert_close(model(x), model.head(h[:, 0] if pool == "class" else h.mean(1)))


def test_batch_norm_normalizes_a_feature_over_all_positions():
    norm = token_norms.batch()(type("Place", (), {"features": 6}))
    x = 3 + 2 * torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x).mean((0, 1)), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(norm(x).var((0, 1), correction=0), torch.ones(6), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"placement": "middle"}, "no placement 'middle': use pre or post"),
        ({"pool": "max"}, "no pool 'max': use class or mean"),
        ({"init": "he"}, "no init 'he': use gpt2 or xavier or xavier-scaled"),
        ({"activation": "tanh"}, "no activation 'tanh': use gelu or relu"),
        ({"heads": 3}, "3 heads do not divide a width of 64"),
        ({"heads": 0}, "0 heads do not divide"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        Shape(**options)


def test_images_that_cannot_be_cut_are_refused():
    with pytest.raises(UsageError, match="images of 6x8 cannot be cut into 4x4 patches"):
        Patches(1, 6, 8, 4)


def test_a_warm_up_takes_its_steps_at_their_share_of_the_rate():
    """The first steps of Adam under a constant gradient are of the rate's size, whatever the gradient's."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam, before, moved = WarmAdam([weight], 0.1, warmup=4), 0.0, []
    for _ in range(6):
        weight.grad = torch.full_like(weight, 5.0)
        adam.step()
        moved.append(before - weight.item())
        before = weight.item()
    assert moved == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rel=1e-6)
