"""Loops with several backward passes in an update: in some gradients accumulate, in others they are zeroed before."""

import copy

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet
from normscope.checking.recent_steps import joined
from normscope.evidence import examples
from normscope.evidence.listening import Listener, Training


def looped(loop, *, optimizer=None, net=examples.mlp):
    """A set-up whose batches of 32 are trained on by ``loop(model, optimizer, batch)``."""
    case = examples.healthy(net, trained=5, shape=(12,))
    if optimizer is not None:
        case.optimizer = optimizer(case.model.parameters())
    case.step = lambda model, batch: loop(model, case.optimizer, batch)
    return case


def accumulation(parts, *, set_to_none=True, after=False):
    def loop(model, optimizer, batch):
        if not after:
            optimizer.zero_grad(set_to_none=set_to_none)
        for part in zip(*(tensor.chunk(parts) for tensor in batch), strict=True):
            examples.loss_fn(model, part).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if after:
            optimizer.zero_grad(set_to_none=set_to_none)

    return loop


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_is_found_however_gradients_are_zeroed(parts, set_to_none, after):
    finding = finding_of(looped(accumulation(parts, set_to_none=set_to_none, after=after)), "NS113")
    assert (finding.measured, finding.details["calls"]) == (32 // parts, parts)


def test_one_backward_pass_on_a_sum_of_losses_is_quiet():
    def loop(model, optimizer, batch):
        optimizer.zero_grad()
        parts = zip(*(tensor.chunk(4) for tensor in batch), strict=True)
        sum(examples.loss_fn(model, part) for part in parts).backward()
        optimizer.step()

    assert is_quiet(looped(loop), "NS113")


def sharpness_aware(model, optimizer, batch):
    optimizer.zero_grad()
    examples.loss_fn(model, batch).backward()
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.grad, alpha=0.01)
    optimizer.zero_grad()
    examples.loss_fn(model, batch).backward()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.copy_(value)
    optimizer.step()


def adversarial(set_to_none):
    def loop(model, optimizer, batch):
        x = batch[0].clone().requires_grad_()
        optimizer.zero_grad(set_to_none=set_to_none)
        examples.loss_fn(model, (x, batch[1])).backward()
        attacked = (x + 0.01 * x.grad.sign()).detach()
        optimizer.zero_grad(set_to_none=set_to_none)
        examples.loss_fn(model, (attacked, batch[1])).backward()
        optimizer.step()

    return loop


def projected_attack(model, optimizer, batch):
    """Three steps of an attack, whose gradient is returned and not written."""
    x = batch[0].clone()
    optimizer.zero_grad()
    for _ in range(3):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(examples.loss_fn(model, (x, batch[1])), x)
        x = (x + 0.01 * gradient.sign()).detach()
    examples.loss_fn(model, (x, batch[1])).backward()
    optimizer.step()


def closure(model, optimizer, batch):
    def evaluate():
        optimizer.zero_grad()
        loss = examples.loss_fn(model, batch)
        loss.backward()
        return loss

    optimizer.step(evaluate)


