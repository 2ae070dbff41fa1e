"""Which axis a norm takes, against the axis of the layers beside it."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet
from normscope.evidence import Case, examples
from normscope.records import Severity


class Net(nn.Module):
    """Layers called one after the other, with the axes turned around those that are said."""

    def __init__(self, *layers, turned=()):
        super().__init__()
        self.layers, self.turned = nn.ModuleList(layers), turned

    def forward(self, x):
        for index, layer in enumerate(self.layers):
            x = x.transpose(1, 2) if index in self.turned else x
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
            x = x.transpose(1, 2) if index in self.turned else x
        return x


def case_of(*layers, shape=(5, 6), words=0, **options):
    stream = torch.Generator().manual_seed(0)
    model = examples.seeded(lambda: Net(*layers, **options)).train()
    size = (8, *shape)
    loader = [
        torch.randint(words, size[:2], generator=stream) if words else torch.randn(size, generator=stream)
        for _ in range(4)
    ]
    return Case(model, examples.mean_square, loader, torch.optim.SGD(model.parameters(), lr=0.01))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(5), nn.GroupNorm(5, 5), nn.GroupNorm(1, 5), nn.InstanceNorm1d(5, affine=True)]
)
@pytest.mark.parametrize("between", [nn.Identity(), nn.GELU(), nn.Dropout(0.1)])
def test_a_norm_of_the_positions_between_layers_of_the_features(norm, between):
    finding = finding_of(case_of(nn.Linear(6, 7), between, norm, between, nn.Linear(7, 3)), "NS137")
    assert finding.severity is Severity.INFO
    assert finding.places == ("layers.2",)
    assert (finding.measured, finding.bound) == (1, 2)
    assert "the 5 positions of a sequence" in finding.message
    assert "of 7 features" in finding.message


@pytest.mark.parametrize(
    "layers",
    [
        (nn.BatchNorm1d(5), nn.Linear(6, 3)),  # on the data themselves
        (nn.GRU(6, 7, batch_first=True), nn.BatchNorm1d(5)),
        (nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),  # as many features as positions
    ],
)
def test_one_neighbour_is_enough_and_a_square_is_no_way_out(layers):
    assert finding_of(case_of(*layers), "NS137").measured == 1


def test_words_are_a_sequence():
    layers = nn.Embedding(20, 7), nn.BatchNorm1d(5), nn.Linear(7, 3)
    assert finding_of(case_of(*layers, shape=(5,), words=20), "NS137").places == ("layers.1",)


@pytest.mark.parametrize(
    ("layers", "turned", "shape"),
    [
        ((nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)), (1,), (5, 6)),
        ((nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), (1,), (5, 6)),  # turned, though square
        ((nn.Conv1d(6, 5, 3), nn.BatchNorm1d(5), nn.Linear(5, 3)), (), (6, 7)),  # channels, then positions
        ((nn.Conv1d(5, 5, 1), nn.BatchNorm1d(5), nn.Conv1d(5, 5, 1)), (), (5, 6)),
        ((nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3)), (), (5, 6)),
        ((nn.Linear(6, 7), nn.BatchNorm1d(5), nn.Conv1d(5, 3, 1)), (), (5, 6)),  # its neighbours disagree
        ((nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)), (), (6,)),  # no sequence
    ],
)
def test_norms_of_the_axis_of_a_layer_beside_are_left_in_peace(layers, turned, shape):
    assert is_quiet(case_of(*layers, turned=turned, shape=shape), "NS137")


@pytest.mark.parametrize(
    ("layers", "shape", "axis"),
    [
        ((nn.Conv1d(4, 6, 3, padding=1), nn.LayerNorm(9)), (4, 9), 2),
        ((nn.LayerNorm(9), nn.Conv1d(4, 6, 3)), (4, 9), 2),
        ((nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.RMSNorm(9)), (4, 9, 9), 3),
    ],
)
def test_a_norm_of_the_last_axis_between_convolutions(layers, shape, axis):
    finding = finding_of(case_of(*layers, shape=shape), "NS137")
    assert (finding.measured, finding.bound) == (axis, 1)
    assert "the last axis, of 9 positions" in finding.message


def test_layer_norms_of_channels_and_of_whole_maps_are_left_in_peace():
    assert is_quiet(case_of(nn.Conv1d(4, 6, 3, padding=1), nn.LayerNorm(6), shape=(4, 9), turned=(1,)), "NS137")
    assert is_quiet(case_of(nn.Conv2d(4, 6, 3, padding=1), nn.LayerNorm([6, 9, 9]), shape=(4, 9, 9)), "NS137")
