"""What records a model in place of running it: torch.fx, in whoever's tracer, torch.jit.trace and torch.jit.script."""

import copy
import math

import pytest
import torch
from torch import fx, nn

from normscope import layers, surgery
from normscope._errors import NormscopeError, UsageError
from normscope.ops import ShapeError, batch_norm
from normscope.ops.sets import Renorm

F64 = torch.float64
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Residual(nn.Module):
    """Two convolutions and their norms beside a shortcut."""

    def __init__(self, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.short = nn.Sequential(nn.Conv2d(channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.short(x))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.layer1, self.layer2 = Residual(6), Residual(6, stride=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class MaskedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNorm1d(3, dtype=F64)

    def forward(self, x, lengths):
        return self.norm(x, lengths=lengths)


def ours(**options):
    torch.manual_seed(4)
    model = Network().double()
    assert len(surgery.convert(model, "batch", **options).done) == 7
    for module in model.modules():
        if isinstance(module, layers.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def images(n=6, seed=1):
    return torch.randn(n, 3, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(seed))


def same(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def run(model, x):
    """Return output, gradients and buffers of one step."""
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return y.detach(), {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())


class Inwards(fx.Tracer):
    """Goes into every module."""

    def is_leaf_module(self, module, path):
        return False


class Leaves(fx.Tracer):
    """Stops at modules of the kinds given, and at torch's, as the tracer of a feature extractor does."""

    def __init__(self, *kinds):
        super().__init__()
        self.kinds = kinds

    def is_leaf_module(self, module, path):
        return isinstance(module, self.kinds) or super().is_leaf_module(module, path)


TRACERS = {"torch's": fx.Tracer, "into everything": Inwards, "with leaves": lambda: Leaves(nn.ReLU, nn.BatchNorm2d)}


@pytest.mark.parametrize("tracer", TRACERS.values(), ids=TRACERS)
@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"statistics": "ghost", "group_size": 3}], ids=str)
def test_a_traced_network_is_the_network(tracer, options):
    """Output, gradients and running statistics of several steps, and then of evaluation."""
    model = ours(**options)
    traced = fx.GraphModule(twin := copy.deepcopy(model), tracer().trace(twin))
    norms = {path for path, module in model.named_modules() if isinstance(module, layers.BatchNorm2d)}
    assert norms == {node.target for node in traced.graph.nodes if node.op == "call_module"} & norms
    traced.graph.lint()
    for training in (True, True, False):
        for seed in (1, 2):
            found = run(traced.train(training), images(seed=seed))
            right = run(model.train(training), images(seed=seed))
            same(found[0], right[0])
            for part, expected in zip(found[1:], right[1:], strict=True):
                same(part, expected)
    assert model.stem[1].num_batches_tracked == 4


def test_a_feature_extractor_cuts_at_a_norm():
    model = ours().eval()
    right = []
    handle = model.layer1.bn2.register_forward_hook(lambda module, args, output: right.append(output.detach()))
    model(images())
    handle.remove()
    traced = fx.GraphModule(model, Leaves(nn.Conv2d).trace(model))
    (node,) = (node for node in traced.graph.nodes if node.target == "layer1.bn2")
    (last,) = (node for node in traced.graph.nodes if node.op == "output")
    traced.graph.erase_node(last)
    traced.graph.output(node)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    same(traced(images()), right[0])
    assert not any(path.startswith("layer2") for path, _ in traced.named_modules())


@QUIET
def test_fx_fusing_is_right_of_ours_and_fuses_what_was_converted_back():
    from torch.fx.experimental import optimization  # warns where it is imported

    model = ours()
    model(images())
    right = model.eval()(images())
    fused = optimization.fuse(model)
    same(fused(images()), right)
    surgery.convert(model, "torch-batch")
    fused = optimization.fuse(model)
    same(fused(images()), right)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


@QUIET
def test_fx_quantisation_takes_a_network_with_ours():
    fx_mode = pytest.importorskip("torch.ao.quantization.quantize_fx", reason="this torch has no torch.ao.quantization")
    model = ours().float()
    x = images().float()
    model(x)
    right = model.eval()(x)
    mapping = torch.ao.quantization.get_default_qconfig_mapping()
    prepared = fx_mode.prepare_fx(copy.deepcopy(model), mapping, (x,))
    prepared(x)
    close = fx_mode.convert_fx(prepared)(x)
    assert (close - right).abs().max() < 0.1 * right.abs().max()


def test_an_interpreter_and_a_transformer_run_it():
    model = ours().eval()
    traced = fx.symbolic_trace(model)
    right = model(images())
    same(fx.Interpreter(traced).run(images()), right)
    same(fx.Transformer(traced).transform()(images()), right)


OTHERS = {
    "instance": (layers.InstanceNorm2d, (3,), {"track_running_stats": True, "momentum": None}),
    "group": (layers.GroupNorm, (3, 3), {}),
    "layer": (layers.LayerNorm, ((3, 8, 8),), {}),
    "rms": (layers.RMSNorm, (8,), {}),
    "tanh": (layers.DynamicTanh, (8,), {}),
    "lp": (layers.LpNorm, (3, 1), {"momentum": None}),
    "largest": (layers.LpNorm, (3, math.inf), {"gaussian": True}),
}


def other(name):
    kind, args, options = OTHERS[name]
    return nn.Sequential(nn.Tanh(), kind(*args, **options)).double()


@pytest.mark.parametrize("tracer", TRACERS.values(), ids=TRACERS)
@pytest.mark.parametrize("name", [*OTHERS, "noise"])
def test_every_layer_is_one_node(name, tracer):
    model = nn.Sequential(nn.Tanh(), layers.TimeVaryingNoise(3)) if name == "noise" else other(name)
    traced = fx.GraphModule(model, tracer().trace(model))
    assert "1" in [node.target for node in traced.graph.nodes if node.op == "call_module"]
    twin = copy.deepcopy(model)
    same(traced(images()), twin(images()))


def test_a_mask_is_recorded_with_the_call():
    model = MaskedNorm()
    traced = fx.symbolic_trace(copy.deepcopy(model))
    x, lengths = torch.randn(4, 3, 5, dtype=F64), torch.tensor([5, 1, 0, 3])
    same(traced(x, lengths), model(x, lengths))
    same(dict(traced.named_buffers()), dict(model.named_buffers()))


def test_a_layer_alone_and_no_tensor_are_refused_in_a_line():
    with pytest.raises(UsageError, match="trace a model that has it as a part"):
        fx.symbolic_trace(layers.BatchNorm1d(3))
    with pytest.raises(UsageError, match="takes a tensor, not an object of type list"):
        layers.BatchNorm1d(3)([1.0, 2.0])


# torch.jit

TRACED = {
    "default": {},
    "simple-average": {"momentum": None},
    "relu": {"activation": "relu"},
    "inplace": {"activation": "leaky_relu", "inplace": True},
    "skip": {"on_bad_update": "skip"},
    "frozen": {"use_running": True, "update_statistics": False},
    "untracked": {"track_running_stats": False},
}
# Whose output depends on a state that a forward moves, so that torch's check, another forward, finds another output.
STATEFUL = {
    "renorm": {"statistics": "renorm", "renorm": Renorm(2.0, 1.0, (0, 1), (0, 1))},
    "uses-running": {"use_running": True},
    "accumulate": {"accumulate": 2},
}


def agrees(traced, model):
    """The trace and the model, from the same buffers: on batches of other sizes than the example's too."""
    with torch.no_grad():
        for name, value in traced.named_buffers():
            value.copy_(model.get_buffer(name))
    for n in (6, 9, 4):
        found, right = run(traced, images(n)), run(model, images(n))
        for part, expected in zip(found, right, strict=True):
            same(part, expected)


@QUIET
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", TRACED)
def test_jit_traces_with_its_own_check(name, training, gradients):
    model = ours(**TRACED[name]).train(training)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(copy.deepcopy(model), images())
    agrees(traced, model)


@QUIET
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", STATEFUL)
def test_jit_traces_what_depends_on_its_past(name, training):
    model = ours(**STATEFUL[name]).train(training)
    traced = torch.jit.trace(copy.deepcopy(model), images(), check_trace=False)
    agrees(traced, model)


@QUIET
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", OTHERS)
def test_jit_traces_every_layer(name, training):
    model = other(name).train(training)
    traced = torch.jit.trace(copy.deepcopy(model), images())
    with torch.no_grad():
        for buffer, value in traced.named_buffers():
            value.copy_(model.get_buffer(buffer))
    for n in (6, 9):
        same(traced(images(n)), model(images(n)), 1e-7)
    same(dict(traced.named_buffers()), dict(model.named_buffers()), 1e-7)


@QUIET
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_jit_traces_lengths_of_other_batches():
    model = MaskedNorm()
    traced = torch.jit.trace(copy.deepcopy(model), (torch.randn(4, 3, 5, dtype=F64), torch.tensor([5, 1, 2, 3])))
    with torch.no_grad():
        for buffer, value in traced.named_buffers():
            value.copy_(model.get_buffer(buffer))
    x, lengths = torch.randn(6, 3, 7, dtype=F64), torch.tensor([7, 1, 2, 3, 5, 6])
    same(traced(x, lengths), model(x, lengths))
    same(dict(traced.named_buffers()), dict(model.named_buffers()))


@QUIET
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_standardized_weights_and_scalars_are_recorded():
    torch.manual_seed(6)
    conv = layers.weight_standardize(nn.Conv2d(3, 4, 3), torch.relu)
    model = nn.Sequential(conv, nn.ReLU(), layers.ScalarGain(0.5), layers.ScalarBias()).double()
    right = model(images())
    same(torch.jit.trace(model, images())(images()), right)
    same(fx.symbolic_trace(model)(images()), right)


@QUIET
def test_a_trace_checks_the_shape_of_its_example():
    with pytest.raises(ShapeError, match="running_mean"):
        torch.jit.trace(nn.Sequential(layers.BatchNorm1d(1)), torch.randn(8, 3))


@QUIET
def test_ghost_batches_are_no_constant_of_a_trace():
    model = ours(statistics="ghost", group_size=3)
    with pytest.raises(UsageError, match="trace in eval mode"):
        torch.jit.trace(model, images())
    agrees(torch.jit.trace(copy.deepcopy(model.eval()), images()), model)


@QUIET
def test_script_is_refused_with_the_way_out():
    model = ours().eval()
    with pytest.raises(UsageError, match=r'surgery.convert\(model, to="torch-batch"\)'):
        torch.jit.script(model)
    right = model(images())
    copied = copy.deepcopy(model)
    surgery.convert(copied, to="torch-batch")
    same(torch.jit.script(copied)(images()), right)
    with pytest.raises(UsageError, match="LayerNorm of normscope"):
        torch.jit.script(layers.LayerNorm(3))


# Errors


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"accumulate": 2}], ids=str)
def test_a_wrong_channel_count_is_torchs_error_and_ours(training, options):
    x = torch.randn(5, 7, 2)
    with pytest.raises(RuntimeError, match="running_mean"):
        nn.BatchNorm1d(4, affine=options.get("affine", True)).train(training)(x)
    for error in (RuntimeError, ValueError, NormscopeError):
        with pytest.raises(error, match=r"running_mean and running_var should each .* 7 channels .* shape \(4,\)"):
            layers.BatchNorm1d(4, **options).train(training)(x)


def test_sizes_that_differ_are_all_named():
    right, short, long = torch.zeros(3), torch.ones(2), torch.ones(5)
    with pytest.raises(ShapeError, match=r"weight and running_var should each have .*, got shape \(2,\) and \(5,\)"):
        batch_norm(torch.randn(4, 3), short, right, running_mean=right, running_var=long)


KINDS = {
    "batch": (layers.BatchNorm2d, (3,)),
    **{name: (kind, args) for name, (kind, args, _) in OTHERS.items()},
    "noise": (layers.TimeVaryingNoise, (3,)),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_does_not_fit_a_layer_is_a_runtime_error(name):
    kind, args = KINDS[name]
    wrong = [torch.randn(2, 5, 9, 9)] + ([torch.ones(2, 3, 8, 8, dtype=torch.int64)] if name != "noise" else [])
    for x in wrong:
        for error in (RuntimeError, UsageError):
            with pytest.raises(error):
                kind(*args)(x)


def test_a_traced_model_is_copied():
    model = ours().eval()
    traced = copy.deepcopy(fx.symbolic_trace(model))
    same(traced(images()), model(images()))
