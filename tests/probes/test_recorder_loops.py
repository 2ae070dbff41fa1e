"""The scope in loops that accumulate, scale, clip, share and freeze: right, and without a trace."""

import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.traces import differences
from kit.training_loops import (
    COSTLY,
    STREAMING,
    Accumulating,
    Autocast,
    AutocastAroundAll,
    Clipped,
    Loop,
    Scaled,
    TwoLosses,
    TwoOptimizers,
    values,
)
from normscope import probes
from normscope._errors import UsageError
from normscope.probes import Recorder

CODES = [probe.CODE for probe in probes.all()]
LOOPS = [Accumulating, Autocast, AutocastAroundAll, Scaled, Clipped, TwoOptimizers, TwoLosses]


@pytest.mark.parametrize("loop", LOOPS)
def test_no_trace_in_any_loop(loop):
    assert differences(loop().run(CODES)[0], loop().run()[0]) == []


def test_accumulated_steps_are_measured_as_their_mean():
    """Without norms and draws, three micro-batches of a third are the whole batch."""

    class Plain(Loop):
        net = "plain"

    class Parts(Plain, Accumulating):
        pass

    nets.NETS["plain"] = (lambda: nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4)).double(), (12,))
    try:
        batches = [(x[:15].double(), y[:15]) for x, y in nets.batches("plain", 2)]
        found = []
        for loop in (Plain(), Parts()):
            model = nets.make("plain", dtype=torch.float64)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            scope = Recorder(
                model, loop.loss_fn, optimizer, [*COSTLY, "gradient_flow", "activation_distribution"], every=1
            )
            for batch in batches:
                with scope.step(batch if loop.__class__ is Plain else None):
                    loop.block(scope, model, optimizer, batch)
            found.append(values(scope.drain()))
    finally:
        del nets.NETS["plain"]
    whole, parts = found
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        if key[3] in ("output_norm", "p15", "p50", "p85"):
            continue  # of each part's own outputs: a third of the loss on a third of the elements
        assert parts[key] == pytest.approx(value, rel=1e-7, abs=1e-9), key


def test_shares_weigh_the_micro_batches_and_are_refused_outside_a_step():
    model, (batch,) = nets.make("mlp").eval(), nets.batches("mlp", 1)
    scope = Recorder(model, nets.loss_fn, None, [probes.LandscapeAlongGradient(lr=0.1, curvature=False)], every=1)
    with scope.step(None):
        for share in (0.25, 0.5):
            scope.micro_batch(batch, share)
            (share * nets.loss_fn(model, batch)).backward()
    found = {r.name: r.value for r in scope.drain()}
    assert found["loss"] == pytest.approx(0.75 * nets.loss_fn(model, batch).item(), rel=1e-6)
    with pytest.raises(UsageError, match="belongs inside"):
        scope.micro_batch(batch)


@pytest.mark.parametrize("loop", [Autocast, AutocastAroundAll])
def test_the_precision_of_the_users_pass_is_repeated(loop):
    one = loop()
    losses = []

    def loss_fn(model, batch):
        loss = nets.loss_fn(model, batch)
        losses.append(loss.detach().clone())
        return loss

    one.loss_fn = loss_fn
    _, records = one.run(["landscape"], steps=1, every=1)
    found = values(records, "loss")
    assert found["landscape", 0, "", "loss"] == losses[0].item()  # of the user's own call, to the bit
    exact = Loop()
    exact.net = one.net
    _, plain = exact.run(["landscape"], steps=1, every=1)
    assert values(plain, "loss") != found


@pytest.mark.parametrize("codes", [STREAMING, COSTLY])
def test_a_loss_scale_is_not_seen(codes):
    plain, scaled = values(Loop().run(codes)[1]), values(Scaled().run(codes)[1])
    assert plain.keys() == scaled.keys()
    for key, value in plain.items():
        assert scaled[key] == pytest.approx(value, rel=1e-4, nan_ok=True), key


def test_a_skipped_update_still_shows_gradients_without_scale():
    class Skipping(Scaled):
        def block(self, scope, model, optimizer, batch):
            optimizer.zero_grad()
            self.scaler.scale(self.loss_fn(model, batch)).backward()
            self.seen = (model[0].weight.grad / 2.0**12).norm().item()
            model[-1].bias.grad[0] = float("inf")
            self.scaler.step(optimizer)
            self.scaler.update()

    class Gathering(Scaled):
        def block(self, scope, model, optimizer, batch):
            optimizer.zero_grad()
            self.scaler.scale(self.loss_fn(model, batch)).backward()
            self.seen = (model[0].weight.grad / 2.0**12).norm().item()

    for kind in (Skipping, Gathering):
        loop = kind()
        _, records = loop.run(["gradient_flow"], steps=1, every=1)
        found = values(records, "norm")["gradient_flow", 0, "0", "norm"]
        assert found == pytest.approx(loop.seen, rel=1e-2), kind  # the bias beside it adds a little


def test_a_scaler_without_optimizer_is_refused():
    with pytest.raises(UsageError, match="needs the optimizer"):
        Recorder(nets.make("mlp"), nets.loss_fn, scaler=torch.amp.GradScaler("cpu"))


def test_each_micro_batch_is_evaluated_with_the_random_streams_at_its_own_beginning():
    """Dropout masks of the three parts differ: only with each part's own does the loss come out as the loop's."""
    loop, losses = Accumulating(), []
    inner = loop.loss_fn

    def block(scope, model, optimizer, batch):
        loop.loss_fn = lambda *args: losses.append(inner(*args)) or losses[-1]
        Accumulating.block(loop, scope, model, optimizer, batch)
        loop.loss_fn = inner

    loop.block = block
    _, records = loop.run(["landscape"], steps=2, every=1)
    for step in range(2):
        mean = sum(loss.item() for loss in losses[3 * step : 3 * step + 3]) / 3
        assert values(records, "loss")["landscape", step, "", "loss"] == pytest.approx(mean, rel=1e-6)
