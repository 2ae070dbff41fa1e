"""A snapshot sees and undoes whatever is done to models, optimizers and random streams.

The oracle is `kit.traces`, which knows nothing of this package: it walks all that can be reached from the roots.
"""

import copy
import random
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from kit.traces import differences, fingerprint
from normscope._errors import UsageError
from normscope.modules.state import Snapshot, traceless, transaction


class Cell(nn.Module):
    """A module that keeps tensors, containers, a generator and a module outside of torch's own registers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.mean = torch.arange(4.0)
        self.history = [torch.ones(2), {"last": torch.zeros(3)}]
        self.names = {("a", 1), ("b", 2)}
        self.recent = deque([1, 2], maxlen=3)
        self.pair = (torch.full((2,), 3.0), [1])
        self.generator = torch.Generator().manual_seed(1)
        self.unregistered = [nn.BatchNorm1d(4)]
        self.embedding = nn.Embedding(6, 4, sparse=True)
        self.register_buffer("mask", torch.ones(4, 4).t()[:3].t())

    def forward(self, x):
        h = self.norm(self.linear(x)) + self.embedding(torch.tensor([0, 1, 1]).repeat(len(x) // 3))
        return self.unregistered[0](torch.relu(h))


def make():
    """Return a model, its optimizer with state, and gradients in place: nothing is at its initial value."""
    torch.manual_seed(0)
    model = nn.Sequential(Cell(), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data = torch.randn(2, 1, 3)
    parametrizations.weight_norm(model[3])
    model[0].linear.weight.register_hook(lambda g: g * 1)
    model[0].norm.register_forward_hook(lambda *_: None)
    # The second optimizer is one that works on lists in its state, in place.
    dense = [p for p in model.parameters() if p is not model[0].embedding.weight]
    optimizers = [
        torch.optim.Adam(dense, 1e-2),
        torch.optim.LBFGS([nn.Parameter(torch.ones(3))], max_iter=2, history_size=2),
    ]
    x = torch.randn(6, 4)
    for _ in range(2):
        optimizers[0].zero_grad()
        model[3](model[2](model[1](model[0](x)[:, None]))).square().sum().backward()
        optimizers[0].step()
        bend(optimizers[1])
    return model, optimizers


def bend(optimizer):
    (parameter,) = optimizer.param_groups[0]["params"]

    def loss():
        optimizer.zero_grad()
        value = (parameter**4).sum()
        value.backward()
        return value

    optimizer.step(loss)


def replace_equal_in_set(model, optimizers):
    """Put an equal object into a set in the place of the one that was there: equality does not see it."""
    model[0].names.discard(("a", 1))
    model[0].names.add(("a", int("1")))


def update_with_graph(model, optimizers):
    model[0].norm.running_mean.mul_(model[0].linear.bias.abs())


def change_class(model, optimizers):
    model[2].__class__ = nn.Identity


def swap_order(model, optimizers):
    model[0]._modules["linear"] = model[0]._modules.pop("linear")


def move_memory(model, optimizers):
    model[0].norm.weight.data = model[0].norm.weight.data.clone()


def same_memory_other_shape(model, optimizers):
    model[0].linear.weight.data = model[0].linear.weight.data.t()


LEAKS = {
    "parameter": lambda m, o: m[0].linear.weight.data.mul_(1 + 1e-6),
    "last bit of a parameter": lambda m, o: m[1].bias.data.view(torch.int32).add_(1),
    "sign of a zero": lambda m, o: m[0].norm.running_var.data.fill_(-0.0),
    "buffer": lambda m, o: m[0].norm.running_mean.add_(1e-7),
    "buffer with a graph": update_with_graph,
    "buffer that is another": lambda m, o: m[0].norm._buffers.update(running_mean=torch.zeros(4)),
    "strided buffer": lambda m, o: m[0].mask.mul_(2),
    "NaN": lambda m, o: m[0].norm.running_var.fill_(float("nan")),
    "more": lambda m, o: m[0].norm.register_buffer("more", torch.ones(1)),
    "plain tensor": lambda m, o: m[0].mean.add_(1),
    "tensor in a list": lambda m, o: m[0].history[0].zero_(),
    "tensor in a dict in a list": lambda m, o: m[0].history[1]["last"].add_(1),
    "tensor in a tuple": lambda m, o: m[0].pair[0].add_(1),
    "list in a tuple": lambda m, o: m[0].pair[1].append(2),
    "list": lambda m, o: m[0].history.append(None),
    "set": lambda m, o: m[0].names.add("c"),
    "equal in a set": replace_equal_in_set,
    "set of torch's": lambda m, o: m[0]._non_persistent_buffers_set.add("left"),
    "deque": lambda m, o: m[0].recent.append(3),
    "attribute": lambda m, o: setattr(m[0], "left", 1),
    "attribute that is gone": lambda m, o: delattr(m[0], "names"),
    "attribute of another value": lambda m, o: setattr(m[0].norm, "momentum", 0.5),
    "mode": lambda m, o: m.eval(),
    "class": change_class,
    "child": lambda m, o: setattr(m[0], "linear", nn.Identity()),
    "order of children": swap_order,
    "child that is gone": lambda m, o: m.__delitem__(2),
    "module in a list": lambda m, o: m[0].unregistered[0].running_var.mul_(2),
    "mode of a module in a list": lambda m, o: m[0].unregistered[0].eval(),
    "gradient": lambda m, o: m[0].linear.weight.grad.add_(1e-6),
    "gradient that is gone": lambda m, o: setattr(m[0].linear.weight, "grad", None),
    "gradient that is another": lambda m, o: setattr(m[1].bias, "grad", m[1].bias.grad.clone()),
    "sparse gradient": lambda m, o: m[0].embedding.weight.grad.mul_(2),
    "frozen": lambda m, o: m[0].linear.weight.requires_grad_(False),
    "cast": lambda m, o: m.double(),
    "other memory": move_memory,
    "other shape": same_memory_other_shape,
    "parametrized": lambda m, o: m[3].parametrizations.weight.original0.data.mul_(2),
    "parametrization removed": lambda m, o: nn.utils.parametrize.remove_parametrizations(m[3], "weight"),
    "forward hook": lambda m, o: m[2].register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda m, o: m[2].register_forward_pre_hook(lambda *_: None, with_kwargs=True),
    "backward hook": lambda m, o: m[2].register_full_backward_hook(lambda *_: None),
    "hooks that are gone": lambda m, o: m[0].norm._forward_hooks.clear(),
    "hooks in another dictionary": lambda m, o: setattr(m[0].norm, "_forward_hooks", {}),
    "hook of a parameter": lambda m, o: m[0].linear.bias.register_hook(lambda g: None),
    "second hook of a parameter": lambda m, o: m[0].linear.weight.register_hook(lambda g: None),
    "hook after accumulation": lambda m, o: m[0].linear.bias.register_post_accumulate_grad_hook(lambda p: None),
    "hooks of a parameter gone": lambda m, o: m[0].linear.weight._backward_hooks.clear(),
    "forward shadowed": lambda m, o: setattr(m[2], "forward", lambda x: x),
    "torch's stream": lambda m, o: torch.rand(1),
    "NumPy's stream": lambda m, o: np.random.rand(),  # noqa: NPY002
    "Python's stream": lambda m, o: random.random(),
    "generator": lambda m, o: torch.rand(1, generator=m[0].generator),
    "rate": lambda m, o: o[0].param_groups[0].update(lr=1.0),
    "group": lambda m, o: o[0].add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
    "parameter of a group": lambda m, o: o[0].param_groups[0]["params"].pop(),
    "optimizer state": lambda m, o: o[0].state[m[1].bias]["exp_avg"].add_(1e-3),
    "optimizer step": lambda m, o: o[0].step(),
    "optimizer state that is gone": lambda m, o: o[0].state.pop(m[1].bias),
    "optimizer state of another": lambda m, o: o[0].state.update({nn.Parameter(torch.ones(1)): {"step": 1}}),
    "lists in optimizer state": lambda m, o: bend(o[1]),
    "optimizer hook": lambda m, o: o[0].register_step_post_hook(lambda *_: None),
    "optimizer attribute": lambda m, o: setattr(o[0], "step", lambda: None),
}


@pytest.fixture(scope="module")
def trained():
    """The same model for all tests: each must leave it as it found it."""
    return make()


def everything(model, optimizers):
    return fingerprint(identities=True, model=model, optimizers=optimizers)


def content(model, optimizers):
    """The same but for version counters, which only go up: they count the restore's predecessors too."""
    return {path: leaf for path, leaf in everything(model, optimizers).items() if not path.endswith(" written to")}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_of_every_kind_is_seen_by_oracle_and_snapshot_and_undone(kind):
    model, optimizers = make()
    before, snapshot = content(model, optimizers), Snapshot(model, optimizers=optimizers)
    assert snapshot.differences() == []
    LEAKS[kind](model, optimizers)
    assert differences(before, content(model, optimizers)) != []
    assert snapshot.differences() != []
    snapshot.restore()
    assert snapshot.differences() == []
    assert differences(before, content(model, optimizers)) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(sorted(LEAKS)), min_size=2, max_size=5, unique=True))
