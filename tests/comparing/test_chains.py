"""Chains of layers are found in models, and random networks have the gradients that theory expects of them."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normscope.comparing.chains import NORM, RELU, Chains


def dense(norm=None, activation=nn.ReLU, width=6, count=5):
    """Linear layers with what stands between them."""
    layers = []
    for _ in range(count):
        layers += [nn.Linear(width, width), *([norm(width)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(width, width))


def conv(norm=None, width=6, kernel=3, padding=1, **options):
    """Three convolutions, a pool, and a last one."""

    def block():
        return [
            nn.Conv2d(width, width, kernel, padding=padding, **options), *([norm(width)] if norm else []), nn.ReLU()
        ]  # fmt: skip

    return nn.Sequential(*block(), *block(), *block(), nn.MaxPool2d(2), *block())


def look(model, inputs):
    chains = Chains(model)
    with chains:
        model(inputs)
    return list(chains.expected(len(inputs)))


def sites(model, inputs):
    """The layers of each chain, from input to output, by kind."""
    found = {}
    for layer in look(model, inputs):
        found.setdefault((layer.chain, layer.kind), []).insert(0, layer.site)
    return {kind: names for (_, kind), names in found.items()}


class Around(nn.Module):
    """A model of the user's own around a sequence, with a branch that theory knows nothing of."""

    def __init__(self, inside):
        super().__init__()
        self.inside, self.beside = inside, nn.Linear(6, 6)

    def forward(self, x):
        return self.inside(x) + self.beside(x)


VECTORS, IMAGES = torch.randn(8, 6), torch.randn(4, 6, 8, 8)


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (dense(), VECTORS, {RELU: ["0", "2", "4", "6", "8", "10"]}),
        (dense(nn.BatchNorm1d), VECTORS, {NORM: ["6", "9", "12"]}),
        (dense(nn.BatchNorm1d, width=70), torch.randn(8, 70), {NORM: ["3", "6", "9", "12"]}),
        (dense(lambda width: nn.Identity()), VECTORS, {RELU: ["0", "3", "6", "9", "12", "15"]}),
        (Around(dense(count=2)), VECTORS, {RELU: ["inside.0", "inside.2", "inside.4"]}),
        (nn.Sequential(dense(count=1), nn.ReLU(), dense(count=1)), VECTORS, {RELU: ["0.0", "0.2", "2.0", "2.2"]}),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), dense(nn.BatchNorm1d, count=4)), VECTORS,
         {RELU: ["0", "2.0"], NORM: ["2.6", "2.9"]}),
        (conv(), IMAGES, {RELU: ["0", "2", "4"]}),
        (conv(nn.BatchNorm2d, kernel=5, padding=2), IMAGES, {NORM: ["3", "6"]}),
        (conv(nn.BatchNorm2d), IMAGES, {}),
        (conv(kernel=5, padding="same"), IMAGES, {RELU: ["0", "2", "4"]}),
        (conv(padding=0), torch.randn(4, 6, 24, 24), {}),
        (conv(groups=2), IMAGES, {}),
        (conv(padding_mode="circular"), IMAGES, {}),
        (dense(activation=nn.Tanh), VECTORS, {}),
        (dense(nn.LayerNorm), VECTORS, {}),
        (dense(nn.BatchNorm1d).eval(), VECTORS, {}),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 6)), VECTORS, {}),
        (nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 3)), IMAGES, {}),
        (nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(6, 6, 3), nn.ReLU()), IMAGES, {}),
        (nn.Sequential(nn.Sequential(), nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(6)), VECTORS, {}),
        (nn.ModuleList([nn.Linear(6, 6)])[0], VECTORS, {}),
    ],
)  # fmt: skip
def test_chains_are_found_where_nothing_else_stands_between_the_layers(model, inputs, expected):
    assert sites(model, inputs) == expected


def test_a_layer_that_stands_twice_in_a_sequence_makes_no_chain():
    layer = nn.Linear(6, 6)
    assert look(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(6, 6)), VECTORS) == []


def test_shifts_and_weights_of_nought_are_no_random_network():
    shifted, nought = dense(nn.BatchNorm1d, count=3), dense(count=2)
    nn.init.constant_(shifted[4].bias, 0.5)
    nn.init.zeros_(nought[4].weight)
    assert look(shifted, VECTORS) == []
    assert sites(nought, VECTORS) == {RELU: ["0", "2"]}


def test_no_hook_stays_behind():
    model = conv(nn.BatchNorm2d)
    look(model, IMAGES)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_is_expected_is_of_the_weights_before_the_step():
    model = dense(count=2)
    with (chains := Chains(model)):
        model(VECTORS)
    before = list(chains.expected(8))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert list(chains.expected(8)) == before


def test_the_level_of_a_linear_chain_is_the_product_of_half_its_gains():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    for layer, value in ((model[2], 0.5), (model[4], 2.0)):
        nn.init.constant_(layer.weight, value)
    levels = {layer.site: layer.level for layer in look(model, torch.randn(8, 4))}
    assert levels == pytest.approx({"4": 0.0, "2": math.log(4 * 5 / 2), "0": math.log(4 * 5 / 2 * 0.25 * 3 / 2)})


def growths(model, inputs):
    """Measured and expected logarithm of the growth from each layer of a chain to the one before it."""
    squares = {}

    def note(site):
        def of(gradient):
            squares[site] = math.log(float(gradient.square().mean()) * gradient.shape[1])

        return lambda module, given, output: output.register_hook(of) and None

    for site, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(note(site))
    with (chains := Chains(model)):
        outputs = model(inputs)
    outputs.backward(torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)))
    layers = list(chains.expected(len(inputs)))
    pairs = [pair for pair in itertools.pairwise(layers) if pair[0].chain == pair[1].chain]
    return torch.tensor(
        [[squares[near.site] - squares[far.site], near.level - far.level] for far, near in pairs], dtype=torch.float64
    )


def vgg(norm, width=16):
    """Nine convolutions as VGG has them, at a quarter of its width, with torch's initial weights, and a last layer."""
    layers, channels = [], 3
    for number, count in ((1, 2), (2, 3), (4, 4)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, channels := number * width, 3, padding=1)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if norm else [nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def images(seed):
    """Images that are smooth, as photographs are, with noise."""
    generator = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.randn(64, 3, 4, 4, generator=generator), size=16, mode="bilinear")
    return smooth + 0.3 * torch.randn(64, 3, 16, 16, generator=generator)


@pytest.mark.parametrize(
    ("make", "inputs", "of_each", "of_all"),
    [
        (lambda: dense(width=128), lambda seed: torch.randn(256, 128), 0.12, 0.03),
        (lambda: dense(nn.BatchNorm1d, width=128), lambda seed: torch.randn(256, 128), 0.05, 0.02),
        (lambda: vgg(norm=False), images, 0.2, 0.05),
        (lambda: vgg(norm=True), images, 0.15, 0.05),
    ],
    ids=["dense", "dense with batch norm", "vgg", "vgg with batch norm"],
)
def test_random_networks_have_the_gradients_that_theory_expects(make, inputs, of_each, of_all):
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        found.append(growths(make(), inputs(seed)))
    measured, expected = torch.stack(found).mean(0).T
    assert len(measured) >= 3
    assert measured.tolist() == pytest.approx(expected.tolist(), abs=of_each)
    assert float(measured.mean()) == pytest.approx(float(expected.mean()), abs=of_all)
