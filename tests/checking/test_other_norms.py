"""A check names the norms of classes that its rules do not know, and judges the running statistics that they keep."""

import pytest
import torch
from torch import nn

import normscope as ns
from kit import foreign_norms as foreign, own_norms as own


def case(norm, *, trained=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(8 * 16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    stream = torch.Generator().manual_seed(1)
    batches = [(torch.randn(16, 3, 6, 6, generator=stream), torch.arange(16) % 2) for _ in range(6)]
    made = ns.Case(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), batches, optimizer, batches)
    for x, labels in batches * (5 if trained else 0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return made


MAKE = {
    "Standardiser": lambda: own.Standardiser(8, momentum=0.9),
    "SyncBatchNorm": lambda: own.SyncBatchNorm(8),
    "ABN": lambda: foreign.ABN(8),
}


@pytest.mark.parametrize("name", MAKE)
def test_statistics_that_cannot_be_are_found_and_mended_under_any_name(name):
    made = case(MAKE[name]())
    assert not ns.check(made, ["NS103", "NS109"])
    mean = next(b for key, b in made.model.named_buffers() if "mean" in key)
    mean[3] = float("nan")
    (finding,) = ns.check(made, ["NS103"])
    assert finding.places == ("1",)
    assert ns.fix(made, [finding], unsafe=True)[0].done
    assert not ns.check(made, ["NS103"])
    h = torch.cat([made.model[0](x) for x, _ in made.loader])
    torch.testing.assert_close(mean, h.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MAKE)
def test_statistics_of_a_new_layer_are_found_in_a_trained_network_only(name):
    made = case(MAKE[name]())
    with torch.no_grad():
        for key, buffer in made.model.named_buffers():
            buffer.fill_(1 if "var" in key else 0)
    made.optimizer.state[made.model[0].weight]["momentum_buffer"] = torch.ones(8, 3, 3, 3)
    (finding,) = ns.check(made, ["NS109"])
    assert (finding.places, finding.fixable) == (("1",), False)
    assert not ns.check(case(MAKE[name](), trained=False), ["NS109"])


@pytest.mark.parametrize("make", [lambda: foreign.FrozenBatchNorm2d(8), lambda: own.FrozenBatchNormAct2d(8)])
def test_a_norm_that_its_class_freezes_may_hold_any_statistics_that_can_be(make):
    made = case(make())
    made.model[1].running_mean.zero_()
    made.model[1].running_var.fill_(1)
    found = ns.check(made, ["NS103", "NS109"])
    assert not found
    assert "its running statistics never move" in found.notes[0]
    made.model[1].running_var[2] = -1
    assert [finding.code for finding in ns.check(made, ["NS103", "NS109"])] == ["NS103"]


def test_each_class_is_named_once_with_its_places():
    made = case(
        nn.Sequential(own.FRN(8), own.Standardiser(8), own.FRN(8), nn.BatchNorm2d(8), foreign.Normalize([0.0], [1.0]))
    )
    found = ns.check(made, ["NS103"])
    assert [note.split(",")[0] for note in found.notes] == [
        "2 norms of the class FRN (1.0",
        "1 norm of the class Standardiser (1.1)",
    ]
    assert all(f"note: {note}" in str(found) for note in found.notes)
    assert "Standardiser" in found._repr_html_()
    assert not ns.check(case(nn.BatchNorm2d(8)), ["NS103"]).notes
