"""An argument of the wrong kind is refused in one short line, which shows no tensor, and the model stays as it was."""

import pytest
import torch
from torch import nn

from kit.small_convnets import assert_same_state, images, small_convnet, state_of
from normscope import layers, surgery
from normscope._errors import UsageError

WRONG = [torch.zeros(500), nn.Linear(3, 4), object(), 3, 2.5]
CALLS = {
    "rescale": lambda model, wrong: surgery.strip(model, wrong),
    "to": lambda model, wrong: surgery.convert(model, wrong),
    "policy": lambda model, wrong: surgery.average_buffers(model, small_convnet(), wrong),
    "loader": lambda model, wrong: surgery.recalibrate(model, wrong),
    "num_batches": lambda model, wrong: surgery.recalibrate(model, [images()], num_batches=wrong),
    "only": lambda model, wrong: surgery.freeze(model, only=wrong),
    "statistics": lambda model, wrong: surgery.convert(model, "batch", statistics=wrong),
}
# A tensor is a loader of its rows; a module is a function of the old norm, or of path and module.
MEANT = {("loader", torch.Tensor), ("to", nn.Linear), ("only", nn.Linear), ("num_batches", int)}
REFUSED = [(name, wrong) for name in CALLS for wrong in WRONG if (name, type(wrong)) not in MEANT]


@pytest.mark.parametrize(("name", "wrong"), REFUSED, ids=[f"{name}-{type(wrong).__name__}" for name, wrong in REFUSED])
def test_a_value_of_another_kind_is_refused_by_its_type(name, wrong):
    model = small_convnet()
    before = state_of(model)
    with pytest.raises(UsageError, match=rf"^{name}\b") as refused:
        CALLS[name](model, wrong)
    said = str(refused.value)
    shown = str(wrong) if isinstance(wrong, int | float) else f"type {type(wrong).__name__}"
    assert shown in said
    assert len(said) < 200
    assert "\n" not in said
    assert_same_state(before, state_of(model))


def test_a_layer_shows_no_tensor_either():
    with pytest.raises(UsageError, match=r"got an object of type Tensor$"):
        layers.BatchNorm1d(3, statistics=torch.zeros(500))
