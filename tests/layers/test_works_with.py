"""What people do with a batch norm: compile, export, transform, fuse, make it lazy."""

import copy
import warnings

import pytest
import torch
from torch import nn

from normscope import layers, surgery
from normscope._errors import UsageError
from normscope.ops.sets import Renorm

F64 = torch.float64
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

VARIANTS = {
    "default": {},
    "simple-average": {"momentum": None},
    "relu": {"activation": "relu"},
    "inplace": {"activation": "leaky_relu", "inplace": True},
    "ghost": {"statistics": "ghost", "group_size": 3},
    "renorm": {"statistics": "renorm", "renorm": Renorm(2.0, 1.0, (0, 1), (0, 1))},
    "sync-alone": {"statistics": "sync"},
    "accumulate": {"accumulate": 2},
    "skip": {"on_bad_update": "skip"},
    "uses-running": {"use_running": True},
    "frozen": {"use_running": True, "update_statistics": False},
    "biased": {"unbiased_variance": False},
    "no-bias": {"bias": False},
}


def network(options, channels=4):
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        layers.BatchNorm2d(channels, **options),
        nn.Tanh(),
        nn.Conv2d(channels, 2, 1),
    ).double()
    nn.init.normal_(model[1].weight)
    return model


def images(n=7):
    return torch.randn(n, 3, 4, 5, dtype=F64, generator=torch.Generator().manual_seed(1))


def step(model, x, *more):
    for p in model.parameters():
        p.grad = None
    y = model(x, *more)
    y.square().sum().backward()
    return y.detach(), [p.grad for p in model.parameters()]


def same(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# torch.func


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_ensembles_by_functional_call_under_vmap_and_grad(options):
    """Parameters and buffers stacked: every network trains as it does by itself."""
    models = [network(options) for _ in range(3)]
    for i, model in enumerate(models):
        with torch.no_grad():
            model[0].weight.mul_(1 + i)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0])

    def loss(p, b, x):
        y = torch.func.functional_call(base, (p, b), (x,))
        return y.square().sum(), y

    x = images()
    for _ in range(2):
        grads, y = torch.func.vmap(torch.func.grad(loss, has_aux=True), (0, 0, None))(parameters, buffers, x)
        for i, model in enumerate(models):
            right, expected = step(model, x)
            same(y[i], right)
            for (name, _), g in zip(model.named_parameters(), expected, strict=True):
                same(grads[name][i], g, 1e-7)
            for name, value in model.named_buffers():
                same(buffers[name][i], value)


def test_vmap_refuses_buffers_that_are_not_stacked_as_in_torch():
    with pytest.raises(RuntimeError, match="running_mean"):
        torch.func.vmap(nn.BatchNorm1d(3))(torch.randn(2, 8, 3))
    with pytest.raises(UsageError, match="stack the buffers"):
        torch.func.vmap(layers.BatchNorm1d(3))(torch.randn(2, 8, 3))
    layer = layers.BatchNorm1d(3, update_statistics=False)  # what torch offers no switch for
    y = torch.func.vmap(layer)(torch.randn(2, 8, 3))
    assert y.shape == (2, 8, 3)


@QUIET
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_forward_mode_and_jvp(options):
    layer = layers.BatchNorm1d(3, dtype=F64, **options)
    nn.init.normal_(layer.weight)
    twin = copy.deepcopy(layer)
    x, t = torch.randn(2, 8, 3, dtype=F64)
    layer.update_statistics = False  # torch.func lets no buffer be moved that is not passed in, ours as torch's
    _, found = torch.func.jvp(lambda x: layer(x), (x,), (t,))
    h = 1e-6
    high, low = copy.deepcopy(twin)(x + h * t), copy.deepcopy(twin)(x - h * t)
    if "renorm" not in repr(layer):  # whose correction is a constant to derivatives
        same(found, ((high - low) / (2 * h)).detach(), 1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, t)
        same(torch.autograd.forward_ad.unpack_dual(twin(dual)).tangent, found)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, layers.BatchNorm1d])