def test_leaks_of_several_kinds_at_once_are_undone(kinds):
    model, optimizers = make()
    before, snapshot = content(model, optimizers), Snapshot(model, optimizers=optimizers)
    for kind in kinds:
        try:
            LEAKS[kind](model, optimizers)
        except Exception:  # an earlier leak has taken away what this one is about
            continue
    assert snapshot.differences() != []
    snapshot.restore()
    assert differences(before, content(model, optimizers)) == []


def test_what_is_not_touched_is_not_written(trained):
    """Version counters stand, and a graph made before still runs backward."""
    model, optimizers = trained
    model.eval()
    y = model[3](model[2](model[1](model[0](torch.randn(6, 4))[:, None])))
    before = everything(model, optimizers)
    with traceless(model, optimizers=optimizers):
        model.train()
        model[0].unregistered[0].momentum = 1.0
        torch.rand(1)
    assert differences(before, everything(model, optimizers)) == []
    torch.autograd.grad(y.sum(), model[0].linear.weight)


def test_a_value_is_put_back_without_a_new_version(trained):
    model, _ = trained
    weight = model[0].linear.weight
    snapshot, version = Snapshot(model), weight._version
    weight.data.add_(1)
    snapshot.restore()
    assert weight._version == version


def test_a_tensor_comes_back_to_its_own_memory():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    view = model[0].weight.detach()[1]
    snapshot = Snapshot(model)
    model.double()
    model[0].weight.data.add_(1)
    view.add_(1)
    snapshot.restore()
    assert model[0].weight.dtype == torch.float32
    assert view.data_ptr() == model[0].weight.data_ptr() + view.storage_offset() * 4
    assert snapshot.differences() == []


