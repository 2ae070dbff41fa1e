"""What a function can name is found wherever it is held, and put back; what is not its to change is left alone."""

import collections
import contextlib
import functools
import random
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from normscope._errors import UsageError
from normscope.modules.reach import Reach
from normscope.modules.reaching import ReachingSnapshot, undone
from normscope.modules.rewind import Rewind

HELD = torch.zeros(3)
COUNT = 0
NAMED = types.SimpleNamespace(thing=torch.zeros(3))


def snapshot(function, **options):
    return ReachingSnapshot(Reach({"loss_fn": function}, **options))


def of_global():
    return (lambda: HELD), HELD


def of_helper():
    def helper():
        return HELD

    return (lambda: helper()), HELD


def of_nested_function():
    def outer():
        def inner():
            return HELD

        return inner

    return outer, HELD


def of_cell():
    thing = torch.zeros(3)
    return (lambda: thing), thing


def of_default():
    thing = torch.zeros(3)

    def function(given=thing):
        return given

    return function, thing


def of_keyword_default():
    thing = torch.zeros(3)

    def function(*, given=thing):
        return given

    return function, thing


def of_partial():
    thing = torch.zeros(3)
    return functools.partial(functools.partial(print, thing), end=""), thing


def of_partial_keyword():
    thing = torch.zeros(3)
    return functools.partial(print, sep=thing), thing


class Holder:
    shared = {"thing": torch.zeros(3)}  # noqa: RUF012

    def __init__(self, thing):
        self.parts = {"deep": [(thing,)]}

    def use(self):
        return self.parts

    def indirectly(self):
        return self.use()

    @property
    def asked(self):
        return HELD

    @staticmethod
    def static():
        return HELD

    @classmethod
    def of_class(cls):
        return HELD


def of_bound_method():
    thing = torch.zeros(3)
    return Holder(thing).use, thing


def of_builtin_method():
    thing = [torch.zeros(3)]
    return thing.__len__, thing[0]


def of_class_attribute():
    return (lambda: Holder.shared), Holder.shared["thing"]


def of_property():
    holder = Holder(None)
    return (lambda: holder.asked), HELD


def of_static_method():
    return (lambda: Holder.static()), HELD


def of_class_method():
    return (lambda: Holder.of_class()), HELD


def of_attribute_of_a_global():
    return (lambda: NAMED.thing), NAMED.thing


def of_function_attribute():
    def function():
        return function.thing

    function.thing = torch.zeros(3)
    return function, function.thing


def of_decorated():
    @torch.no_grad()
    def function():
        return HELD

    return function, HELD


def of_cached():
    @functools.lru_cache
    def function():
        return HELD

    return function, HELD


def of_callable():
    class Called:
        __slots__ = ("thing",)

        def __call__(self):
            return self.thing

    called = Called()
    called.thing = torch.zeros(3)
    return called, called.thing


def of_weak_reference():
    module = nn.BatchNorm1d(3)
    reference = weakref.ref(module)
    return functools.partial(lambda keeps: reference, module), module.running_mean


def of_optimizer():
    module = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return (lambda: optimizer.step()), optimizer.state[module.weight]["exp_avg"]


def of_hook():
    module, thing = nn.Linear(3, 3), torch.zeros(3)
    module.register_forward_hook(lambda *_: thing)
    return (lambda: module), thing


def of_own_container():
    class Bank(dict):
        pass

    bank = Bank()
    bank.thing = torch.zeros(3)
    return (lambda: bank), bank.thing


def of_named_tuple():
    pair = collections.namedtuple("pair", "a b")(torch.zeros(3), frozenset([torch.zeros(3)]))
    return (lambda: pair), next(iter(pair.b))


def of_module_imported_inside():
    def function():
        import kit.planted_leaks as leaks

        return leaks.LEAKS

    thing = torch.zeros(3)
    leaks = __import__("kit.planted_leaks").planted_leaks.LEAKS
    leaks["thing"] = thing
    weakref.finalize(function, leaks.pop, "thing")
    return function, thing


PLACES = [make for name, make in sorted(globals().items()) if name.startswith("of_")]


@pytest.mark.parametrize("make", PLACES)
def test_a_tensor_is_found_wherever_code_can_name_it(make):
    function, thing = make()
    before, kept = snapshot(function), thing.detach().clone()
    assert before.differences() == []
    with torch.no_grad():
        thing.data.add_(1)
    (name,) = before.differences()
    assert name.startswith("value of ")
    before.restore()
    assert torch.equal(thing, kept)
    assert before.differences() == []


