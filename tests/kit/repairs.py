"""What a repair must keep: a model's outputs, its optimizer, its state dict; and ways to train the same otherwise."""

import copy

import torch
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint


def batch_of(case):
    return next(iter(case.loader))


def outputs(model, case, batch, *, training):
    """Return the tensors that a copy of a model puts out for a batch, in one of both modes.

    The copy is called as the case's loss calls the model, from the same state of the random streams.
    """
    model = copy.deepcopy(model).train(training)
    taken = []
    model.register_forward_hook(lambda module, inputs, output: taken.extend(pytree.tree_leaves(output)))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        case.loss_fn(model, batch)
    return [tensor.detach().clone() for tensor in taken if isinstance(tensor, torch.Tensor)]


def same(a, b):
    """Whether outputs are equal but for the rounding of their dtype."""
    pairs = list(zip(a, b, strict=True))
    rounding = [0.02 if x.dtype.itemsize < 4 else 1e-4 for x, _ in pairs]
    return all(
        torch.allclose(x.float(), y.float(), rtol=bound, atol=bound * float(x.float().abs().max()), equal_nan=True)
        for (x, y), bound in zip(pairs, rounding, strict=True)
    )


def give_adam(case):
    """Give the case an Adam with the groups of its optimizer and a state as after steps, the parameters unmoved."""
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in case.optimizer.param_groups]
    case.optimizer = torch.optim.Adam(groups, lr=0.01)
    stream = torch.Generator().manual_seed(2)
    held = parameters_of(case.optimizer)
    for parameter in held:
        parameter.grad = torch.randn(parameter.shape, generator=stream).to(parameter)
    for rate in (0.0, 0.01):
        for group in case.optimizer.param_groups:
            group["lr"] = rate
        if not rate:
            case.optimizer.step()
    case.optimizer.zero_grad()
    return {id(parameter): copy.deepcopy(case.optimizer.state[parameter]) for parameter in held}


def parameters_of(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_holds_what_it_should(case, before, state):
    """Assert that the optimizer has what is left of its parameters, those that are new, and the old ones' state.

    Args:
        case: The set-up, repaired.
        before: Parameters of the model before the repair.
        state: State of the optimizer before, by id of the parameter.
    """
    held = parameters_of(case.optimizer)
    trained = [p for p in case.model.parameters() if p.requires_grad]
    known = {id(p) for p in before}
    assert len({id(p) for p in held}) == len(held), "a parameter is in the optimizer twice"
    assert {id(p) for p in held} <= {id(p) for p in case.model.parameters()}, (
        "a parameter that is gone is still updated"
    )
    lost = [p for p in trained if id(p) not in {id(q) for q in held} and (id(p) in state or id(p) not in known)]
    assert not lost, "a parameter of the model is no longer updated, or a new one not yet"
    gone = [p for p in case.optimizer.state if id(p) not in {id(q) for q in held}]
    assert not gone, "the optimizer keeps the state of a parameter that is gone"
    for parameter in held:
        if id(parameter) not in state:
            continue
        kept = case.optimizer.state[parameter]
        assert kept.keys() == state[id(parameter)].keys()
        assert all(torch.equal(kept[key], value) for key, value in state[id(parameter)].items())


def make_a_step(case):
    """Train on the first batch as the case does."""
    if case.step is not None:
        case.step(case.model, batch_of(case))
        return
    case.optimizer.zero_grad()
    case.loss_fn(case.model, batch_of(case)).backward()
    case.optimizer.step()


def a_step_moves_every_parameter_with_a_gradient(case):
    before = {name: parameter.detach().clone() for name, parameter in case.model.named_parameters()}
    held = {id(parameter) for parameter in parameters_of(case.optimizer)}
    make_a_step(case)
    moved = 0
    for name, parameter in case.model.named_parameters():
        equal = torch.equal(before[name], parameter)
        if id(parameter) not in held:
            assert equal, f"{name} is in no group and moved"
        elif parameter.grad is not None and bool(parameter.grad.any()):
            assert not equal, f"{name} has a gradient and did not move"
            moved += 1
    assert moved, "no parameter has a gradient"


def loads_its_own_state_dict(case):
    """Assert that a copy of the model with other values puts out the same again after its state dict was loaded."""
    state = {key: value.clone() for key, value in case.model.state_dict().items()}
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.fill_(1)
    other.load_state_dict(state)
    batch = batch_of(case)
    for training in (True, False):
        a, b = (outputs(model, case, batch, training=training) for model in (case.model, other))
        assert all(torch.equal(torch.nan_to_num(x), torch.nan_to_num(y)) for x, y in zip(a, b, strict=True))


def recompute(case):
    """Have the case's loss run again in the backward pass, as activation checkpointing does."""
    inner = case.loss_fn

    def loss(model, batch):
        root = torch.zeros((), requires_grad=True)
        return checkpoint(lambda _: inner(model, batch), root, use_reentrant=False)

    case.loss_fn = loss


def look_twice(case):
    """Have the case's loss call the model twice without a gradient before it calls it with one."""
    inner = case.loss_fn

    def loss(model, batch):
        with torch.no_grad():
            inner(model, batch)
            inner(model, batch)
        return inner(model, batch)

    case.loss_fn = loss


def settings_of(case):
    """Return what a repair has no cause to touch outside of its places: modes, hooks, and how parameters train."""
    modules = {path: (module, module.training, _hooks(module)) for path, module in case.model.named_modules()}
    trains = [(parameter, parameter.requires_grad) for parameter in case.model.parameters()]
    return modules, trains, _options(case)


def settings_are_kept(case, before, places):
    """Assert that modes, hooks and ``requires_grad`` are as they were, and each parameter's options but its decay.

    Args:
        case: The set-up, repaired.
        before: What ``settings_of`` returned before the repair.
        places: Where the defect was: modes may have changed there.
    """
    modules, trains, options = before
    now = dict(case.model.named_modules())
    for path, (module, training, hooks) in modules.items():
        if now.get(path) is not module:
            continue
        assert module.training == training or path in places, f"{path or 'the model'} is left in another mode"
        assert _hooks(module) == hooks, f"{path or 'the model'} is left with other hooks"
    for parameter, asked in trains:
        assert parameter.requires_grad == asked, "a parameter is left with another requires_grad"
    for key, found in _options(case).items():
        assert found == options.get(key, found), "a parameter trains with other options than before"


def _hooks(module):
    return {name: list(held) for name, held in vars(module).items() if name.endswith("_hooks")}


def _options(case):
    if case.optimizer is None:
        return {}
    return {
        id(parameter): {key: value for key, value in group.items() if key not in ("params", "weight_decay")}
        for group in case.optimizer.param_groups
        for parameter in group["params"]
    }
