"""What a watched scope was given and what the loop does are compared at the first step; what does not fit is told."""

import gc
import math

import pytest
import torch
from torch import nn

import normscope as ns
from kit.watched_loops import data, entropy, make, plain_loop
from normscope.probes import ProbeWarning, WiringWarning


def wired(scope, step):
    """Run one step, and return the text of the one warning about the wiring."""
    with pytest.warns(WiringWarning) as caught:
        [step() for _ in range(2)]  # told once
    found = [str(warning.message) for warning in caught if issubclass(warning.category, WiringWarning)]
    assert len(found) == 1, found
    assert caught[0].filename in (__file__, plain_loop.__code__.co_filename)  # a line of the user, not of the package
    return found[0]


def test_a_scope_on_another_model_than_the_loop_trains_is_told():
    model, other = make(), make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.Scope(other, entropy, optimizer, "gradient_flow", every=1)

    def step():
        with scope.step(data(1)[0]):
            plain_loop(model, optimizer, data(1))

    said = wired(scope, step)
    assert "did not run" in said
    assert "optimizer holds no parameter" in said
    watched = ns.watch(other, optimizer, every=1)
    assert "did not run before the optimizer stepped" in wired(watched, lambda: plain_loop(model, optimizer, data(1)))


def test_no_backward_pass_and_another_batch_and_a_scaled_loss_are_told():
    def run(loss_of, optimizer_of=lambda m: torch.optim.SGD(m.parameters(), lr=0.1), backward=True):
        model = make()
        optimizer = optimizer_of(model)
        scope = ns.Scope(model, entropy, optimizer, ["descent"], every=1)
        batch, other = data(2)

        def step():
            with scope.step(batch):
                optimizer.zero_grad()
                loss = loss_of(model, batch, other)
                if backward:
                    loss.backward()
                    optimizer.step()

        return wired(scope, step)

    assert "is not that of loss_fn at this batch" in run(lambda m, batch, other: entropy(m, other))
    assert "is 4 times that of loss_fn" in run(lambda m, batch, other: 4 * entropy(m, batch))
    assert "no backward pass" in run(lambda m, batch, other: entropy(m, batch), backward=False)
    assert "optimizer holds no parameter" in run(
        lambda m, batch, other: entropy(m, batch), lambda m: torch.optim.SGD(make().parameters(), lr=0.1)
    )


def test_a_cause_that_ends_in_a_question_gets_no_period():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.Scope(model, lambda m, b: entropy(m, b) / 10, optimizer, "descent", every=1)
    (batch,) = data(1)
    with pytest.warns(WiringWarning), scope.step(batch):
        plain_loop(model, optimizer, [batch])
    (said,) = (line for line in scope.summary().splitlines() if "may be wrong" in line)
    assert said.endswith("?")


def test_a_sound_loop_is_told_nothing():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.Scope(model, entropy, optimizer, "all", every=2)
    for batch in data(3):
        with scope.step(batch):
            plain_loop(model, optimizer, [batch])  # warnings are errors
    assert set(scope.not_read) == {"residual_stream"}  # a dense network has no stream of tokens


def test_a_step_that_is_never_entered_is_told():
    model = make()
    scope = ns.Scope(model, entropy, every=1)
    batches = data(2)
    scope.step(batches[0])
    with pytest.warns(WiringWarning, match="write `with scope.step"):
        scope.step(batches[1])


def test_an_optimizer_that_was_not_given_is_told():
    model = make()
    given, real = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    scope = ns.watch(model, given, every=1)
    with pytest.warns(WiringWarning, match="was not given \\(SGD\\) updates the model") as caught:
        plain_loop(model, real, data(5))
    assert len(caught) == 1
    assert scope.wiring
    assert str(caught[0].message).endswith(scope.wiring[0])
    assert f"may be wrong: {scope.wiring[0]}." in scope.summary()
    scope.detach()


def test_a_watched_optimizer_that_never_steps_is_told_and_one_that_has_stepped_is_not():
    models = [make() for _ in range(3)]
    never, stepped, real = (torch.optim.SGD(model.parameters(), lr=0.01) for model in models)
    scopes = [ns.watch(model, optimizer, every=100) for model, optimizer in zip(models, (never, stepped), strict=False)]
    plain_loop(models[1], stepped, data(1))
    with pytest.warns(WiringWarning) as caught:
        plain_loop(models[2], real, data(210, size=4))
    assert ["200 steps of other optimizers" in str(warning.message) for warning in caught] == [True]
    assert [bool(scope.wiring) for scope in scopes] == [True, False]
    for scope in scopes:
        scope.detach()


