"""Models: the arm decides what stands between linear layer and activation, and nothing else."""

import math

import pytest
import torch
from torch import nn

from normscope._errors import UsageError
from normscope.studies.lab import models
from normscope.studies.lab.models import Place, build, deep_linear, mlp, vgg_a


def instance(place: Place) -> nn.Module:
    """A normalization with parameters, drawn at random: a bad arm that uses the global random state."""
    module = nn.BatchNorm2d(place.features) if place.spatial else nn.BatchNorm1d(place.features)
    nn.init.normal_(module.weight)
    return module


def plain(place: Place) -> nn.Module:
    return nn.Identity()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


MAKERS = {
    "mlp": lambda norm, seed: build("mlp", shape=(1, 8, 8), classes=10, norm=norm, seed=seed, depth=3, width=16),
    "cnn": lambda norm, seed: build("cnn-s", shape=(1, 8, 8), classes=10, norm=norm, seed=seed),
    "vgg": lambda norm, seed: build("vgg-a", shape=(3, 16, 16), classes=10, norm=norm, seed=seed, width=4),
    "dln": lambda norm, seed: deep_linear(norm=norm, seed=seed),
}


@pytest.mark.parametrize("name", MAKERS)
def test_arms_share_initial_weights(name):
    torch.manual_seed(0)
    one = MAKERS[name](plain, 3)
    torch.manual_seed(99)
    two = MAKERS[name](instance, 3)
    other = MAKERS[name](plain, 4)
    assert weights(one).keys() == weights(two).keys()
    for key, weight in weights(one).items():
        assert torch.equal(weight, weights(two)[key])
        assert not torch.equal(weight, weights(other)[key])


@pytest.mark.parametrize("name", MAKERS)
def test_building_leaves_the_global_random_state_alone(name):
    before = torch.random.get_rng_state()
    MAKERS[name](plain, 1)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg"])
def test_he_spread_zero_bias_and_no_normalization_on_the_logits(name):
    model = MAKERS[name](instance, 0)
    for key, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert (module.bias == 0).all()
            if module.weight.numel() > 1000:
                wanted = math.sqrt(2 / module.weight[0].numel())
                assert module.weight.std().item() == pytest.approx(wanted, rel=0.1), key
    assert isinstance(model.head, nn.Linear)
    assert model.sites() == [f"blocks.{i}.norm" for i in range(len(model.blocks))]


def test_order_within_a_block_is_linear_norm_activation():
    seen: list[str] = []
    model = mlp(1, 4, inputs=3, classes=2, norm=instance, seed=0)
    for name in ("linear", "norm", "activation"):
        model.blocks[0].get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    model(torch.randn(5, 3))
    assert seen == ["linear", "norm", "activation"]


def test_vgg_a_is_configuration_a():
    model = vgg_a(shape=(3, 32, 32), classes=10, norm=plain, seed=0)
    assert [b.linear.out_channels for b in model.blocks] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert model.head.in_features == 512  # five poolings leave one position of 32x32
    assert sum(p.numel() for b in model.blocks for p in b.parameters()) == 9_220_480


@pytest.mark.parametrize("side", [1, 4, 8, 28, 32])
def test_vgg_takes_smaller_images(side):
    model = vgg_a(shape=(1, side, side), classes=3, norm=instance, seed=0, width=2)
    assert model(torch.randn(4, 1, side, side)).shape == (4, 3)


def test_deep_linear_is_the_product_of_its_matrices():
    model = deep_linear(norm=plain, seed=2).double()
    x = torch.randn(7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = torch.eye(10, dtype=torch.float64)
    for block in model.blocks:
        product = block.linear.weight @ product
    assert len(model.blocks) == 25
    torch.testing.assert_close(model(x), x @ product.T, rtol=1e-10, atol=1e-12)
    assert isinstance(deep_linear(norm=instance, seed=2).blocks[-1].norm, nn.Identity)
    assert isinstance(deep_linear(norm=instance, seed=2, last=True).blocks[-1].norm, nn.BatchNorm1d)


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet", (1, 8, 8)), ("cnn-s", (64,)), ("cnn-s", (1, 3, 3)), ("vgg-a", (64,))]
)
def test_unknown_or_unfitting_network(name, shape):
    with pytest.raises(UsageError):
        build(name, shape=shape, classes=2, norm=plain, seed=0)


def test_unknown_activation():
    with pytest.raises(UsageError, match="relu"):
        models.mlp(1, 2, inputs=2, classes=2, norm=plain, seed=0, activation="maxout")


def test_every_network_takes_the_activation_it_is_given():
    for name, sizes in (("mlp", {"depth": 1, "width": 4}), ("cnn-s", {}), ("vgg-a", {"width": 2})):
        options = {"shape": (1, 8, 8), "classes": 10, "seed": 0, "activation": "tanh"} | sizes
        kinds = {type(module) for module in build(name, norm=lambda place: nn.Identity(), **options).modules()}
        assert nn.Tanh in kinds
        assert nn.ReLU not in kinds
