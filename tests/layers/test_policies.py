"""When running statistics are used, when they are moved, and what they refuse."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kit.batch_norms import F64, OPTIONS, batches, copied_buffers, drawn_batch_norm
from normscope import layers, surgery
from normscope._errors import NonFiniteError, UsageError
from normscope.ops.sets import Renorm

# Accumulation.


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("k", [2, 3])
def test_micro_batches_make_one_update_of_their_union(k, momentum):
    layer, whole = drawn_batch_norm(accumulate=k, momentum=momentum), drawn_batch_norm(momentum=momentum)
    data = batches(6)
    for at in range(0, 6, k):
        before = copied_buffers(layer)
        for i, x in enumerate(data[at : at + k]):
            if i:
                assert torch.equal(layer.running_mean, before["running_mean"])
            layer(x)
        whole(torch.cat(data[at : at + k]))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(layer, name), getattr(whole, name))
    plain = drawn_batch_norm(momentum=momentum)
    for x in data:
        plain(x)
    assert (plain.running_var - whole.running_var).abs().max() > 0.1  # what torch would have had


@pytest.mark.parametrize("taken", [1, 2])
def test_a_reset_forgets_the_micro_batches_of_an_unfinished_step(taken):
    layer, fresh = drawn_batch_norm(accumulate=3), drawn_batch_norm(accumulate=3)
    first, second = batches(3), batches(3, seed=1)
    for x in first[:taken]:
        layer(x)
    layer.reset_running_stats()
    for x in second:
        layer(x)
        fresh(x)
    torch.testing.assert_close(copied_buffers(layer), copied_buffers(fresh), rtol=0, atol=0)
    assert fresh.num_batches_tracked == 1


def test_uneven_micro_batches_are_weighted():
    layer, whole = drawn_batch_norm(accumulate=2), drawn_batch_norm()
    big, small = batches(1, (30, 3))[0], 9 + batches(1, (2, 3))[0]
    layer(big)
    layer(small)
    whole(torch.cat([big, small]))
    torch.testing.assert_close(layer.running_var, whole.running_var)


# Checkpointing.


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 2},
        {"statistics": "ghost", "group_size": 4},
        {"momentum": None},
        {"use_running": True},
        {"statistics": "renorm", "renorm": Renorm(r_steps=(0, 0), d_steps=(0, 0))},
    ],
    ids=str,
)
def test_one_update_a_step_under_checkpointing(options, reentrant):
    plain, again = drawn_batch_norm(**options), None
    again = copy.deepcopy(plain)
    for x in batches(3):
        grads = []
        for layer in (plain, again):
            leaf = x.clone().requires_grad_()
            y = checkpoint(layer, leaf, use_reentrant=reentrant) if layer is again else layer(leaf)
            layer.zero_grad()
            torch.tanh(y).square().sum().backward()
            grads.append((leaf.grad, layer.weight.grad))
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(copied_buffers(again), copied_buffers(plain))


@pytest.mark.parametrize("reentrant", [True, False])
def test_torch_updates_twice_under_checkpointing(reentrant):
    layer, x = nn.BatchNorm1d(3, dtype=F64), batches(1)[0].requires_grad_()
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    assert layer.num_batches_tracked == 2
    torch.testing.assert_close(layer.running_mean, 0.19 * x.detach().mean(0))


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_one_update_a_step_under_checkpointing_of_a_compiled_layer(reentrant):
    torch._dynamo.reset()
    layer, plain = drawn_batch_norm(), drawn_batch_norm()
    plain.load_state_dict(layer.state_dict())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for x in batches(3):
        checkpoint(compiled, x.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
        plain(x)
        torch.testing.assert_close(copied_buffers(layer), copied_buffers(plain))


# Updates that are refused.


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"statistics": "ghost", "group_size": 4}], ids=str)
def test_an_update_that_is_not_finite_is_refused_by_name(value, options):
    model = nn.Sequential(nn.Identity(), nn.Sequential(drawn_batch_norm(on_bad_update="raise", **options)))
    layer = model[1][0]
    good, bad = batches(2)
    bad[3, 1] = value
    model(good)
    before = copied_buffers(layer)
    with pytest.raises(NonFiniteError, match=r"layer '1\.0'.*not finite"):
        model(bad)
    with pytest.raises(NonFiniteError, match="BatchNorm1d"):
        layer(bad)
    layer.on_bad_update = "warn"
    with pytest.warns(UserWarning, match=r"layer '1\.0'.*left as they were"):
        model(bad)
    layer.on_bad_update = "skip"
    model(bad)
    assert all(torch.equal(before[name], value) for name, value in copied_buffers(layer).items())
    layer.on_bad_update = "track"  # as torch does
    model(bad)
    model(good)
    assert not layer.running_var.isfinite().all()


@pytest.mark.parametrize("policy", ["skip", "track"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"momentum": None}], ids=str)
def test_in_an_ensemble_only_the_member_with_the_bad_batch_skips_it(options, policy):
    """Under vmap no value can be looked at, and each member's buffers are what they are by itself."""
    members = [drawn_batch_norm(on_bad_update=policy, **options) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    base = copy.deepcopy(members[0])

    def forward(p, b, x):
        return torch.func.functional_call(base, (p, b), (x,))

    for bad in (None, 1, None, 2):
        data = torch.stack(batches(3))
        if bad is not None:
            data[bad, 3, 1] = torch.nan
        torch.func.vmap(forward)(parameters, buffers, data)
        for member, x in zip(members, data, strict=True):
            member(x)
    assert all(member.running_var.isfinite().all() for member in members) is (policy == "skip")
    for at, member in enumerate(members):
        for name, value in member.named_buffers():
            torch.testing.assert_close(buffers[name][at], value, equal_nan=True)


def test_one_value_a_channel():
    layer, one = drawn_batch_norm(on_bad_update="warn"), batches(1, (1, 3))[0]
    layer(batches(1)[0])
    before = copied_buffers(layer)
    with pytest.warns(UserWarning, match="one value a channel; normalized by the running statistics"):
        y = layer(one)
    torch.testing.assert_close(y, copy.deepcopy(layer).eval()(one))
    layer.on_bad_update = "raise"
    with pytest.raises(NonFiniteError, match="one value a channel"):
        layer(one)
    layer.on_bad_update = "track"
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(one)
    assert all(torch.equal(before[name], value) for name, value in copied_buffers(layer).items())


def test_masked_updates():
    layer, plain = drawn_batch_norm(), drawn_batch_norm()
    x = batches(1, (8, 3, 5))[0]
    lengths = torch.tensor([5, 4, 3, 2, 1, 0, 0, 5])
    padded = x.clone()
    for i, n in enumerate(lengths):
        padded[i, :, n:] = torch.nan
    y = layer(padded, lengths=lengths)
    mask = torch.arange(5) < lengths.unsqueeze(1)
    assert torch.equal(layer(padded, mask).isnan(), torch.zeros_like(x, dtype=torch.bool))
    assert (y.movedim(1, -1)[~mask] == 0).all()
    plain(x.movedim(1, -1)[mask])
    torch.testing.assert_close(layer.running_var, 0.9 * plain.running_var + 0.1 * x.movedim(1, -1)[mask].var(0))
    before = copied_buffers(layer)
    nothing = torch.zeros(8, 5, dtype=torch.bool)
    assert (layer(padded, nothing) == 0).all()
    nothing[0, 0] = True
    with pytest.raises(ValueError, match="all but one masked"):
        layer(padded, nothing)
    assert all(torch.equal(before[name], value) for name, value in copied_buffers(layer).items())
    layer.eval()
    z = layer(padded, mask)
    torch.testing.assert_close(z.movedim(1, -1)[mask], layer(x.movedim(1, -1)[mask]))
    assert (z.movedim(1, -1)[~mask] == 0).all()
    with pytest.raises(UsageError, match="give one of them"):
        layer(x, mask, lengths)


# Use and update of running statistics.


def test_frozen_survives_train():
    model = nn.Sequential(drawn_batch_norm())
    data = batches(3)
    model(data[0])
    layer = model[0]
    layer.frozen = True
    before = copied_buffers(layer)
    right = copy.deepcopy(model).eval()(data[1])
    model.train()
    torch.testing.assert_close(model(data[1]), right)
    assert all(torch.equal(before[name], value) for name, value in copied_buffers(layer).items())
    assert "use_running=True, update_statistics=False" in repr(layer)
    assert copy.deepcopy(layer).frozen
    assert pickle.loads(pickle.dumps(layer)).frozen
    layer.frozen = False
    model(data[2])
    assert layer.num_batches_tracked == 2
    with pytest.raises(UsageError, match="none to freeze"):
        layers.BatchNorm1d(3, track_running_stats=False).frozen = True


def test_surgery_freezes_and_thaws_it_whatever_its_options():
    for options in OPTIONS:
        model = nn.Sequential(drawn_batch_norm(**options))
        layer, data = model[0], batches(3)
        for x in data:
            model(x)
        before = copied_buffers(layer)
        surgery.freeze(model)
        model.train()(data[1])
        right = nn.Sequential(copy.deepcopy(layer)).eval()(data[1])
        torch.testing.assert_close(model(data[1]), right)
        assert all(torch.equal(before[name], value) for name, value in copied_buffers(layer).items())
        surgery.unfreeze(model)
        for x in data:
            model(x)
        assert layer.num_batches_tracked > before["num_batches_tracked"]


def test_use_and_update_are_switched_separately():
    (x,) = batches(1)
    for use in (None, True, False):
        for update in (True, False):
            for training in (True, False):
                layer = drawn_batch_norm(use_running=use, update_statistics=update).train(training)
                layer.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
                before = copied_buffers(layer)
                y = layer(x)
                running = use if use is not None else not training
                mean, var = (before["running_mean"], before["running_var"]) if running else (
                    x.mean(0), x.var(0, correction=0))  # fmt: skip
                torch.testing.assert_close(y, layer.weight * (x - mean) / (var + 1e-5).sqrt())
                assert torch.equal(before["running_mean"], layer.running_mean) is not (training and update)
                if training and update:
                    torch.testing.assert_close(layer.running_mean, 0.9 * before["running_mean"] + 0.1 * x.mean(0))


def test_biased_or_unbiased_running_variance():
    x = batches(1)[0]
    for unbiased in (True, False):
        layer = drawn_batch_norm(unbiased_variance=unbiased, momentum=1.0)
        layer(x)
        torch.testing.assert_close(layer.running_var, x.var(0, correction=int(unbiased)))


def test_ghost_batches_track_the_whole():
    layer, plain = drawn_batch_norm(statistics="ghost", group_size=3), drawn_batch_norm()
    for x in batches(3):
        layer(x)
        plain(x)
    torch.testing.assert_close(copied_buffers(layer), copied_buffers(plain))


def test_renorm_reaches_its_bounds_and_no_more():
    layer = drawn_batch_norm(statistics="renorm", renorm=Renorm(3.0, 5.0, (2, 4), (2, 4)), affine=True)
    x = torch.randn(8, 3, dtype=F64)
    for step in range(12):
        layer.running_mean.zero_()
        layer.running_var.fill_(1.0)
        with torch.no_grad():
            y = layer(100 + 50 * x) / layer.weight
        grown = min(max((step - 2) / 2, 0), 1)
        xhat = (x - x.mean(0)) / x.std(0, correction=0)
        torch.testing.assert_close(y, xhat * (1 + 2 * grown) + 5 * grown, rtol=1e-6, atol=1e-6)


# Low precision.


@pytest.mark.parametrize("make", ["half", "bfloat16", "to"])
def test_running_statistics_stay_float32(make):
    layer = layers.BatchNorm1d(3, float32_statistics=True, accumulate=2)
    layer(torch.randn(8, 3))
    before = copied_buffers(layer)
    layer = layer.to(torch.bfloat16) if make == "to" else getattr(layer, make)()
    assert layer.weight.dtype in (torch.float16, torch.bfloat16)
    assert all(torch.equal(before[name], value) for name, value in copied_buffers(layer).items())
    assert layer(torch.randn(8, 3).to(layer.weight.dtype)).dtype == layer.weight.dtype
    assert layer.double().running_mean.dtype == F64
    assert layers.BatchNorm1d(3, float32_statistics=True, dtype=torch.bfloat16).running_var.dtype == torch.float32


# Gradients through statistics that have moved.


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, layers.BatchNorm1d])
def test_eval_forward_then_train_forward_then_backward(kind):
    layer = kind(3, dtype=F64)
    x, z = batches(2)
    leaf = x.clone().requires_grad_()
    right = torch.autograd.grad(copy.deepcopy(layer).eval()(leaf).sum(), leaf)[0]
    y = layer.eval()(leaf)
    layer.train()(30 * z)
    (found,) = torch.autograd.grad(y.sum(), leaf)
    off = ((found - right).norm() / right.norm()).item()
    assert off > 0.5 if kind is nn.BatchNorm1d else off < 1e-12


def test_no_warning_is_given_without_cause():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in OPTIONS:
            layer = drawn_batch_norm(**options)
            for x in batches(2):
                layer(x)