def test_torch_func_lets_no_captured_buffer_be_moved(kind):
    layer, x = kind(3), torch.randn(8, 3)
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        torch.func.grad(lambda x: layer(x).sum())(x)
    buffers = dict(layer.named_buffers())
    stepped = torch.func.functional_call

    def loss(x, buffers):
        return stepped(layer, buffers, (x,)).square().sum(), buffers

    before = {name: value.clone() for name, value in buffers.items()}
    _, moved = torch.func.grad(loss, has_aux=True)(x, before)
    assert moved["num_batches_tracked"] == 1


# torch.compile and torch.export


@QUIET
@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_compiles_without_a_break(options):
    torch._dynamo.reset()
    plain = network(options)
    model = copy.deepcopy(plain)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for training in (True, True, True, False):
        for m in (plain, model):
            m.train(training)
        for found, right in zip(step(compiled, images()), step(plain, images()), strict=True):
            same(found, right, 1e-7)
        same(model.state_dict(), plain.state_dict())


@QUIET
@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    plain = network({})
    model = copy.deepcopy(plain)
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(2):
        for found, right in zip(step(compiled, images()), step(plain, images()), strict=True):
            same(found, right, 1e-7)
    same(model.state_dict(), plain.state_dict())


@QUIET
def test_compiles_a_mask():
    torch._dynamo.reset()
    plain = layers.BatchNorm1d(3, dtype=F64)
    model = copy.deepcopy(plain)
    x, lengths = torch.randn(4, 3, 5, dtype=F64), torch.tensor([5, 1, 0, 3])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    same(compiled(x, lengths=lengths), plain(x, lengths=lengths))
    same(model.state_dict(), plain.state_dict())


@QUIET
def test_checkpointing_inside_a_compiled_region():
    torch._dynamo.reset()
    layer = layers.BatchNorm1d(3, dtype=F64)
    plain = copy.deepcopy(layer)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x):
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).square().sum()

    x = torch.randn(8, 3, dtype=F64, requires_grad=True)
    run(x).backward()
    plain(x)
    same(dict(layer.named_buffers()), dict(plain.named_buffers()))


@QUIET
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"momentum": None}], ids=str)
def test_exports(training, options):
    model = network(options).train(training)
    plain = copy.deepcopy(model)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},), strict=False)
    assert "normscope" not in str(program.graph)  # operators that every runtime has
    run = program.module()
    for n in (7, 5):
        same(run(images(n)), plain(images(n)))
    state = dict(run.named_buffers())
    for name, value in plain.named_buffers():
        same(state[name], value)
    # What an ONNX exporter starts from.
    decomposed = program.run_decompositions()
    same(decomposed.module()(images()), plain(images()))


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's exporter warns of its own code
def test_onnx():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: test_exports covers the graph it is made from")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    program = torch.onnx.export(network({}).eval(), (images(),), dynamo=True)
    onnx.checker.check_model(program.model_proto)


# Folding, conversion, laziness


@pytest.mark.parametrize("bias", [True, False])
def test_torch_folds_it(bias):
    conv, norm = nn.Conv2d(3, 4, 3).double(), layers.BatchNorm2d(4, dtype=F64, bias=bias)
    nn.init.normal_(norm.weight)
    model = nn.Sequential(conv, norm)
    model(images())
    model.eval()
    fused = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
    same(fused(images()), model(images()))
    linear, vector = nn.Linear(3, 4).double(), layers.BatchNorm1d(4, dtype=F64)
    pair = nn.Sequential(linear, vector)
    x = torch.randn(8, 3, dtype=F64)
    pair(x)
    same(nn.utils.fusion.fuse_linear_bn_eval(linear.eval(), vector.eval())(x), pair(x))


@QUIET
def test_torch_ao_fuses_it():
    """Torch looks the pair up by exact type, so a subclass of its layer has to be named to it."""
    quantization = pytest.importorskip("torch.ao.quantization", reason="this torch has no torch.ao.quantization")
    model = network({}).eval()
    right = model(images())
    mapping = {(nn.Conv2d, layers.BatchNorm2d): quantization.fuser_method_mappings.fuse_conv_bn}
    fused = quantization.fuse_modules(
        model, ["0", "1"], fuse_custom_config_dict={"additional_fuser_method_mapping": mapping}
    )
    assert isinstance(fused[1], nn.Identity)
    same(fused(images()), right)


