"""A scope attached in one line: when steps begin and end, what the batch is, and that the training stays as it is."""

import gc
import random
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from normscope._errors import UsageError
from normscope.probes import ProbeWarning, WiringWarning


def make(dropout=0.1, out=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.Linear(16, out)
    )


def data(count, size=16):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 8, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def state_of(model, *optimizers):
    """Return everything that training has made, in a form that compares bit for bit."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, held in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{k}": v.clone() for k, v in held.items() if isinstance(v, torch.Tensor)}
    return tensors | {"rng": torch.get_rng_state()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def plain_loop(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def accumulating_loop(model, optimizer, batches):
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        optimizer.zero_grad()
        for x, y in (first, second):
            (nn.functional.cross_entropy(model(x), y) / 2).backward()
        optimizer.step()


def closure_loop(model, optimizer, batches):
    """As a trainer runs a step: the forward and the backward pass lie inside the optimizer's step."""
    for x, y in batches:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def parts_loop(model, optimizer, batches):
    """As Lightning does: the parts of the model are called, never the model itself."""
    for x, y in batches:
        optimizer.zero_grad()
        for part in model:
            x = part(x)
        nn.functional.cross_entropy(x, y).backward()
        optimizer.step()


def evaluating_loop(model, optimizer, batches):
    for x, y in batches:
        plain_loop(model, optimizer, [(x, y)])
        model.eval()
        with torch.no_grad():
            model(x)
        model(x).sum()  # an evaluation that forgets no_grad
        model.train()


LOOPS = [plain_loop, accumulating_loop, closure_loop, parts_loop, evaluating_loop]