def test_a_training_that_nobody_needs_any_more_is_not_waited_for(monkeypatch):
    collected, collect = [], gc.collect
    monkeypatch.setattr(gc, "collect", lambda: collected.append(True) or collect())
    gone, model = make(), make()
    gone.scope = ns.watch(gone, torch.optim.SGD(gone.parameters(), lr=0.01), every=100)  # a circle
    gc.disable()
    try:
        del gone
        plain_loop(model, torch.optim.SGD(model.parameters(), lr=0.01), data(210, size=4))  # warnings are errors
    finally:
        gc.enable()
    assert len(collected) == 1  # a search of all objects at every step would slow the training


def test_a_scaler_that_was_not_given_is_found():
    def train(given):
        model = make(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scope = ns.watch(model, optimizer, every=2, scaler=scaler if given else None)
        for x, y in data(5):
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        return [(r.step, r.probe, r.site, r.name, r.value) for r in scope.drain()]

    with pytest.warns(ProbeWarning, match="left out step 0.*a gradient scaler steps the optimizer"):
        found = train(given=False)
    assert found == [row for row in train(given=True) if row[0] > 0]


def passes(model, optimizer, *acts):
    """Return a step of a loop: backward passes of losses (functions), ``"zero"``, ``"clip"`` and ``"update"``."""

    def step(batch):
        for act in acts:
            if act == "zero":
                optimizer.zero_grad(set_to_none=False)
            elif act == "clip":
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            elif act == "update":
                optimizer.step()
            else:
                act(model, batch).backward()

    return step


def other_loss(model, batch):
    return model(batch[0]).square().sum()


@pytest.mark.parametrize(
    "acts",
    [
        ["zero", entropy, "update", other_loss],  # a further loss whose gradient no update uses
        ["zero", entropy, "update", other_loss, "update"],
        ["zero", other_loss, "zero", entropy, "update", other_loss],
        ["zero", other_loss, "zero", entropy, "update", other_loss, "update"],
        ["zero", other_loss, "zero", entropy, "clip", "update"],
        ["zero", entropy, other_loss, "update"],  # a penalty of the loop's own, added to what the probes read
    ],
    ids=range(6),
)
def test_it_is_enough_that_the_first_gradient_or_that_of_an_update_is_the_losss(acts):
    model = make(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.Scope(model, entropy, optimizer, "descent", every=1)
    (batch,) = data(1)
    with scope.step(batch):
        passes(model, optimizer, *acts)(batch)  # warnings are errors
    assert scope.wiring == []


@pytest.mark.parametrize("acts", [["zero", other_loss, entropy, "update"], ["zero", other_loss, "clip", "update"]])
def test_a_gradient_that_no_pass_and_no_update_shares_with_the_loss_is_told(acts):
    model = make(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.Scope(model, entropy, optimizer, "descent", every=1)
    (batch,) = data(1)
    with pytest.warns(WiringWarning, match="is not that of loss_fn"), scope.step(batch):
        passes(model, optimizer, *acts)(batch)


def test_the_first_gradient_is_compared_without_the_scale_of_the_loss():
    model = make(dropout=0.0)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scope = ns.Scope(model, entropy, optimizer, "descent", every=1, scaler=scaler)
    (batch,) = data(1)
    with scope.step(batch):
        for loss in (entropy, other_loss):
            scaler.scale(loss(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scope.wiring == []


def test_gradients_that_are_taken_away_are_no_backward_pass():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (batch,) = data(1)
    entropy(model, batch).backward()
    scope = ns.Scope(model, entropy, optimizer, "gradient_flow", every=1)

    def step():
        with scope.step(batch):
            model(batch[0])
            optimizer.zero_grad(set_to_none=True)

    assert "no backward pass came back" in wired(scope, step)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_gradients_without_a_direction_are_not_compared(value):
    model = make(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        return value * model(batch[0]).sum()

    scope = ns.Scope(model, loss_fn, optimizer, "descent", every=1)
    (batch,) = data(1)
    with scope.step(batch):
        passes(model, optimizer, "zero", loss_fn, "update")(batch)
    assert scope.wiring == []


@pytest.mark.parametrize("bare", [False, True])
def test_a_model_that_trains_nothing_needs_no_backward_pass(bare):
    model = nn.Sequential(nn.ReLU()) if bare else make().requires_grad_(False)
    elsewhere = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(elsewhere.parameters(), lr=0.1) if bare else None
    scope = ns.Scope(model, optimizer=optimizer, probes="activation_distribution", every=1)
    (batch,) = data(1)
    with scope.step(batch):
        model(batch[0])
    assert scope.wiring == []
