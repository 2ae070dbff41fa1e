"""Every unit is found by every name it has."""

import json

import pytest

import normscope
from normscope._errors import UsageError
from normscope._unit import discover
from normscope.explain import unit
from normscope.layers import AbstractLayer


@pytest.mark.parametrize("name", ["noisy-batchnorm", "gradient_flow", "batch_norm_2d"])
def test_explain_knows_every_kind_of_unit(run, name):
    assert run("explain", name).stdout.startswith(f"{name}\n")
    document = json.loads(run("explain", name, "--json").stdout)
    found = unit(name)
    assert document == {
        "code": name,
        "title": found.title(),
        "sources": list(found.SOURCES),
        "page": found.page(),
    }


def test_explain_knows_every_unit():
    layers = list(discover(normscope.layers, AbstractLayer))
    named = [(f"study:{found.CODE}", found) for found in normscope.studies.all()]
    named += [(name, found) for found in normscope.rules.all() for name in (found.CODE, found.SLUG)]
    named += [(f"probe:{found.CODE}", found) for found in normscope.probes.all()]
    named += [(found.__name__, found) for found in (*normscope.probes.all(), *layers)]
    named += [(f"layer:{found.CODE}", found) for found in layers]
    assert len(named) > 100
    for name, expected in named:
        found = unit(name)
        assert found.CODE == expected.CODE
        assert (found if isinstance(found, type) else type(found)) is (
            expected if isinstance(expected, type) else type(expected)
        )
        assert all(text.strip() for text in found.page().values())


def test_a_name_that_two_kinds_share_is_asked_about():
    with pytest.raises(UsageError, match="say study:conditioning or probe:conditioning"):
        unit("conditioning")
    with pytest.raises(UsageError, match="did you mean"):
        unit("probe:noisy-batchnorm")  # a study
