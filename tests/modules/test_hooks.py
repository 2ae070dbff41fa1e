"""Hooks are silenced but for those that compute weights, and a forward is replaced and comes back."""

from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune

from normscope.modules.hooks import HOOKS, ForwardHooks, TensorHooks, forward_replaced, no_global_hooks, silence


def test_every_kind_of_hook_is_silenced():
    calls = []
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.register_full_backward_pre_hook(lambda *_: calls.append("before backward"))
    x = torch.randn(3, 2, requires_grad=True)
    layer(x).sum().backward()
    assert len(calls) == 4
    silence(layer)
    layer(x).sum().backward()
    assert len(calls) == 4
    assert not any(vars(layer)[kind] for kind in HOOKS)


def test_torch_still_computes_the_weight():
    layer = nn.Linear(3, 3, bias=False)
    prune.random_unstructured(layer, "weight", 0.5)
    layer.register_forward_pre_hook(lambda *_: pytest.fail("called"))
    silence(layer)
    x = torch.eye(3)
    with torch.no_grad():
        layer.weight_orig.fill_(2.0)
    assert torch.equal(layer(x).t().detach(), layer.weight_mask * 2)


def test_hooks_of_all_modules_rest_and_come_back():
    calls = []
    handle = register_module_forward_hook(lambda *_: calls.append(1) and None)
    try:
        with suppress(ArithmeticError), no_global_hooks():
            nn.Identity()(torch.ones(1))
            raise ArithmeticError
        assert calls == []
        nn.Identity()(torch.ones(1))
        assert calls == [1]
    finally:
        handle.remove()


def test_a_forward_is_replaced_and_comes_back():
    plain, shadowed = nn.Identity(), nn.Identity()
    vars(shadowed)["forward"] = own = lambda x: x + 10
    x = torch.zeros(1)
    with (
        suppress(ArithmeticError),
        forward_replaced([plain, shadowed], lambda module, forward: lambda x: forward(x) * 2 + 1),
    ):
        assert (plain(x).item(), shadowed(x).item()) == (1, 21)
        raise ArithmeticError
    assert "forward" not in vars(plain)
    assert vars(shadowed)["forward"] is own


def test_hooks_that_come_off_together_are_called_as_torch_calls_its_own():
    net = nn.Sequential(nn.Linear(2, 3), nn.Identity())
    theirs, ours = [], []
    for module in net:
        module.register_forward_pre_hook(lambda *given: theirs.append(given), with_kwargs=True)
        module.register_forward_hook(lambda *given: theirs.append(given))
    held = [[{**vars(module)[kind]} for kind in HOOKS] for module in net]
    hooks = ForwardHooks()
    for module in net:
        hooks.add_before(module, lambda *given: ours.append(given))
        hooks.add_after(module, lambda *given: ours.append(given))
    net(torch.ones(1, 2))
    net[0](input=torch.ones(1, 2))
    assert len(ours) == len(theirs) == 6
    for own, other in zip(ours, theirs, strict=True):
        assert all(a is b or a == b for a, b in zip(own, other, strict=True))
    assert set(ours[-2][2]) == {"input"}
    hooks.remove()
    assert [[{**vars(module)[kind]} for kind in HOOKS] for module in net] == held
    net(torch.ones(1, 2))
    assert len(ours) == 6


class Own(torch.Tensor):
    pass


@pytest.mark.parametrize("kind", [torch.Tensor, Own])
def test_hooks_on_gradients_are_those_of_torch_and_come_off_together(kind):
    leaf = torch.tensor([2.0, 3.0]).as_subclass(kind).requires_grad_()
    heard, others = [], []
    hooks = TensorHooks()
    leaf.register_hook(lambda gradient: others.append(1))
    hooks.after_accumulation(leaf, lambda _: heard.append(leaf.grad.tolist()))
    made = leaf * leaf
    hooks.on_gradient(made, lambda gradient: heard.append(gradient.tolist()))
    hooks.on_gradient(leaf, lambda gradient: heard.append(gradient.tolist()))
    (5 * made).sum().backward(retain_graph=True)
    assert heard == [[5.0, 5.0], [20.0, 30.0], [20.0, 30.0]]
    hooks.remove()
    (5 * made).sum().backward()
    assert len(heard) == 3
    assert len(others) == 2
    assert leaf.grad.tolist() == [40.0, 60.0]
