"""Every layer is found by being there and describes itself."""

import pytest

from normscope import layers
from normscope._unit import discover
from normscope.layers import AbstractLayer

FOUND = list(discover(layers, AbstractLayer))


def test_all_are_found_and_public():
    assert {unit.__name__ for unit in FOUND} == {
        name for name in layers.__all__ if name[0].isupper() and not name.startswith(("Abstract", "BatchNormOptions"))
    }
    assert len({unit.CODE for unit in FOUND}) == len(FOUND)


@pytest.mark.parametrize("unit", FOUND, ids=lambda unit: unit.CODE)
def test_each_has_a_page(unit):
    assert set(unit.page()) == set(AbstractLayer.HEADINGS)
    assert unit.title().endswith(".")
    assert all(unit.SOURCES)
