"""A network that does not learn without its norms is compared with rescaled weights, and that is said."""

import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn

import normscope as ns
from kit import set_ups
from kit.executed import records


def make_faint_case():
    """Make a set-up whose layers are so faint that without norms nothing passes; norms make up for any scale.

    Classes are equally frequent and the last layer begins at nought, so that its bias alone has nothing to learn.
    """
    layers = []
    for inputs in (6, 8, 8):
        layers += [nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    with torch.no_grad():
        for layer in model[:-1:3]:
            layer.weight.mul_(3e-2)
            layer.bias.zero_()
        model[-1].weight.zero_()
        model[-1].bias.zero_()
    labels = torch.arange(48) % 3
    inputs = 3 * nn.functional.one_hot(labels, 6) + torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return ns.Case(model, set_ups.entropy, [(inputs, labels)], optimizer)


@pytest.mark.trains
def test_rescaled_weights_decide_where_the_network_learns_with_them_alone(tmp_path):
    found = ns.compare(make_faint_case, seeds=3, steps=40, workers=1, questions=["speed"], out=tmp_path)
    assert list(found.arms) == ["own", "none", "rescaled"]
    assert [found.learns(arm) for arm in found.arms] == [True, False, True]
    assert [pair.second for pair in found.pairs] == ["rescaled", "none"]
    assert found.notes[0].startswith("The network without norms does not learn")
    assert "What is said of learning compares with the network without norms but rescaled" in found.notes
    assert "Beside the network without norms: " in found.answers_in_order[0].sentence
    # Other arms in the same folder have nothing of the arm that was added; the first arms have it again.
    options = {"seeds": 3, "steps": 40, "workers": 1, "questions": ["speed"], "out": tmp_path}
    assert list(ns.compare(make_faint_case, ["own", "layer"], **options).arms) == ["own", "layer"]
    before = set(tmp_path.glob("cell-*.json"))
    assert list(ns.compare(make_faint_case, **options).arms) == ["own", "none", "rescaled"]
    assert set(tmp_path.glob("cell-*.json")) == before


@pytest.mark.long
@pytest.mark.trains
def test_the_last_share_to_end_runs_all_of_the_arm_that_only_it_knows_of(tmp_path):
    options = {"seeds": 2, "steps": 40, "rates": [1, 2], "workers": 1, "questions": ["speed", "rates"]}
    whole = ns.compare(make_faint_case, out=tmp_path / "whole", **options)
    with pytest.raises(ns.IncompleteRunError, match="4 of 8 cells are complete"):
        ns.compare(make_faint_case, out=tmp_path / "shares", shard="1/2", **options)
    shared = ns.compare(make_faint_case, out=tmp_path / "shares", shard="2/2", **options)
    assert list(shared.arms) == list(whole.arms) == ["own", "none", "rescaled"]
    assert_frame_equal(records(tmp_path / "shares"), records(tmp_path / "whole"), check_exact=True)
    assert [each.sentence for each in shared.answers_in_order] == [each.sentence for each in whole.answers_in_order]
