"""Gradients are read as the backward pass ends: before clipping, of the whole step, at the parameters it began with."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kit.traces import differences, fingerprint
from kit.training_loops import values
from normscope.probes import Recorder, _backward_end  # white box: the mark of an address is planted

SITES = ("0", "2", "4")


def make():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(seed=0, size=12):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=stream), torch.randint(3, (size,), generator=stream)


def loss_fn(model, data):
    return 30 * F.cross_entropy(model(data[0]), data[1])


def norms(model, scale=1.0):
    """Each layer's norm of what is in ``.grad`` now."""
    return {
        site: math.hypot(*(p.grad.float().norm().item() / scale for p in model.get_submodule(site).parameters()))
        for site in SITES
    }


def read(model, optimizer, block, steps=2, scaler=None):
    """Run steps; return the values of the last by name and site."""
    scope = Recorder(model, loss_fn, optimizer, ["gradient_flow"], every=1, scaler=scaler)
    for _ in range(steps):
        with scope.step(None):
            block()
    found = {}
    for (_, step, site, name), value in values(scope.drain()).items():
        if step == steps - 1 and name.startswith("norm"):
            found.setdefault(name, {})[site] = value
    return found


def near(expected):
    return pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_the_norm_is_that_before_clipping_and_that_after_it_stands_beside_it(kind):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    seen = {}

    def block():
        optimizer.zero_grad()
        loss_fn(model, batch()).backward()
        seen["before"] = norms(model)
        if kind == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        else:
            nn.utils.clip_grad_value_(model.parameters(), 0.1)
        seen["after"] = norms(model)
        optimizer.step()

    found = read(model, optimizer, block)
    assert found == {"norm": near(seen["before"]), "norm_at_update": near(seen["after"])}
    assert math.hypot(*seen["after"].values()) < 1.5 < math.hypot(*seen["before"].values())


@pytest.mark.parametrize("bound", [None, 1e9])
def test_what_clipping_does_not_change_is_recorded_once_and_without_clipping_computed_once(bound, monkeypatch):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    calls, inner = [], torch._foreach_norm
    monkeypatch.setattr(
        torch, "_foreach_norm", lambda held, *args, **kw: calls.append(len(held)) or inner(held, *args, **kw)
    )

    def block():
        optimizer.zero_grad()
        loss_fn(model, batch()).backward()
        if bound is not None:
            nn.utils.clip_grad_norm_(model.parameters(), bound)
        optimizer.step()

    assert read(model, optimizer, block, steps=2).keys() == {"norm"}
    # The first step looks at all gradients twice, for changes that torch does not count. The clipping has a call, too.
    assert calls == ([6, 6, 6] if bound is None else [6, 6, 6] * 2)


@pytest.mark.parametrize("write", ["data", "detached-array", "alias"])
def test_changes_that_torch_does_not_count_are_seen(write):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    seen = {}

    def block():
        optimizer.zero_grad()
        loss_fn(model, batch()).backward()
        seen["before"] = norms(model)
        for parameter in model[2].parameters():
            version = parameter.grad._version
            if write == "data":
                parameter.grad.data.clamp_(-0.01, 0.01)
            elif write == "alias":
                torch.from_numpy(parameter.grad.numpy()).mul_(0.1)
            else:
                parameter.grad.numpy()[:] *= 0.1
            assert parameter.grad._version == version
        seen["after"] = norms(model)
        optimizer.step()

    found = read(model, optimizer, block)
    assert found == {"norm": near(seen["before"]), "norm_at_update": {"2": near(seen["after"]["2"])}}
    assert seen["after"]["2"] < 0.5 * seen["before"]["2"]


def test_only_the_layers_that_were_changed_have_a_second_norm():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def block():
        optimizer.zero_grad()
        loss_fn(model, batch()).backward()
        nn.utils.clip_grad_norm_(model[2].parameters(), 1e-3)
        optimizer.step()

    assert read(model, optimizer, block)["norm_at_update"] == {"2": near(1e-3)}


def test_micro_batches_add_up_and_the_sum_is_clipped():
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    seen = {}

    def block():
        optimizer.zero_grad()
        for seed in range(3):
            loss_fn(model, batch(seed)).backward()
        seen["before"] = norms(model)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    found = read(model, optimizer, block)
    assert found["norm"] == near(seen["before"])
    assert math.hypot(*found["norm_at_update"].values()) == near(0.5)


@pytest.mark.parametrize("clipped", [False, True])
def test_a_loss_scale_is_taken_off_before_and_after_clipping(clipped):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1)
    seen = {}

    def block():
        optimizer.zero_grad()
        scaler.scale(loss_fn(model, batch())).backward()
        seen["before"] = norms(model, scaler.get_scale())
        if clipped:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()

    found = read(model, optimizer, block, scaler=scaler)
    assert found["norm"] == near(seen["before"])
    assert ("norm_at_update" in found) is clipped
    if clipped:
        assert math.hypot(*found["norm_at_update"].values()) == near(0.5)


def test_of_many_evaluations_of_a_closure_the_first_counts_also_where_old_gradients_lie_about():
    model = make()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4, line_search_fn="strong_wolfe")
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model, batch())
        loss.backward()
        seen.append(norms(model))
        return loss

    def block():
        seen.clear()
        optimizer.step(closure)

    found = read(model, optimizer, block)
    assert len(seen) > 2
    assert seen[0] != near(seen[-1])
    assert found == {"norm": near(seen[0])}


