"""Which modules are norms, by which of the two questions, and which bear weight."""

import pytest
import torch
from torch import nn

from kit import foreign_norms, own_norms
from normscope import layers
from normscope._errors import UsageError
from normscope.modules import sites
from normscope.modules.tree import childless, is_childless, own_parameters, walk


class ScaleNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4, 4))


class NormalizedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)


class OfBatchNorm(nn.BatchNorm1d):
    pass


# The module, whether it normalizes as far as its class tells, whether it is a norm whose kind is known.
MODULES = [
    (nn.BatchNorm2d(3), True, True),
    (nn.SyncBatchNorm(3), True, True),
    (layers.BatchNorm1d(3), True, True),
    (OfBatchNorm(3), True, True),
    (nn.InstanceNorm1d(3), True, True),
    (nn.GroupNorm(1, 3), True, True),
    (nn.LayerNorm(3), True, True),
    (nn.RMSNorm(3), True, True),
    (nn.LocalResponseNorm(2), True, False),
    (nn.CrossMapLRN2d(2), False, False),
    (ScaleNorm(), True, False),
    (NormalizedBlock(), False, False),
    (own_norms.Standardiser(3), True, False),
    (own_norms.FrozenBatchNormAct2d(3), True, False),
    (foreign_norms.ABN(3), True, False),
    (foreign_norms.Normalize([0.0], [1.0]), True, False),
    (own_norms.LayerScale(3), False, False),
    (nn.Linear(2, 2), False, False),
]


@pytest.mark.parametrize(("module", "normalizes", "known"), MODULES, ids=lambda x: type(x).__name__)
def test_the_two_questions_about_norms(module, normalizes, known):
    assert sites.normalizes(module) is normalizes
    assert sites.is_known_norm(module) is known


def test_layers_that_bear_weight_and_norms_in_order_of_registration():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), ScaleNorm(), nn.Sequential(nn.Linear(3, 3, bias=False)))
    nn.utils.parametrizations.weight_norm(model[0])
    assert list(sites.weight_layers(model)) == ["0", "3.0"]
    assert list(sites.norms(model)) == ["1", "2"]
    assert list(sites.pre_activations(model)) == ["0", "1", "2", "3.0"]
    assert [name for name, _ in own_parameters(model[0])] == [
        "bias", "parametrizations.weight.original0", "parametrizations.weight.original1",
    ]  # fmt: skip


def test_what_is_known_of_a_model_is_forgotten_when_it_changes():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert list(sites.weight_layers(model)) == ["0"]
    model[1] = nn.Linear(2, 2)
    assert list(sites.weight_layers(model)) == ["0", "1"]
    model[0].weight = None
    del model[0]._parameters["weight"]
    assert list(sites.weight_layers(model)) == ["1"]


def test_a_question_is_asked_again_only_after_the_model_has_changed():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    asked = []

    def find():
        asked.append(1)
        return {"last": model[-1]}

    for _ in range(2):
        assert sites.kept_sites(model, "last", sites.Tree(model), find) == {"last": model[1]}
    assert len(asked) == 1
    model.append(nn.Tanh())
    assert sites.kept_sites(model, "last", sites.Tree(model), find) == {"last": model[2]}
    assert len(asked) == 2


def test_norms_that_track():
    model = nn.Sequential(
        nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2, track_running_stats=True)
    )
    assert list(sites.tracking(model)) == ["0"]
    assert [sites.uses_batch(norm) for norm in model.eval()[:2]] == [False, True]


def test_the_walk_is_torchs():
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Sequential(nn.Linear(2, 2), shared), nn.Sequential())
    model[2].add_module("none", None)
    assert walk(model) == list(model.named_modules())
    assert list(childless(dict(walk(model)))) == ["0", "1.0", "2"]
    assert [is_childless(module) for module in (model, model[2], shared)] == [False, True, True]


def test_modules_are_chosen_by_name_in_the_order_asked_for():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()))
    found = sites.chosen(model, ["1.0", "0"])
    assert list(found.items()) == [("1.0", model[1][0]), ("0", model[0])]
    with pytest.raises(UsageError, match=r"no module '2'; it has 0, 1, 1\.0, 1\.1"):
        sites.chosen(model, ["0", "2"])