@pytest.mark.parametrize("given", ["optimizer", "nothing"])
@pytest.mark.parametrize("loop", LOOPS)
def test_training_is_the_same_bit_for_bit_and_steps_are_counted_by_updates(loop, given):
    def train(watched):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scope = ns.watch(model, optimizer if given == "optimizer" else None, every=2) if watched else None
        torch.manual_seed(3)
        loop(model, optimizer, data(8))
        return state_of(model, optimizer), scope

    (plain, _), (watched, scope) = train(False), train(True)
    assert same(plain, watched)
    updates = 4 if loop is accumulating_loop else 8
    assert scope.index == updates
    frame = scope.records()
    assert sorted(set(frame["step"])) == list(range(0, updates, 2))
    assert set(frame["probe"]) == {probe.CODE for probe in scope.probes}
    assert scope.not_read == {}
    scope.detach()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_values_are_those_of_a_with_block_around_the_step(loop):
    def train(attach):
        model = make(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scope = ns.Scope(model, None, optimizer, every=1)
        batches = data(4)
        if attach:
            scope.attach()
            loop(model, optimizer, batches)
        else:
            size = 2 if loop is accumulating_loop else 1
            for at in range(0, 4, size):
                with scope.step(None):  # it hears all passes that record gradients, evaluations too
                    (plain_loop if loop is evaluating_loop else loop)(model, optimizer, batches[at : at + size])
        return [(r.step, r.probe, r.site, r.name, r.value) for r in scope.drain()]

    assert train(True) == train(False)


def test_costly_probes_take_the_batch_that_the_model_was_called_with():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make()

        def forward(self, x, labels=None):
            return nn.functional.cross_entropy(self.net(x), labels)

    calls = {
        "keywords": (lambda m, x, y: m(x=x, labels=y), lambda m, b: m(**b)),
        "arguments": (lambda m, x, y: m(x, y), lambda m, b: m(*b)),
        "mixed": (lambda m, x, y: m(x, labels=y), lambda m, b: m(*b[:-1], **b[-1])),
    }
    found = {}
    for name, (call, loss_fn) in calls.items():
        model = WithLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = ns.watch(model, optimizer, loss_fn, probes=["landscape", "statistics_gap"], every=1)
        torch.manual_seed(3)
        for x, y in data(3):
            optimizer.zero_grad()
            call(model, x, y).backward()
            optimizer.step()
        found[name] = [(r.step, r.probe, r.name, r.value) for r in scope.drain()]
        assert found[name]
        scope.detach()
    assert found["keywords"] == found["arguments"] == found["mixed"]


def test_accumulated_batches_are_taken_one_by_one():
    model = make(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, x):
        return model(x).square().mean()

    scope = ns.watch(model, optimizer, loss_fn, probes=["statistics_gap"], every=1)
    losses = []
    optimizer.zero_grad()
    for x, _ in data(3):
        loss = loss_fn(model, x)
        losses.append(loss.item())
        (loss / 3).backward()
    optimizer.step()
    values = {r.name: r.value for r in scope.drain() if r.site == ""}
    assert values["train_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_what_cannot_be_known_is_said_with_the_reason():
    batches = data(2)

    def run(step, reason, loss_fn=lambda m, x: m(x).square().mean()):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = ns.watch(model, optimizer, loss_fn, probes=["landscape", "gradient_flow"], every=1)
        if loss_fn is None:
            step(model, optimizer)
        else:
            with pytest.warns(ProbeWarning, match=reason):
                step(model, optimizer)
        assert reason in scope.not_read["landscape"]
        assert set(scope.records()["probe"]) == {"gradient_flow"}

    def two_calls(model, optimizer):
        (model(batches[0][0]).sum() + model(batches[1][0]).sum()).backward()
        optimizer.step()

    def parts(model, optimizer):
        model[5](model[4](model[0](batches[0][0]))).sum().backward()
        optimizer.step()

    run(two_calls, "called 2 times for one loss")
    run(parts, "was not called, only its parts")
    run(parts, "no loss_fn", loss_fn=None)


def test_two_optimizers_make_one_step_and_a_rarer_one_delays_none():
    model = make()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam([*model[1].parameters(), *model[4].parameters(), *model[5].parameters()])
    scope = ns.watch(model, [first, second], every=1)
    for x, y in data(3):
        model.zero_grad()
        entropy(model, (x, y)).backward()
        first.step()
        second.step()
    assert scope.index == 3
    for x, y in data(4):  # from now on the second optimizer rests
        model.zero_grad()
        entropy(model, (x, y)).backward()
        first.step()
    assert scope.index == 6  # the last one is under way
    assert set(scope.records()["step"]) == set(range(6))


def test_a_pass_that_a_scaler_throws_away_is_not_read():
    def train(scaler_skips):
        model = make(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scope = ns.watch(model, optimizer, probes=["gradient_flow", "activation_distribution"], every=2, scaler=scaler)
        for number, (x, y) in enumerate(data(6)):
            if scaler_skips and number == 2:
                kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
                model.zero_grad()
                (scaler.scale(nn.functional.cross_entropy(model(x), y)) * float("inf")).backward()
                scaler.step(optimizer)
                scaler.update(1024.0)
                for name, buffer in model.named_buffers():
                    buffer.copy_(kept[name])
            model.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update(1024.0)
        scope.detach()
        return [(r.step, r.probe, r.site, r.name, r.value) for r in scope.drain()]

    assert train(scaler_skips=True) == train(scaler_skips=False)


def test_an_optimizer_of_another_model_is_left_alone():
    model, other = make(), make()
    optimizer, others = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    scope = ns.watch(model, every=1)
    plain_loop(other, others, data(3))
    assert scope.index == 0
    assert scope.optimizers == []
    plain_loop(model, optimizer, data(3))
    assert scope.index == 3
    assert scope.optimizers == [optimizer]


def test_detached_it_leaves_no_hook():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ns.watch(model, optimizer, every=1) as scope:
        plain_loop(model, optimizer, data(2))
        with pytest.raises(UsageError, match="attached already"):
            scope.attach()
    hooks = [vars(m)[kind] for m in model.modules() for kind in vars(m) if kind.endswith("_hooks")]
    assert not any(hooks)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    plain_loop(model, optimizer, data(2))
    assert scope.index == 2


def test_a_watched_training_that_nobody_needs_any_more_goes_with_its_scope():
    def train(given):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = ns.watch(model, optimizer if given else None, every=2)
        plain_loop(model, optimizer, data(3))
        return weakref.ref(model), weakref.ref(scope)

    for given in (True, False):
        model, scope = train(given)
        gc.collect()
        assert model() is None
        assert scope() is None


def test_a_scope_that_is_not_kept_watches_on():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = []

    class Board:
        def append(self, records):
            steps.append(records[0].step)

        def finding(self, finding): ...

        def close(self, report): ...

    ns.watch(model, every=2, sinks=[Board()])
    for batch in data(5):
        gc.collect()
        plain_loop(model, optimizer, [batch])
    assert steps == [0, 2, 4]


def test_steps_that_are_not_due_set_no_hook_on_the_model():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, every=3)
    counts = []
    for batch in data(5):
        counts.append(sum(len(m._forward_pre_hooks) for m in model.modules()))
        plain_loop(model, optimizer, [batch])
    assert [bool(count) for count in counts] == [True, False, False, True, False]
    scope.detach()


def test_a_step_that_breaks_off_in_a_callback_does_not_count():
    model = make()
    scope = ns.Scope(model, entropy, None, "gradient_flow", every=1)
    scope.end()  # nothing was begun
    (batch,) = data(1)
    scope.begin(batch)
    entropy(model, batch).backward()
    scope.begin(batch)  # the exception between was never told
    model.zero_grad()
    entropy(model, batch).backward()
    scope.end()
    scope.begin(batch)
    scope.end(RuntimeError())
    assert scope.index == 1
    assert set(scope.records()["step"]) == {0}


def test_an_error_in_the_engine_ends_the_watching_and_not_the_training(monkeypatch):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, every=1)
    monkeypatch.setattr(scope, "begin", lambda: 1 / 0)
    with pytest.warns(ProbeWarning, match=r"watches no further; training goes on: ZeroDivisionError"):
        plain_loop(model, optimizer, data(1))
    plain_loop(model, optimizer, data(3))  # and no second warning
    scope.detach()


def test_rules_run_on_a_watched_loop_without_a_loss_as_far_as_they_can():
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, rules="all", every=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain_loop(model, optimizer, data(4))
    assert all(issubclass(warning.category, ns.checking.FindingWarning) for warning in caught)
    assert "NS122" in [finding.code for finding in scope.findings()]  # read off the modules
    assert any("no loss_fn" in reason for reason in scope.not_read.values())


# -- wiring ------------------------------------------------------------------------------------------------------------


def wired(scope, step):
    """Run one step, and return the text of the one warning about the wiring."""
    with pytest.warns(WiringWarning) as caught:
        [step() for _ in range(2)]  # told once
    found = [str(warning.message) for warning in caught if issubclass(warning.category, WiringWarning)]
    assert len(found) == 1, found
    assert caught[0].filename == __file__
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
    assert scope.not_read == {}


def test_a_step_that_is_never_entered_is_told():
    model = make()
    scope = ns.Scope(model, entropy, every=1)
    batches = data(2)
    scope.step(batches[0])
    with pytest.warns(WiringWarning, match="write `with scope.step"):
        scope.step(batches[1])


@pytest.mark.parametrize(
    ("make_scope", "says"),
    [
        (lambda m, o: ns.Scope(m, o), r"loss_fn is an optimizer \(SGD\)"),
        (lambda m, o: ns.watch(m, o, 3), "loss_fn must be a function"),
        (lambda m, o: ns.watch(m, m), "optimizer must be"),
        (lambda m, o: ns.watch(m, o, probes="gradient_flows"), "did you mean gradient_flow"),
        (lambda m, o: ns.watch(m, o, probes=[3]), "a probe, its code or its class"),
        (lambda m, o: ns.watch(m, o, every=0), "every=0"),
        (lambda m, o: ns.watch(m, o, every=2.5), r"every=2\.5"),
        (lambda m, o: ns.watch(m, o, every=True), "every=True"),
        (lambda m, o: ns.watch(m, entropy), "not function: a loss function is given as loss_fn="),
        (lambda m, o: ns.watch(m, torch.optim.lr_scheduler.StepLR(o, 2)), "not StepLR"),
        (lambda m, o: ns.watch(m, o, nn.CrossEntropyLoss()), "takes outputs and targets"),
        (lambda m, o: ns.watch(m, o, scaler=5), "GradScaler, not int"),
        (lambda m, o: ns.watch(m, o, sinks=5), r"a int, which has no append\(\)"),
        (lambda m, o: ns.watch(m, o, sinks=[dict]), "give an object of it"),
        (lambda m, o: ns.watch(m, o, record_to=7), "a folder, or an object"),
        (lambda m, o: ns.watch(m, o, record_to=""), "is no path"),
        (lambda m, o: ns.watch(m, o, record_to="a\0b"), "is no path"),
        (lambda m, o: ns.watch(m, o, record_to="s3://bucket/x"), "a folder of this machine"),
        (lambda m, o: ns.watch(m, o, rules=5), "rules must be"),
        (lambda m, o: ns.watch(m, o, rules=True), "rules must be"),
        (lambda m, o: ns.watch(m, o, probes=ns.probes.GradientFlow(every=1.5)), r"every=1\.5"),
        (lambda m, o: ns.watch(m, o, start=-1), "start=-1"),
        (lambda m, o: ns.watch(m, o, start="later"), "start='later'"),
        (lambda m, o: ns.watch(m, o, start="continue"), "needs record_to"),
        (lambda m, o: ns.watch(m, o, cell="a/b"), "cell="),
        (lambda m, o: ns.watch(torch.jit.trace(m, torch.zeros(2, 8)), o), "(scripted or traced|traced or scripted)"),
        (lambda m, o: ns.watch(lambda x: x, o), "torch.nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_misuse_is_refused_in_one_line(make_scope, says):
    model = make()
    with pytest.raises(UsageError, match=says) as caught:
        make_scope(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert "\n" not in str(caught.value)


def test_a_page_is_html_and_no_other_format(tmp_path):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, every=1)
    plain_loop(model, optimizer, data(1))
    with pytest.raises(UsageError, match=r"written as \.html, not as \.pdf"):
        scope.report(tmp_path / "x.pdf")
    assert not (tmp_path / "x.pdf").exists()


@pytest.mark.parametrize("given", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind_are_schedules(given):
    model = make()
    scope = ns.Scope(model, entropy, every=given)
    assert [bool(scope.due(index)) for index in range(4)] == [True, False, False, True]


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


def test_a_step_whose_batch_is_unknown_is_left_out_and_the_next_is_read():
    model = make(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, lambda m, x: m(x).square().mean(), probes=["statistics_gap", "loss"], every=1)

    def step(x, broken):
        optimizer.zero_grad()
        model(x).square().mean()  # a loss that is thrown away
        if broken:
            model(x)
        model(x).square().mean().backward()
        optimizer.step()

    batches = [x for x, _ in data(3)]
    with pytest.warns(ProbeWarning, match="'statistics_gap' left out step 0.*called 3 times"):
        step(batches[0], broken=True)
    optimizer.zero_grad()
    for x in batches[1:]:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    frame = scope.records()
    assert set(frame.filter(frame["name"] == "train_loss")["step"]) == {1, 2}
    assert set(frame.filter(frame["name"] == "loss")["step"]) == {0, 1, 2}
    assert scope.not_read == {}


@pytest.mark.parametrize(("probe_draws", "sink_draws"), [(True, False), (False, True)])
def test_what_a_probe_or_a_sink_draws_is_undone(probe_draws, sink_draws):
    class Drawing(ns.probes.Loss):
        __doc__ = ns.probes.Loss.__doc__
        CODE = "drawing"

        def read(self, step):
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
            yield from super().read(step)

    class Sink:
        def append(self, records):
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002

        def finding(self, finding): ...

        def close(self, report):
            torch.rand(3)

    def train(watched):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if watched:
            probes, sinks = [Drawing() if probe_draws else ns.probes.Loss()], [Sink()] if sink_draws else []
            scope = ns.watch(model, optimizer, probes=probes, sinks=sinks, every=1)
        plain_loop(model, optimizer, data(3))
        if watched:
            scope.close()
            scope.detach()
        return state_of(model, optimizer), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    plain, watched = train(False), train(True)
    assert same(plain[0], watched[0])
    assert plain[1:] == watched[1:]


def test_a_probe_that_yields_no_record_is_named_and_spoils_no_other():
    class Junk(ns.probes.Loss):
        __doc__ = ns.probes.Loss.__doc__
        CODE = "junk"

        def read(self, step):
            yield from super().read(step)
            yield None

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, probes=[Junk(), "loss"], every=1)
    with pytest.warns(ProbeWarning, match="'junk' failed .* yields a NoneType"):
        plain_loop(model, optimizer, data(2))
    assert set(scope.records()["probe"]) == {"loss"}


def test_a_model_whose_precision_changes_between_steps_is_read_on():
    model = make(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, lambda m, x: m(x).square().mean(), probes=["statistics_gap", "descent"], every=1)
    for number, (x, _) in enumerate(data(3)):
        if number == 1:
            model.double()
        optimizer.zero_grad()
        model(x if number == 0 else x.double()).square().mean().backward()
        optimizer.step()
    assert scope.not_read == {}


def test_warnings_that_the_user_has_raised_are_warnings(monkeypatch):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ns.watch(model, optimizer, rules=["NS122"], every=1)
    with pytest.raises(ns.checking.FindingWarning):
        plain_loop(model, optimizer, data(1))


# -- which probes ------------------------------------------------------------------------------------------------------


def test_probes_are_named_in_any_form():
    model = make()

    def codes(wanted, loss_fn=entropy):
        return [probe.CODE for probe in ns.Scope(model, loss_fn, probes=wanted).probes]

    every_probe = [probe.CODE for probe in ns.probes.all()]
    assert codes("all") == every_probe
    assert codes("gradient-flow") == codes("Gradient_Flow") == codes(ns.probes.GradientFlow) == ["gradient_flow"]
    assert codes([ns.probes.GradientFlow(trim=1), "update_ratio"]) == ["gradient_flow", "update_ratio"]
    assert codes(["gradient_flow", "gradient", ns.probes.GradientFlow])[0] == "gradient_flow"
    assert len(set(codes(["gradient_flow", "gradient", "all"]))) == len(every_probe)
    assert codes([]) == []
    found = [code for question in ns.probes.presets() for code in codes(question)]
    assert sorted(found) == every_probe  # every probe answers one question


def test_the_default_evaluates_no_loss():
    model = make()
    scope = ns.Scope(model)
    assert not any(probe.replays for probe in scope.probes)
    assert {"gradient_flow", "statistics_gap"} <= {probe.CODE for probe in scope.probes}
    assert {probe.QUESTION for probe in scope.probes} == {"gradient", "statistics"}


def test_a_probe_that_finds_nothing_says_why():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, every=1)
    plain_loop(model, optimizer, data(1))
    assert "no non-linearity" in scope.not_read["saturation"]
    assert "no batch norm" in scope.not_read["statistics_gap"]
    assert "gradient_flow" not in scope.not_read


# -- cells of runs -----------------------------------------------------------------------------------------------------


def train_into(folder, steps=3, **options):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, probes="gradient_flow", every=1, record_to=folder, **options)
    plain_loop(model, optimizer, data(steps))
    scope.detach()
    scope.close()
    return scope


def test_a_second_run_into_one_folder_has_a_cell_of_its_own(tmp_path):
    cells = [train_into(tmp_path / "run").cell for _ in range(3)]
    assert cells == ["scope", "scope.run2", "scope.run3"]
    frame = train_into(tmp_path / "run", cell="other").records()
    assert set(frame["cell"]) == {*cells, "other"}
    assert frame.select("cell", "step", "probe", "site", "name").is_duplicated().sum() == 0


def test_a_training_is_taken_up_again(tmp_path):
    train_into(tmp_path / "run")
    scope = train_into(tmp_path / "run", start="continue")
    assert scope.cell == "scope"
    assert sorted(set(scope.records()["step"])) == [0, 1, 2, 3, 4, 5]
    later = train_into(tmp_path / "run", start=100)
    frame = later.records()
    assert later.cell == "scope.run2"
    assert sorted(set(frame.filter(frame["cell"] == later.cell)["step"])) == [100, 101, 102]
    assert train_into(tmp_path / "new", start="continue").index == 3  # nothing is there yet: it begins


# -- costs -------------------------------------------------------------------------------------------------------------


def test_the_cost_of_dear_probes_is_told_once_before_the_first_due_step(caplog, monkeypatch):
    monkeypatch.setattr(ns.probes.LandscapeAlongGradient, "COST", (20.0, 30.0))
    model = make()
    scope = ns.Scope(model, entropy, torch.optim.SGD(model.parameters(), lr=0.1), ["landscape"], every=10)
    assert not caplog.records
    for batch in data(2):
        with scope.step(batch):
            assert len(caplog.records) == 1
            plain_loop(model, scope.optimizers[0], [batch])
    assert "landscape takes as long as 20 to 30 plain steps" in caplog.text
    assert "3 to 4 times as long" in caplog.text
    ns.watch(model, scope.optimizers[0]).detach()
    assert len(caplog.records) == 1