def test_clipping_inside_a_closure_is_seen():
    """So does Lightning: the optimizer's step is called first, and runs the pass and the clipping."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    seen = {}

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model, batch())
        loss.backward()
        seen["before"] = norms(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        seen["after"] = norms(model)
        return loss

    found = read(model, optimizer, lambda: optimizer.step(closure))
    assert found == {"norm": near(seen["before"]), "norm_at_update": near(seen["after"])}


@pytest.mark.parametrize("clipped", [False, True])
def test_the_last_micro_batch_may_run_inside_a_closure(clipped):
    """So does Lightning where it accumulates: the passes before run outside, and the last one adds to them."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    seen = {}

    def closure():
        (loss_fn(model, batch(1)) / 2).backward()
        seen["before"] = norms(model)
        if clipped:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        seen["after"] = norms(model)

    def block():
        optimizer.zero_grad()
        (loss_fn(model, batch(0)) / 2).backward()
        optimizer.step(closure)

    found = read(model, optimizer, block)
    assert found == {"norm": near(seen["before"])} | ({"norm_at_update": near(seen["after"])} if clipped else {})


@pytest.mark.parametrize("at_the_same_place", [False, True])
def test_of_a_perturbed_second_pass_the_optimizer_gets_the_gradient_and_the_first_pass_has_the_norm(
    at_the_same_place, monkeypatch
):
    if at_the_same_place:
        # The allocator may give the second gradient the first one's address, at the same version.
        monkeypatch.setattr(_backward_end, "_mark", lambda gradient: (0, 0))
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    seen = {}

    def block():
        optimizer.zero_grad()
        loss_fn(model, batch()).backward()
        seen["first"] = norms(model)
        moves = [0.1 * p.grad for p in model.parameters()]
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                p.add_(move)
        optimizer.zero_grad()
        loss_fn(model, batch()).backward()
        seen["second"] = norms(model)
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                p.sub_(move)
        optimizer.step()

    assert read(model, optimizer, block) == {"norm": near(seen["first"]), "norm_at_update": near(seen["second"])}


def test_a_second_optimizers_pass_does_not_count_for_what_the_first_has_updated():
    model = make()
    first = torch.optim.SGD(model[0].parameters(), 0.01)
    second = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], 0.01)
    seen = {}

    def block():
        model.zero_grad()
        loss_fn(model, batch(1)).backward()
        seen.update(norms(model))
        first.step()
        loss_fn(model, batch(2)).backward()
        seen.update({site: value for site, value in norms(model).items() if site != "0"})
        second.step()

    assert read(model, [first, second], block) == {"norm": near(seen)}


def test_gradients_made_without_a_backward_pass_are_read_before_the_update():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    seen = {}

    def block():
        parts = torch.autograd.grad(loss_fn(model, batch()), list(model.parameters()))
        for p, part in zip(model.parameters(), parts, strict=True):
            p.grad = part
        seen.update(norms(model))
        optimizer.step()
        optimizer.zero_grad()

    assert read(model, optimizer, block) == {"norm": near(seen)}


def test_without_optimizer_the_norm_is_the_backward_passs_also_where_gradients_are_gone_as_the_step_ends():
    model = make()
    seen = {}

    def block():
        loss_fn(model, batch()).backward()
        seen.update(norms(model))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        model.zero_grad()

    assert read(model, None, block) == {"norm": near(seen)}


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.layers, self.reentrant = make(), reentrant

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize(("reentrant", "compiled"), [(False, False), (True, False), (False, True)])
def test_checkpoints_and_compilation(reentrant, compiled):
    """Compiled, checkpointed, clipped, with an optimizer that evaluates its closure many times: right, and no trace."""

    def train(codes):
        torch._dynamo.reset()
        model = Checkpointed(reentrant)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3)
        scope = Recorder(run, loss_fn, optimizer, codes, every=1)
        seen = []

        def closure():
            optimizer.zero_grad()
            x, y = batch()
            loss = loss_fn(run, (x.requires_grad_(), y))
            loss.backward()
            seen.append(norms(model.layers))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            return loss

        torch._dynamo.utils.counters.clear()
        for _ in range(2):
            seen.clear()
            with scope.step(batch()):
                optimizer.step(closure)
        found = {site: v for (_, step, site, name), v in values(scope.drain(), "norm").items() if step == 1}
        left = fingerprint(state=model.state_dict(), optimizer=optimizer.state_dict())
        return left, seen[0], found, torch._dynamo.utils.counters["stats"]["unique_graphs"]

    left, _, _, graphs = train([])
    again, seen, found, graphs_again = train(["gradient_flow"])
    assert differences(left, again) == []
    assert graphs == graphs_again
    assert found == near({f"layers.{site}": value for site, value in seen.items()})


def test_a_pass_that_fails_is_not_waited_for():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    seen = {}

    def broken(_):
        raise MemoryError("planted")

    def block():
        optimizer.zero_grad()
        handle = model[0].weight.register_post_accumulate_grad_hook(broken)
        with pytest.raises(MemoryError):
            loss_fn(model, batch()).backward()
        handle.remove()
        optimizer.zero_grad()
        loss_fn(model, batch()).backward()
        seen.update(norms(model))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    assert read(model, optimizer, block)["norm"] == near(seen)
