"""``normscope rules``, ``probes`` and ``layers`` list what there is."""

import json

import pytest

from normscope import layers, probes, rules
from normscope._unit import discover

NAMES = {
    "rules": [rule.CODE for rule in rules.all()],
    "probes": [probe.CODE for probe in probes.all()],
    "layers": [layer.__name__ for layer in discover(layers, layers.AbstractLayer)],
}


@pytest.mark.parametrize("word", NAMES)
def test_every_unit_is_listed_once_and_can_be_explained(run, word):
    listed = json.loads(run(word, "--json").stdout)
    assert [next(iter(row.values())) for row in listed] == NAMES[word]
    assert all(all(row.values()) or word == "probes" for row in listed)
    text = run(word).stdout
    assert all(name in text for name in NAMES[word])
    assert run("explain", NAMES[word][0]).stdout
