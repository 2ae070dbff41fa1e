"""Every layer is found by being there and describes itself."""

import inspect

import pytest
import torch

from normscope import layers
from normscope._unit import discover
from normscope.layers import AbstractLayer

FOUND = list(discover(layers, AbstractLayer))


def test_all_are_found_and_public():
    assert {unit.__name__ for unit in FOUND} == {
        name for name in layers.__all__ if name[0].isupper() and not name.startswith(("Abstract", "BatchNormOptions"))
    }
    assert len({unit.CODE for unit in FOUND}) == len(FOUND)


#: What arXiv:1805.11604 (section 2.1), arXiv:2503.10622 and the definitions take, where torch has no such layer.
PUBLISHED = {
    "DynamicTanh": {"alpha": 0.5, "elementwise_affine": True, "bias": True},
    "LpNorm": {"p": 2, "eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True},
    "TimeVaryingNoise": {
        "mean_bound": 0.5,
        "scale_bound": 1.25,
        "sample_mean_spread": 0.1,
        "sample_scale_spread": 0.1,
        "strength": 1.0,
        "mean": True,
        "scale": True,
        "per_sample": True,
    },
    "WeightStandardization": {"eps": 1e-6},
    "ScalarGain": {"init": 1.0, "learn": True},
    "ScalarBias": {},
}


def defaults(kind):
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in ("device", "dtype")}


@pytest.mark.parametrize("unit", FOUND, ids=lambda unit: unit.__name__)
def test_the_defaults_are_torchs_or_published(unit):
    torchs = getattr(torch.nn, unit.__name__, None)
    right, ours = PUBLISHED.get(unit.__name__) if torchs is None else defaults(torchs), defaults(unit)
    both = right.keys() & ours.keys()
    assert {name: ours[name] for name in both} == {name: right[name] for name in both}
    assert right.keys() - both <= (set() if torchs is None else {"bias"})  # which torch 2.13 gives some norms


@pytest.mark.parametrize("unit", FOUND, ids=lambda unit: unit.CODE)
def test_each_has_a_page(unit):
    assert set(unit.page()) == set(AbstractLayer.HEADINGS)
    assert unit.title().endswith(".")
    assert all(unit.SOURCES)