def test_a_handle_still_removes_its_hook():
    model = nn.Sequential(nn.Linear(3, 3))
    handle = model[0].register_forward_hook(lambda *_: None)
    with traceless(model):
        model[0]._forward_hooks = {}
    handle.remove()
    assert not model[0]._forward_hooks


def test_a_hook_that_was_removed_is_no_trace():
    model = nn.Linear(3, 3)
    snapshot = Snapshot(model)
    model.weight.register_hook(lambda g: g).remove()
    assert snapshot.differences() == []


def test_one_part_that_cannot_be_put_back_does_not_keep_the_others():
    class Stubborn(set):
        def clear(self):
            raise RuntimeError("no")

    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[0].names = Stubborn("a")
    mean = model[1].running_mean.clone()
    snapshot, stream = Snapshot(model), torch.get_rng_state()
    model[0].names.add("b")
    model[0].eval()
    model[1].running_mean.add_(1)
    model[1].weight.grad = torch.ones(2)
    torch.rand(1)
    with pytest.raises(RuntimeError, match="no"):
        snapshot.restore()
    assert model[0].training
    assert torch.equal(model[1].running_mean, mean)
    assert model[1].weight.grad is None
    assert torch.equal(torch.get_rng_state(), stream)


def test_streams_are_left_on_request():
    model = nn.Linear(2, 2)
    with traceless(model, streams=False):
        before = torch.get_rng_state()
        torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), before)


def test_further_generators_are_put_back():
    stream = torch.Generator().manual_seed(3)
    with traceless(nn.Linear(2, 2), generators=[stream]):
        drawn = torch.rand(2, generator=stream)
    assert torch.equal(torch.rand(2, generator=stream), drawn)


def test_a_wrapped_optimizer_is_put_back_with_what_it_wraps():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer, self.calls = optimizer, 0

        param_groups = property(lambda self: self.optimizer.param_groups)
        state = property(lambda self: self.optimizer.state)

    parameter = nn.Parameter(torch.ones(2))
    wrapper = Wrapper(torch.optim.SGD([parameter], 0.1, momentum=0.9))
    before = content(None, wrapper)
    snapshot = Snapshot(optimizers=[wrapper])
    parameter.grad = torch.ones(2)
    wrapper.optimizer.step()
    wrapper.calls += 1
    snapshot.restore()
    assert differences(before, content(None, wrapper)) == []


def test_shared_parameters_and_cycles():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].parent = [model]
    model[0].itself = loop = []
    loop.append(loop)
    before, snapshot = Snapshot(model), copy.deepcopy(model[0].weight.detach())
    model[1].weight.data.add_(1)
    assert before.differences() == ["value of 0.weight"]
    before.restore()
    assert torch.equal(model[0].weight, snapshot)


def test_a_scripted_module_is_put_back():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    model = nn.Sequential(nn.Linear(2, 2), scripted)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    snapshot = Snapshot(model)
    model(torch.randn(4, 2))
    with torch.no_grad():
        dict(scripted.named_parameters())["0.weight"].add_(1)
    assert snapshot.differences() != []
    snapshot.restore()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_lazy_module_is_refused_in_a_line():
    with pytest.raises(UsageError, match=r"^1\.weight has no shape yet: run a batch"):
        Snapshot(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))


def test_a_model_on_the_meta_device_has_modes_and_identities():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to("meta")
    snapshot, weight = Snapshot(model), model[0].weight
    model.eval()
    model[0].weight = nn.Parameter(torch.ones(2, 2, device="meta"))
    snapshot.restore()
    assert snapshot.differences() == []
    assert model.training
    assert model[0].weight is weight


def test_a_transaction_keeps_success_and_undoes_failure():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with transaction(model):
        model[1] = nn.Tanh()
    assert type(model[1]) is nn.Tanh
    before = content(model, None)

    def fail():
        model.double()
        del model[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), transaction(model):
        fail()
    assert differences(before, content(model, None)) == []
