"""The layers against torch's: the same class to everyone, the same state, the same numbers."""

import copy
import io
import pickle

import pytest
import torch

from normscope import layers

NAMES = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
SHAPES = {"BatchNorm1d": [(8, 3), (8, 3, 5)], "BatchNorm2d": [(8, 3, 4, 5)], "BatchNorm3d": [(8, 3, 2, 4, 5)]}
CASES = [(name, shape) for name in NAMES for shape in SHAPES[name]]
OPTIONS = [
    {},
    {"eps": 0.1, "momentum": 0.3},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "momentum": None, "track_running_stats": False},
]


def pair(name, *args, **more):
    """Return our layer and torch's with equal state, weight and bias drawn."""
    mine, theirs = (getattr(room, name)(*args, dtype=torch.float64, **more) for room in (layers, torch.nn))
    for p in theirs.parameters():
        torch.nn.init.normal_(p)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def same(mine, theirs):
    assert list(mine.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(dict(mine.state_dict()), dict(theirs.state_dict()), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_same_numbers_step_after_step(name, shape, options):
    torch.manual_seed(0)
    mine, theirs = pair(name, shape[1], **options)
    for training in (True, True, False, True):
        x, g = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
        results = []
        for layer in (mine, theirs):
            layer.train(training)
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append((y, *torch.autograd.grad(y, (leaf, *layer.parameters()), g)))
        for found, right in zip(*results, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-13)
        same(mine, theirs)
        with torch.no_grad():
            torch.testing.assert_close(mine(x), theirs(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_torch_layer_with_its_arguments_in_place(name):
    mine, theirs = pair(name, 3, 1e-3, 0.2, True, True)
    assert isinstance(mine, getattr(torch.nn, name))
    assert repr(mine) == repr(theirs)
    theirs.load_state_dict(mine.state_dict())
    same(mine, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_trains_as_torchs_does(name):
    shape = SHAPES[name][-1]
    torch.manual_seed(1)
    mine, theirs = pair(name, shape[1])
    optimizers = [torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9) for layer in (mine, theirs)]
    for _ in range(20):
        x = torch.randn(shape, dtype=torch.float64)
        for layer, optimizer in zip((mine, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            torch.tanh(layer(x)).pow(2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(dict(mine.state_dict()), dict(theirs.state_dict()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "save"])
def test_copies(copied):
    mine, _ = pair("BatchNorm2d", 3)
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    mine(x)
    if copied == "deepcopy":
        twin = copy.deepcopy(mine)
    elif copied == "pickle":
        twin = pickle.loads(pickle.dumps(mine))
    else:
        buffer = io.BytesIO()
        torch.save(mine.state_dict(), buffer)
        buffer.seek(0)
        twin = layers.BatchNorm2d(3, dtype=torch.float64)
        twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(twin(x), mine(x))
    same(twin, mine)
    twin(x)
    assert twin.num_batches_tracked != mine.num_batches_tracked


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 5), (4, 3, 0)])
def test_an_empty_batch_as_in_torch(shape):
    for training in (True, False):
        mine, theirs = (layer.train(training) for layer in pair("BatchNorm1d", 3))
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        found, right = mine(x), theirs(x)
        assert found.shape == right.shape
        found.sum().backward()
        same(mine, theirs)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("BatchNorm1d", (3,)), ("BatchNorm1d", (4, 3, 2, 2)), ("BatchNorm2d", (4, 3)), ("BatchNorm3d", (4, 3, 2, 2))],
)
def test_the_wrong_rank_is_refused_as_in_torch(name, shape):
    for layer in pair(name, 3):
        with pytest.raises(ValueError, match="expected"):
            layer(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("gone", ["running_mean", "running_var"])
def test_one_running_statistic_without_the_other_is_refused_in_eval_as_in_torch(gone):
    for layer in pair("BatchNorm1d", 3):
        setattr(layer.eval(), gone, None)
        with pytest.raises(Exception, match=r"running_mean|running_var|None"):
            layer(torch.randn(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (4, 5), (4, 5, 2)])
def test_a_refused_batch_leaves_no_trace(shape):
    mine, theirs = pair("BatchNorm1d", 3)
    with pytest.raises(ValueError, match="channel"):
        mine(torch.zeros(shape, dtype=torch.float64))
    same(mine, theirs)
    if shape[1] == 3:
        assert torch.isfinite(mine.eval()(torch.zeros(shape, dtype=torch.float64))).all()


def test_tracking_switched_off_later_as_in_torch():
    """The buffers stay: left alone in training, used in eval."""
    torch.manual_seed(2)
    mine, theirs = pair("BatchNorm1d", 3)
    x = torch.randn(8, 3, dtype=torch.float64)
    for layer in (mine, theirs):
        layer(x)
        layer.track_running_stats = False
    for training in (True, False):
        torch.testing.assert_close(mine.train(training)(3 * x), theirs.train(training)(3 * x))
        same(mine, theirs)


def test_converts_to_synchronised():
    mine, theirs = pair("BatchNorm2d", 3)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(mine)
    assert type(converted) is torch.nn.SyncBatchNorm
    same(converted, theirs)


def test_two_forwards_then_both_backwards():
    mine, _ = pair("BatchNorm1d", 3)
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    (mine(x).pow(3).sum() + mine(2 * x).pow(3).sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_float32_statistics_with_an_offset_of_a_million():
    torch.manual_seed(3)
    x = 1e6 + torch.randn(512, 4)
    layer = layers.BatchNorm1d(4, momentum=1.0)
    y = layer(x)
    right = torch.nn.BatchNorm1d(4, momentum=1.0, dtype=torch.float64)
    torch.testing.assert_close(y.double(), right(x.double()), rtol=0, atol=1e-4)
    torch.testing.assert_close(layer.running_var.double(), right.running_var, rtol=1e-4, atol=0)
    assert (layer.running_mean - right.running_mean).abs().max() <= 0.0625  # the grid of float32 there


def test_functional_call_under_vmap_is_each_network_by_itself():
    """Many seeds of a network at once: parameters and buffers stacked."""
    nets = [torch.nn.Sequential(torch.nn.Linear(5, 3), layers.BatchNorm1d(3)).double() for _ in range(4)]
    parameters, buffers = torch.func.stack_module_state(nets)
    x = torch.randn(4, 8, 5, dtype=torch.float64)

    def call(p, b, x):
        return torch.func.functional_call(nets[0], (p, b), (x,))

    y = torch.func.vmap(call)(parameters, buffers, x)
    for i, net in enumerate(nets):
        torch.testing.assert_close(y[i], net(x[i]))
        for name, value in net.named_buffers():
            torch.testing.assert_close(buffers[name][i], value)
