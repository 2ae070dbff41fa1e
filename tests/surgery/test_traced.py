"""Converted models are traced, scripted, exported and fused as models of torch's norms are."""

import copy

import pytest
import torch
from torch import fx, nn

from kit import foreign_norms as foreign, own_norms as own
from kit.small_convnets import images, small_convnet
from normscope import surgery

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch calls torch.jit so
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # of torch's own checks of sizes
]

WAYS = {
    "torch.fx": lambda model, x: fx.symbolic_trace(model),
    "torch.jit.trace": lambda model, x: torch.jit.trace(model, x),  # its check is on
    "torch.jit.script": lambda model, x: torch.jit.script(model),
    "torch.export": lambda model, x: torch.export.export(model, (x,)).module(),
}


def tokens():
    layers = nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8, bias=False)
    return nn.Sequential(*layers), torch.randn(4, 5, 6)


def maps():
    model = small_convnet()
    model[8].p = 0.0
    return model, images()


def others():
    parts = [nn.Conv2d(3, 8, 1), foreign.BatchNormAct2d(8), foreign.LayerNorm2d(8), own.Standardiser(8)]
    return nn.Sequential(*parts), images()


def assert_all_ways_give_the_same(model, x, ways=WAYS):
    for training in (False, True):
        expected = copy.deepcopy(model.train(training))(x)
        for way in ways:
            found = WAYS[way](copy.deepcopy(model), x)(x)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=f"{way}, training={training}")


@pytest.mark.parametrize(
    ("make", "to"),
    [(tokens, "rms"), (tokens, "group"), (maps, "rms"), (maps, "affine"), (others, "instance"), (others, "affine")],
)
def test_a_converted_model_is_traced_and_scripted_and_exported(make, to):
    model, x = make()
    assert surgery.convert(model, to, example=x).done
    assert_all_ways_give_the_same(model, x)


def test_this_librarys_norms_are_traced_and_exported():
    model, x = maps()
    surgery.convert(model, "batch")
    assert_all_ways_give_the_same(model, x, [way for way in WAYS if way != "torch.jit.script"])


@pytest.mark.parametrize("to", ["torch-batch", "batch", "group", "rms", "affine"])
def test_torchs_fuser_keeps_the_function_of_a_converted_model(to):
    from torch.fx.experimental.optimization import fuse  # which warns where it is imported

    model, x = maps()
    surgery.convert(model, to, example=x)
    expected = model.eval()(x)
    for fused in (fuse(model), surgery.fold(copy.deepcopy(model), x).model):
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
    if to != "batch":  # torch's fuser knows classes by name, and leaves this library's as they are
        assert not any(type(module) is nn.BatchNorm2d for module in fuse(model).modules())


@pytest.mark.parametrize("to", ["group", "rms", "affine"])
def test_features_are_taken_out_of_the_graph_of_a_converted_model(to):
    """As torchvision's feature extraction: the graph ends at a node of one's choice."""
    model, x = maps()
    surgery.convert(model, to, example=x)
    graph = fx.symbolic_trace(model.eval()).graph
    node = next(node for node in graph.nodes if str(node.target) == "3.conv2")
    for each in reversed(graph.nodes):
        if each.op == "output":
            graph.erase_node(each)
    graph.output(node)
    graph.eliminate_dead_code()
    seen = []
    model[3].conv2.register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    torch.testing.assert_close(fx.GraphModule(model, graph)(x), seen[0])
    assert not any(str(node.target).startswith("7") for node in graph.nodes)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
def test_what_surgery_leaves_behind_is_the_same_for_any_number_of_axes(axis, ndim):
    shape = (2, 3, 4, 5, 6)[:ndim]
    x, channels = torch.randn(shape, dtype=torch.float64), shape[axis]
    w, b = (nn.Parameter(torch.randn(channels, dtype=torch.float64)) for _ in range(2))
    over = tuple(range(1, ndim)) if axis == 1 else (-1,)
    placed = [1] * ndim
    placed[axis] = channels
    y = x * (x.square().mean(over, keepdim=True) + 1e-5).rsqrt()
    torch.testing.assert_close(surgery.RMSNorm(w, b, axis)(x), y * w.view(placed) + b.view(placed))
    torch.testing.assert_close(surgery.ChannelAffine(w, b, axis)(x), x * w.view(placed) + b.view(placed))
    assert surgery.RMSNorm(w, b, axis).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