def meta_learning(model, optimizer, batch):
    inner, outer = zip(*(tensor.chunk(2) for tensor in batch), strict=True)
    weights = dict(model.named_parameters())
    optimizer.zero_grad()
    for _ in range(2):
        loss = nn.functional.cross_entropy(torch.func.functional_call(model, weights, inner[0]), inner[1])
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {
            name: weight - 0.01 * gradient for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
    nn.functional.cross_entropy(torch.func.functional_call(model, weights, outer[0]), outer[1]).backward()
    optimizer.step()


def gradient_penalty(model, optimizer, batch):
    x = batch[0].clone().requires_grad_()
    optimizer.zero_grad()
    (gradient,) = torch.autograd.grad(examples.loss_fn(model, (x, batch[1])), x, create_graph=True)
    (examples.loss_fn(model, batch) + gradient.square().sum()).backward()
    optimizer.step()


def adversary(first, set_to_none):
    """A discriminator that a generator's loss is sent through too, before or after its own update."""
    generator = examples.seeded(lambda: nn.Linear(4, 12))
    other = torch.optim.SGD(generator.parameters(), lr=0.01)

    def generate(model):
        other.zero_grad(set_to_none=set_to_none)
        (-model(generator(torch.randn(32, 4))).square().mean()).backward()
        other.step()

    def loop(model, optimizer, batch):
        if first:
            generate(model)
        optimizer.zero_grad(set_to_none=set_to_none)
        (examples.loss_fn(model, batch) + model(generator(torch.randn(32, 4)).detach()).square().mean()).backward()
        optimizer.step()
        if not first:
            generate(model)

    return loop


def scaled():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def loop(model, optimizer, batch):
        optimizer.zero_grad()
        scaler.scale(examples.loss_fn(model, batch) * 4).backward()
        scaler.step(optimizer)
        scaler.update()

    return loop


def guarded(model, optimizer, batch):
    """Every other batch begins with the label 0, and its loss is infinite."""
    optimizer.zero_grad()
    loss = examples.loss_fn(model, batch) / batch[1][0]
    loss.backward()
    if torch.isfinite(loss):
        optimizer.step()


def with_infinite_losses():
    case = looped(guarded)
    for index, (_, labels) in enumerate(case.loader):
        labels[0] = index % 2
    return case


LOOPS = {
    "sharpness aware": lambda: looped(sharpness_aware),
    "adversarial": lambda: looped(adversarial(True)),
    "adversarial, set to zero": lambda: looped(adversarial(False)),
    "adversarial, five layers": lambda: looped(adversarial(True), net=lambda: examples.mlp(depth=5)),
    "attack": lambda: looped(projected_attack),
    "closure": lambda: looped(closure, optimizer=lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=4)),
    "meta-learning": lambda: looped(meta_learning),
    "gradient penalty": lambda: looped(gradient_penalty),
    "adversary before": lambda: looped(adversary(True, True)),
    "adversary after": lambda: looped(adversary(False, True)),
    "adversary before, set to zero": lambda: looped(adversary(True, False)),
    "adversary after, set to zero": lambda: looped(adversary(False, False)),
    "gradient scaler": lambda: looped(scaled()),
    "guard against infinite losses": with_infinite_losses,
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_in_which_no_gradient_accumulates_are_quiet(name):
    assert is_quiet(LOOPS[name](), "NS113")


def sums_of(loops, *, piecewise=False):
    """Return the sum that each backward pass of a model has written into, numbered in order."""
    torch.manual_seed(0)
    model = examples.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = []
    for index, loop in enumerate(loops):
        if piecewise or not index:
            parts.append(Training())
            listener = Listener(model, [optimizer], parts[-1])
            listener.attach()
        loop(model, optimizer)
        listener.step_ended()
        if piecewise:
            listener.detach()
    listener.detach()
    hooks = [(p._backward_hooks, p._post_accumulate_grad_hooks) for p in model.parameters()]
    assert hooks == [(None, None)] * len(hooks)
    whole = joined(parts) if piecewise else parts[0]
    numbers = {}
    return [numbers.setdefault(key, len(numbers)) for key in whole.sums.values()]


def back(model, _optimizer):
    model(torch.randn(8, 12)).square().mean().backward()


def update(_model, optimizer):
    optimizer.step()


def cleared(set_to_none):
    return lambda _model, optimizer: optimizer.zero_grad(set_to_none=set_to_none)


def dead(model, _optimizer):
    """A pass in which all gradients but those of the last layer are zero."""
    model[-1](model[:-1](torch.randn(8, 12)) * 0 + 1).square().mean().backward()


def half(model, _optimizer):
    model[:3](torch.randn(8, 12)).square().mean().backward()


def other_half(model, _optimizer):
    model[3:](torch.randn(8, 16)).square().mean().backward()


def returned(model, _optimizer):
    torch.autograd.grad(model(torch.randn(8, 12)).square().mean(), list(model.parameters()))


@pytest.mark.parametrize("piecewise", [False, True])
@pytest.mark.parametrize("zero", [cleared(False), cleared(True)])
def test_sums_are_numbered_by_what_is_in_the_gradients(zero, piecewise):
    for loops, expected in (
        ([zero, back, back, update, zero, back, back, back, update], [0, 0, 1, 1, 1]),
        ([back, zero, back, update], [0, 1]),
        ([back, update, back, zero, back, update], [0, 1, 2]),
        ([back, returned, back, update], [0, 0]),
        ([back, returned, zero, returned, back, update], [0, 1]),
        ([dead, dead, back, zero, dead, update], [0, 0, 0, 1]),
    ):
        assert sums_of(loops, piecewise=piecewise) == expected
    assert sums_of([half, other_half, half, other_half, zero, other_half, half, update]) == [0, 0, 0, 0, 1, 1]


def test_a_copy_in_the_middle_of_a_step_has_no_hooks():
    model = examples.mlp()
    listener = Listener(model, [torch.optim.SGD(model.parameters(), lr=0.1)], Training())
    listener.attach()
    copied = copy.deepcopy(model)
    listener.detach()
    assert all(not p._backward_hooks and not p._post_accumulate_grad_hooks for p in copied.parameters())
