"""A small comparison of every question, and the same without its records."""

import pytest

import normscope as ns
from kit import set_ups
from normscope import comparing


@pytest.fixture(scope="session")
def comparison(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    options = {"seeds": 3, "steps": 12, "rates": [0.5, 1], "workers": 1, "out": out}
    return ns.compare(set_ups.make_case, ["own", "none", "fixed-affine"], **options)


@pytest.fixture(scope="session")
def kept(comparison):
    return comparing.condense(comparison, network="small network", data="blobs")