def test_variables_name_again_what_they_named():
    local, gone = 1, None
    del gone

    def read_gone():
        return gone  # noqa: F821  (deleted on purpose)

    def function():
        nonlocal local, gone
        global COUNT, CREATED
        local, gone, COUNT, CREATED = 2, 3, 4, 5
        Holder.shared, Holder.created = 6, 7
        function.calls = 8

    shared = Holder.shared
    before = snapshot(function)
    function()
    assert set(before.differences()) >= {
        "local",
        "gone",
        "COUNT",
        "CREATED",
        "Holder.shared",
        "attribute loss_fn.calls",
    }
    before.restore()
    assert (local, COUNT, Holder.shared) == (1, 0, shared)
    assert "CREATED" not in globals()
    with pytest.raises(NameError):
        read_gone()
    assert not hasattr(function, "calls")
    del Holder.created  # a class's new attribute is not seen


def test_streams_arrays_and_containers_are_put_back():
    numpy, legacy, python, torchs = (
        np.random.default_rng(0),
        np.random.RandomState(0),
        random.Random(0),
        torch.Generator(),
    )
    array, deque, kinds = np.arange(6.0).reshape(2, 3), collections.deque([1, 2], maxlen=2), {1, 2}

    def draw():
        torchs_own = torch.rand(2, generator=torchs).tolist()
        return [numpy.random(), legacy.rand(), python.random(), *torchs_own]

    def function():
        array[0] = np.nan
        array.T[1] += 1
        deque.append(3)
        kinds.add(3)
        draw()

    before = snapshot(function)
    first = draw()
    before.restore()
    function()
    assert {"numpy", "legacy", "python", "array", "contents of .deque", "contents of .kinds"} <= set(
        before.differences()
    )
    before.restore()
    assert before.differences() == []
    assert draw() == first
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (list(deque), kinds) == ([1, 2], {1, 2})


def test_data_threads_logs_and_other_packages_are_left_alone():
    data = torch.utils.data.TensorDataset(torch.zeros(3))
    loader = torch.utils.data.DataLoader(data)

    class Writer:
        def __init__(self):
            self.thread, self.rows = threading.Thread(), []

    writer, run = Writer(), type("Run", (), {"__module__": "wandb"})()
    run.rows = []

    def function():
        writer.rows.append(1)
        run.rows.append(1)
        data.tensors[0].add_(1)
        return loader

    before = snapshot(function)
    function()
    assert before.differences() == []
    before.restore()
    assert (writer.rows, run.rows, data.tensors[0].tolist()) == ([1], [1], [1, 1, 1])


@pytest.mark.parametrize("near", [True, False])
def test_a_name_that_code_does_not_use_is_not_looked_at(near):
    other = torch.zeros(3)
    function = (lambda: other) if near else (lambda: HELD)
    before = snapshot(function)
    other.add_(1)
    assert (before.differences() != []) is near


def test_what_is_lent_to_a_module_for_one_call_is_not_taken_for_its_own():
    module = nn.Linear(2, 2)
    weight = module.weight
    lent = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    call = torch.jit.annotate  # of which nothing is read
    before = snapshot(lambda: call)
    with before.noting():
        torch.func.functional_call(module, lent, (torch.ones(1, 2),))
    before.restore()
    assert module.weight is weight
    assert isinstance(module.bias, nn.Parameter)


def test_a_module_is_kept_as_it_first_runs_and_no_hook_is_left():
    norm, hooks = nn.BatchNorm1d(2), len(nn.modules.module._global_forward_pre_hooks)
    with contextlib.suppress(ArithmeticError), undone(Reach({})):
        norm(torch.randn(4, 2))
        norm(torch.randn(4, 2))
        raise ArithmeticError
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert len(nn.modules.module._global_forward_pre_hooks) == hooks


@pytest.mark.parametrize("made", [iter([1]), (x for x in [1]), map(str, [1]), iter(torch.utils.data.DataLoader([1]))])
def test_an_iterator_that_code_names_is_refused_and_what_shows_its_state_is_not(made):
    with pytest.raises(UsageError, match="loss_fn can take from made, an iterator"):
        snapshot(lambda: next(made))

    class Own:
        def __init__(self):
            self.at = 0

        def __next__(self):
            self.at += 1
            return self.at

    own = Own()
    before = snapshot(lambda: next(own))
    next(own)
    before.restore()
    assert next(own) == 1


def test_each_evaluation_begins_as_the_step_began_and_only_what_moves_is_looked_at():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.average = 0, torch.zeros(1)
            self.register_buffer("buffer", torch.zeros(1))

        def forward(self, x):
            self.seen += 1
            self.average.add_(1)
            return x

    model, teacher, still = Counting(), nn.BatchNorm1d(2), torch.zeros(2)

    def loss_fn():
        teacher(torch.randn(4, 2))
        return model(still)

    rewind = Rewind(Reach({"loss_fn": loss_fn}), model)
    loss_fn()  # the user's own
    model.buffer.add_(1)
    for times in range(7):
        rewind.rewind()
        assert (model.seen, model.average.item(), int(teacher.num_batches_tracked)) == (0, 0, 0), times
        assert model.buffer.item() == 1  # a replay exchanges it itself
        if times != 1:  # as when the loss is run on kept outputs
            loss_fn()
    still.add_(1)
    rewind.rewind()
    assert still.tolist() == [1, 1]