@QUIET
def test_torch_ao_fuses_what_was_converted_back():
    """Without a mapping: torch's layer of the same parameters and statistics, which torch's table has."""
    quantization = pytest.importorskip("torch.ao.quantization", reason="this torch has no torch.ao.quantization")
    model = network({}).eval()
    right = model(images())
    assert "1" in {change.path for change in surgery.convert(model, "torch-batch").done}
    fused = quantization.fuse_modules(model, ["0", "1"])
    assert isinstance(fused[1], nn.Identity)
    same(fused(images()), right)


def test_averaged_models_take_it():
    model = network({})
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    model(images())
    average.update_parameters(model)
    same(average.module[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize(
    ("rank", "shape"), [("1d", (6, 3)), ("1d", (6, 3, 4)), ("2d", (6, 3, 4, 2)), ("3d", (6, 3, 2, 2, 2))]
)
def test_lazy(rank, shape):
    options = {"statistics": "ghost", "group_size": 4, "accumulate": 2, "activation": "relu", "bias": False}
    lazy = getattr(layers, f"LazyBatchNorm{rank}")(dtype=F64, **options)
    eager = getattr(layers, f"BatchNorm{rank}")(3, dtype=F64, **options)
    assert isinstance(lazy, getattr(nn, f"LazyBatchNorm{rank}"))
    assert lazy.has_uninitialized_params()
    x = torch.randn(shape, dtype=F64)
    for _ in range(2):
        same(lazy(x), eager(x))
    assert type(lazy) is type(eager)
    assert repr(lazy) == repr(eager)
    same(lazy.state_dict(), eager.state_dict())
    assert list(lazy.state_dict()) == list(eager.state_dict())


def test_lazy_loads_and_refuses():
    lazy, full = layers.LazyBatchNorm1d(), layers.BatchNorm1d(5)
    full(torch.randn(8, 5))
    lazy.load_state_dict(full.state_dict())
    same(lazy.eval()(torch.ones(2, 5)), full.eval()(torch.ones(2, 5)))
    with pytest.raises(UsageError):
        layers.LazyBatchNorm1d(statistics="ghost")
    assert isinstance(layers.LazyBatchNorm2d(affine=False, track_running_stats=False)(images().float()), torch.Tensor)


# Statistics from outside


def test_population_is_the_whole_set_and_differentiable():
    """By definition: the batch as a part of all data, normalized by the statistics of all."""
    model = network({})
    everything = images(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with layers.population_of(model, everything):
            y = model(everything[:3])
            again = model(everything[3:5])
    right = model(everything)
    same(y, right[:3])
    same(again, right[3:5])
    grads = torch.autograd.grad(y.square().sum(), list(model.parameters()), retain_graph=True)
    for found, expected in zip(
        grads, torch.autograd.grad(right[:3].square().sum(), list(model.parameters())), strict=True
    ):
        same(found, expected)


def test_population_tracks_nothing_and_leaves_nothing_behind():
    model = network({"accumulate": 2})
    before = {name: value.clone() for name, value in model.named_buffers()}
    for training in (True, False):
        model.train(training)
        population = layers.record_statistics(model, lambda: model(images()))
        with pytest.raises(RuntimeError), layers.given_statistics(model, population):
            model(images()[:, :2])  # too few channels
    same(dict(model.named_buffers()), before)
    assert model[1]._population is None
    with pytest.raises(UsageError, match="no batch norm of this package at"):
        layers.given_statistics(model, {"7": []}).__enter__()
    with pytest.raises(UsageError, match="convert it"):
        layers.record_statistics(nn.Linear(2, 2), lambda: None)


def test_a_layer_used_twice_has_two_populations():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNorm1d(3, dtype=F64)

        def forward(self, x):
            return self.norm(3 + self.norm(x) ** 3)

    model, x = Twice(), torch.randn(10, 3, dtype=F64)
    with layers.population_of(model, x) as population:
        same(model(x[:2]), Twice()(x)[:2])
    assert len(population["norm"]) == 2


def test_population_as_an_argument():
    layer, x = layers.BatchNorm1d(3, dtype=F64), torch.randn(6, 3, dtype=F64)
    mean, var = torch.randn(3, dtype=F64, requires_grad=True), torch.rand(3, dtype=F64).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: layer(x, population=(m, v)), (mean, var))
    assert layer.num_batches_tracked == 0
    with pytest.raises(ValueError, match="running_mean should have"):
        layer(x, population=(mean[:2], var))
