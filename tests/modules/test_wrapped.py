"""What wraps a model is taken off, and nothing else."""

import warnings

import pytest
import torch
from torch import nn

from normscope._errors import UsageError
from normscope.modules.wrapped import (
    calls_eagerly,
    calls_step_hooks,
    eagerly,
    is_compiled,
    rank_of_many,
    refuse_fixed,
    unwrap,
    unwrap_optimizer,
)


def test_the_model_inside_compilation_and_replication_is_found():
    model = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(model, backend="eager")
    for wrapped in (model, compiled, nn.DataParallel(model), nn.DataParallel(compiled)):
        assert unwrap(wrapped) is model
    assert [is_compiled(one) for one in (model, compiled)] == [False, True]


def test_each_way_of_compiling_is_seen_and_whether_it_takes_in_the_hooks_of_the_model():
    wrapped = torch.compile(nn.Linear(2, 2), backend="eager")
    inside, by_method, by_forward = nn.Sequential(wrapped), nn.Linear(2, 2), nn.Linear(2, 2)
    by_method.compile(backend="eager")
    by_forward.forward = torch.compile(by_forward.forward, backend="eager")
    assert all(map(is_compiled, (wrapped, inside, by_method, by_forward)))
    assert [calls_eagerly(model) for model in (wrapped, inside, by_method, by_forward)] == [True, True, False, True]


@pytest.mark.parametrize("asked", [True, False])
def test_a_compiled_model_runs_as_it_is_written_on_request(asked):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    model = nn.Linear(2, 2)
    compiled, x = torch.compile(model, backend=backend), torch.randn(3, 2)
    with eagerly(asked):
        assert torch.equal(compiled(x), model(x))
    assert len(graphs) == (0 if asked else 1)
    compiled(x)
    assert len(graphs) == 1


def test_a_process_alone_has_no_rank():
    assert rank_of_many() is None


class Handed(torch.optim.Optimizer):
    """As Accelerate's: a torch optimizer by class that never called its constructor, around another."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class Passing:
    """As Lightning's: no torch optimizer by class, and everything else is looked up in the one inside."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    def step(self, closure=None):
        return self._optimizer.step(closure)


class Own:
    """Somebody's own optimizer, with the least that one must have."""

    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]

    def zero_grad(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.data.sub_(0.1 * parameter.grad)


WRAPPERS = {
    "handed": Handed,
    "passing": Passing,
    "both": lambda optimizer: Handed(Passing(Handed(optimizer))),
    "plain": lambda optimizer: optimizer,
}


@pytest.mark.parametrize("how", WRAPPERS)
def test_the_optimizer_whose_steps_call_hooks_is_found(how):
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    found, calls = unwrap_optimizer(WRAPPERS[how](inner)), []
    assert calls_step_hooks(found)
    found.register_step_pre_hook(lambda *_: calls.append(1))
    WRAPPERS[how](inner).step()
    assert calls == [1]


def test_an_optimizer_without_hooks_and_without_one_inside_stays_as_it_is():
    own = Own([])
    assert unwrap_optimizer(own) is own
    circle = Handed(own)
    circle.optimizer = circle
    assert unwrap_optimizer(circle) is circle
    assert not calls_step_hooks(circle)


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 2))])
def test_modules_whose_code_torch_holds_are_refused_by_name(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fixed = make(nn.Linear(2, 2))
    refuse_fixed(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="the model is traced or scripted"):
        refuse_fixed(fixed)
    with pytest.raises(UsageError, match=r"its module '0\.1' is traced or scripted"):
        refuse_fixed(nn.Sequential(nn.Sequential(nn.Tanh(), fixed)))
