"""Covariate shift against its definition: copy, load, run, differentiate; in float64."""

import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.plain_gradients import plain_gradients
from kit.readings import read_beside_copy
from normscope import probes

NETS = [name for name in nets.NETS if name not in ("numpy", "transformer")]
TOLERANCE = 1e-10


ORDER = {
    "mlp": ["0", "1", "3", "4", "6", "7", "9"],
    "eval": ["0", "1", "3", "4", "6", "7", "9"],
    "dropout": ["0", "1", "4", "5", "8", "9", "12"],
    "channels": ["0", "1", "2", "5", "6", "9"],
    "cnn": ["0", "1", "2", "5", "6", "9"],
    "uneven": ["0", "1", "3", "4", "6", "7", "9"],
    "uneven_cnn": ["0", "1", "4", "5", "8"],
    "recurrent": ["first", "second", "outlet"],
    "shared": ["inlet", "shared", "recurrent", "norm", "outlet"],
    "residual": ["inlet", "norm1", "middle", "norm2", "frozen", "outlet"],
}
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def plain_shift(net, before, after, batch, streams, parameters):
    """Definition 2.1, layer by layer, with the order written by hand."""
    order = ORDER[net]
    values = dict(before.named_parameters())
    _, whole = plain_gradients(before, batch, streams)
    found = {}
    for index, site in enumerate(order):
        own = {n: p for n, p in values.items() if n.rpartition(".")[0] == site and p.requires_grad}
        own = {n: p for n, p in own.items() if p.ndim >= 2 or parameters == "all"}
        if not own or isinstance(before.get_submodule(site), NORMS):
            continue
        updated = {n: p for n, p in after.items() if n.rpartition(".")[0] in order[:index]}
        _, mixed = plain_gradients(before, batch, streams, updated)
        g = torch.cat([whole[name].flatten() for name in own])
        h = torch.cat([mixed[name].flatten() for name in own])
        found[site, "l2"] = (h - g).norm().item()
        found[site, "relative"] = ((h - g).norm() / g.norm()).item()
        found[site, "cosine"] = (g @ h / (g.norm() * h.norm())).item()
        found[site, "gradient_norm"] = g.norm().item()
    return found


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", ["auto", "general", "prefix"])
@pytest.mark.parametrize("parameters", ["weight", "all"])
def test_covariate_shift_is_its_definition(net, method, parameters):
    probe = probes.CovariateShift(parameters=parameters, method=method)
    found, before, after, batch, streams = read_beside_copy(net, probe)
    expected = plain_shift(net, before, after, batch, streams, parameters)
    assert list(found) == list(expected)  # also the order of first use
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), key
    deeper = [value for (_, name), value in expected.items() if name == "relative"][1:]
    assert min(deeper) > 1e-3  # the comparison is of something


@pytest.mark.parametrize("net", NETS)
def test_the_prefix_way_is_verified_and_then_trusted(net):
    probe = probes.CovariateShift()
    read_beside_copy(net, probe)
    assert list(probe._trusted.values()) == [True]


def test_a_pass_that_draws_elsewhere_goes_the_general_way():
    probe = probes.CovariateShift()
    read_beside_copy("numpy", probe)
    assert probe._trusted == {}


class ReadsTwice(nn.Module):
    """Uses a value before and after it is overwritten in place by a childless module: not repeatable from outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.a(x)
        first = h.sum(1, keepdim=True)
        rectified = self.relu(h)
        return self.c(self.b(rectified + h) * first)


def test_the_check_refuses_a_net_on_which_the_prefix_way_is_wrong(monkeypatch):
    monkeypatch.setitem(nets.NETS, "twice", (ReadsTwice, (12,)))
    monkeypatch.setitem(ORDER, "twice", ["a", "b", "c"])
    probe = probes.CovariateShift()
    found, before, after, batch, streams = read_beside_copy("twice", probe)
    assert list(probe._trusted.values()) == [False]
    for key, value in plain_shift("twice", before, after, batch, streams, "weight").items():
        assert found[key] == pytest.approx(value, rel=TOLERANCE), key


def test_without_an_update_there_is_no_shift():
    found, *_ = read_beside_copy("cnn", probes.CovariateShift(method="general"), lr=0.0)
    assert {value for (_, name), value in found.items() if name == "l2"} == {0.0}
