"""Laws that every probe of the room must keep, those of today and those to come: each is found by being there."""

import math
import warnings
from functools import cache, partial

import pytest
import torch

from kit import varied_networks as nets
from kit.heard import Heard
from kit.traces import differences, fingerprint
from kit.training_loops import Loop, TwoOptimizers, Uneven, UnevenImages, UnevenParts, seed_all
from normscope import probes
from normscope.modules.sites import normalizes
from normscope.probes import ProbeWarning, Recorder

PROBES = {probe.CODE: probe for probe in probes.all()}
CODES = list(PROBES)
LOOPS = {loop.__name__: loop for loop in (Uneven, UnevenImages, UnevenParts, TwoOptimizers)}
STEPS, EVERY = 4, 3
UNITS = {"1", "rad", "samples"}

# What a network lacks: no activation that is a module, no layer whose output goes straight into a norm.
NOTHING_TO_READ = {("saturation", "TwoOptimizers"), ("scale_invariance", "TwoOptimizers")}
# What a value is measured from beside the step itself: an earlier reading, or the order of the samples.
AFTER_EARLIER_READINGS = {("distribution_shift", None), ("saturation", "dead_share")}
ONE_RECORD = {"loss"}  # a step
BY_ORDER_OF_SAMPLES = {("gradient_noise", None), ("statistics_noise", None)}


def chosen(code, loop=Uneven):
    """Return what to watch by: the code; of a probe that reads streams of tokens the probe, pointed at the norms."""
    if code != "residual_stream":
        return code
    return PROBES[code](norms_of(loop))


def norms_of(loop):
    return [site for site, module in loop().build()[0].named_modules() if normalizes(module)]


def test_there_are_probes():
    assert len(CODES) >= 18
    assert len(set(CODES)) == len(probes.all())


@pytest.mark.parametrize("code", CODES)
def test_it_keeps_the_schedule_that_it_is_given(code):
    assert PROBES[code](every=7).every == 7
    assert PROBES[code]().every is None
    without = PROBES[code](every=7).without_loss()
    assert without is None or without.every == 7


@pytest.mark.parametrize("code", CODES)
def test_why_it_reads_nothing_is_a_clause(code):
    """It stands after "not read: " and before the step in brackets."""
    why = PROBES[code].NOTHING
    assert len(why.split()) > 3
    assert why[0].islower()
    assert why[-1] not in ".;: "


@cache
def without_probes(loop):
    return LOOPS[loop]().run(steps=STEPS)[0]


@cache
def with_probe(loop, code):
    return LOOPS[loop]().run([chosen(code, LOOPS[loop])], steps=STEPS, every=EVERY)


# -- no trace ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("code", CODES)
def test_training_with_it_is_training_without(code, loop):
    assert differences(with_probe(loop, code)[0], without_probes(loop)) == []


class Inspected(Uneven):
    """Takes fingerprints of the very objects before the step, at the end of the user's block, and after the step."""

    def run(self, chosen, *, fails=()):
        model, optimizer = self.build()
        seed_all()
        self.scope = scope = Recorder(model, self.loss_fn, optimizer, chosen, every=1)
        taken = partial(fingerprint, identities=True, model=model, optimizer=optimizer)
        for number, batch in enumerate(self.batches(3)):
            before = taken()
            try:
                with scope.step(batch):
                    optimizer.zero_grad()
                    self.loss_fn(model, batch).backward()
                    if number in fails:
                        raise KeyError("mine")
                    optimizer.step()
                    inside = taken()
            except KeyError:
                inside = taken()
            after = taken()
            assert hooks(before) == hooks(after)
            assert rest(inside) == rest(after)
        return fingerprint(model=model, optimizer=optimizer)


def hooks(found):
    return {path: leaf for path, leaf in found.items() if "hooks" in path}


def rest(found):
    return {path: leaf for path, leaf in found.items() if "hooks" not in path}


@pytest.mark.parametrize("code", CODES)
def test_every_tensor_stays_the_object_it_was(code):
    assert differences(Inspected().run([chosen(code)]), Inspected().run([])) == []


@pytest.mark.parametrize("code", CODES)
def test_no_trace_after_an_exception_in_the_users_step(code):
    loop = Inspected()
    assert differences(loop.run([chosen(code)], fails={1}), Inspected().run([], fails={1})) == []
    assert {record.step for record in loop.scope.drain()} == {0, 1}  # the step that failed does not count


def raising(code, at):
    """Return a probe that is cut short as it makes its record number ``at``, wherever it stands then."""
    kind = PROBES[code]

    def count(self):
        self.made = getattr(self, "made", 0) + 1
        if self.made == at:
            raise ArithmeticError("cut short")

    def record(self, *args, **options):
        count(self)
        return kind.record(self, *args, **options)

    def records(self, step, values, *options):
        return kind.records(self, step, (value for value in values if not count(self)), *options)

    options = [norms_of(Uneven)] if code == "residual_stream" else []
    return type(kind.__name__, (kind,), {"__doc__": kind.__doc__, "record": record, "records": records})(*options)


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("code", CODES)
def test_no_trace_after_an_exception_in_the_probe(code, at):
    loop = Inspected()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        left = loop.run([raising(code, at), "update_ratio"])
    step = at - 1 if code in ONE_RECORD else 0
    assert [str(warning.message) for warning in caught] == [
        f"probe {code!r} failed at step {step} and is switched off; training goes on: ArithmeticError: cut short"
    ]
    assert caught[0].category is ProbeWarning
    assert differences(left, Inspected().run([])) == []
    assert {record.probe for record in loop.scope.drain()} == {"update_ratio"} | ({code} if step else set())


@pytest.mark.parametrize("at_call", [1, 2])
@pytest.mark.parametrize("code", [code for code, probe in PROBES.items() if probe.REPLAYS])
def test_no_trace_after_an_exception_in_the_replayed_loss(code, at_call):
    class Broken(Inspected):
        calls = Heard()

        def loss_fn(self, model, batch):
            loss = super().loss_fn(model, batch)
            if self.scope._inside is None:  # white box: the step is over, so the call is a replay's
                self.calls.append("")
                if self.calls.count() == at_call:
                    model[0].bias.data.zero_()
                    model[1].running_mean.add_(1)
                    raise ArithmeticError("no")
            return loss

    # The second evaluation is a probe's, which is then switched off, or the proof that the gradient is the loop's.
    with pytest.warns(ProbeWarning, match=f"({code}.*switched off|evaluated again).*ArithmeticError: no"):
        left = Broken().run([chosen(code)])
    assert differences(left, Inspected().run([])) == []


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("code", CODES)
def test_records_are_finite_and_of_sites_of_the_model(code, loop):
    records = with_probe(loop, code)[1]
    sites = {name for name, _ in nets.make(LOOPS[loop].net).named_modules()}
    assert bool(records) is ((code, loop) not in NOTHING_TO_READ)
    assert {record.probe for record in records} <= {code}
    assert {record.cell for record in records} <= {"scope"}
    assert {record.site for record in records} <= sites
    assert {record.unit for record in records} <= UNITS
    assert all(record.name and record.name.isprintable() for record in records)
    keys = [(record.step, record.site, record.name) for record in records]
    assert len(keys) == len(set(keys))
    strange = [record for record in records if not math.isfinite(record.value)]
    assert [(r.site, r.name) for r in strange if not may_be_infinite(r, loop)] == []


def may_be_infinite(record, loop):
    """A safe step is infinite where the loss bends down; with fewer inputs than dimensions a spectrum ends in zeros."""
    return record.value == math.inf and (
        (record.probe == "descent" and record.name == "safe_step")
        or (record.probe == "conditioning" and record.name in ("condition_95", "condition_100") and loop != "Uneven")
    )


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("code", CODES)
def test_records_are_of_the_due_steps_and_in_one_order(code, loop):
    records = with_probe(loop, code)[1]
    if (code, loop) in NOTHING_TO_READ:
        assert records == []
        return
    assert [record.step for record in records] == sorted(record.step for record in records)
    steps = {step: [(r.site, r.name) for r in records if r.step == step] for step in range(STEPS)}
    assert sorted(step for step, keys in steps.items() if keys) == [0, 3]
    later = [key for key in steps[3] if key in set(steps[0])]
    earlier = [key for key in steps[0] if key in set(steps[3])]
    assert later == earlier
    assert earlier


@pytest.mark.parametrize("code", CODES)
def test_every_third_step_is_read_as_at_every_step(code):
    often = reading(Uneven(), code, steps=STEPS, every=1)
    seldom = reading(Uneven(), code, steps=STEPS, every=EVERY)
    assert {step for step, *_ in often} == set(range(STEPS))
    kept = [key for key in seldom if not among(code, key, AFTER_EARLIER_READINGS)]
    assert {key: seldom[key] for key in kept} == {key: often[key] for key in kept}
    assert kept or (code, None) in AFTER_EARLIER_READINGS


@cache
def together(backwards):
    codes = CODES[::-1] if backwards else CODES
    return Uneven().run(list(map(chosen, codes)), steps=STEPS, every=EVERY)[1]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_it_reads_alone_as_among_all_others(code, backwards):
    assert [record for record in together(backwards) if record.probe == code] == with_probe("Uneven", code)[1]


# -- laws --------------------------------------------------------------------------------------------------------------


def reading(loop, code, **options):
    records = loop.run([chosen(code, type(loop))], **options)[1]
    return {(record.step, record.site, record.name): record.value for record in records}


def among(code, key, exceptions):
    return (code, None) in exceptions or (code, key[2]) in exceptions


class Exact(Uneven):
    """The uneven loop in float64, with its loss, its batches or their order changed."""

    def __init__(self, *, factor=1.0, change=lambda part: part):
        self.factor, self.change = factor, change

    def build(self):
        model = nets.make(self.net, dtype=torch.float64)
        # The same updates for a loss that is so many times as large.
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "lr": 0.2 / self.factor, "momentum": 0.8},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "lr": 0.05 / self.factor},
        ]
        groups[0]["weight_decay"] = 0.01 * self.factor
        return model, torch.optim.SGD(groups, 0.1)

    def loss_fn(self, model, batch):
        return self.factor * super().loss_fn(model, batch)

    def batches(self, steps):
        for x, y in nets.batches(self.net, steps, size=self.size, dtype=torch.float64):
            yield self.change(x), self.change(y)


@cache
def exact(code, steps):
    return reading(Exact(), code, steps=steps, every=1)


@pytest.mark.parametrize("code", CODES)
def test_the_order_of_the_samples_does_not_matter(code):
    rows = torch.randperm(Exact.size, generator=torch.Generator().manual_seed(3))
    plain, permuted = exact(code, 2), reading(Exact(change=lambda part: part[rows]), code, steps=2, every=1)
    assert permuted.keys() == plain.keys()
    free = [key for key in plain if not among(code, key, BY_ORDER_OF_SAMPLES)]
    for key in free:
        assert permuted[key] == pytest.approx(plain[key], rel=1e-6, abs=1e-9), key
    if len(free) < len(plain):
        assert permuted != plain  # else the exception is none


POWERS_OF_THE_LOSS = {
    "covariate_shift": {"l2": 1, "gradient_norm": 1},
    "curvature": {"top_eigenvalue": 1, "residual": 1, "trace": 1, "trace_error": 1, "gradient_curvature": 1},
    "descent": {
        "safe_step": -1,
        "loss": 1,
        "loss_after": 1,
        "actual_decrease": 1,
        "linear_decrease": 1,
        "predicted_decrease": 1,
    },
    "gradient_flow": {"norm": 1, "output_norm": 1},
    "gradient_noise": {"gradient_square": 2, "gradient_variance": 2},
    "landscape": {
        "loss": 1,
        "loss_min": 1,
        "loss_max": 1,
        "loss_range": 1,
        "gradient_norm": 1,
        "gradient_difference": 1,
        "effective_beta": 1,
        "curvature": 1,
        "s": -1,
    },
    "output_moments": {"top_eigenvalue": 1},
    "scale_invariance": {"effective_lr": -1},
    "statistics_gap": {"train_loss": 1, "eval_loss": 1, "eval_gap": 1},
}
KNOWN = {
    "activation_distribution", "affine_drift", "batch_norm_gradient_terms", "conditioning", "covariate_shift",
    "curvature", "descent", "distribution_shift", "gradient_flow", "gradient_noise", "interaction", "landscape",
    "output_moments", "residual_stream", "saturation", "scale_invariance", "statistics_gap", "statistics_noise",
    "update_ratio",
}  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_values_scale_with_a_power_of_the_loss(code):
    """Four times the loss at a quarter of the learning rate makes the same updates: each name has its dimension."""
    plain, larger = exact(code, 2), reading(Exact(factor=4.0), code, steps=2, every=1)
    assert larger.keys() == plain.keys()
    powers = {}
    for key, value in plain.items():
        name = key[2].partition("@")[0]
        if code in KNOWN:
            power = POWERS_OF_THE_LOSS.get(code, {}).get(name, 0)
        else:  # a new probe: its power is found at the first value, and must hold for all others of that name
            usable = value and larger[key] and math.isfinite(value)
            power = powers.setdefault(name, round(math.log(abs(larger[key] / value), 4))) if usable else 0
        assert larger[key] == pytest.approx(4.0**power * value, rel=1e-6, abs=1e-9), key


BY_NUMBER_OF_SAMPLES = {
    ("activation_distribution", "p15"),
    ("activation_distribution", "p50"),
    ("activation_distribution", "p85"),
    ("gradient_noise", None),
    ("statistics_gap", "variance_gap"),
    ("statistics_noise", None),
}


@pytest.mark.parametrize("code", CODES)
def test_a_batch_twice_over_reads_as_once(code):
    """The mean loss and the norms' statistics stay; only a gradient by the output of one sample is halved."""
    plain = exact(code, 1)
    doubled = reading(Exact(change=lambda part: torch.cat([part, part])), code, steps=1, every=1)
    assert doubled.keys() == plain.keys()
    free = [key for key in plain if not among(code, key, BY_NUMBER_OF_SAMPLES)]
    for key in free:
        share = 0.5 if (code, key[2]) == ("gradient_flow", "output_norm") else 1.0
        assert doubled[key] == pytest.approx(share * plain[key], rel=1e-6, abs=1e-9), key
    if len(free) < len(plain):
        assert doubled != plain


def test_the_two_halves_of_a_doubled_batch_have_no_noise():
    loop = Exact(change=lambda part: torch.cat([part, part]))
    for (_, _, name), value in reading(loop, "gradient_noise", steps=2, every=1).items():
        if name != "gradient_square":
            assert value == pytest.approx(0, abs=1e-9)


def test_probes_agree_where_they_measure_the_same():
    loop, losses = Exact(), []
    inner = loop.block

    def block(scope, model, optimizer, batch):
        loss_fn = loop.loss_fn
        loop.loss_fn = lambda *args: losses.append(loss_fn(*args)) or losses[-1]
        inner(scope, model, optimizer, batch)
        loop.loss_fn = loss_fn

    loop.block = block
    codes = ["curvature", "descent", "landscape", "output_moments", "statistics_gap", "covariate_shift"]
    records = loop.run(codes, steps=3, every=1)[1]
    by = {(r.probe, r.step, r.site, r.name): r.value for r in records}
    for step in range(3):
        loss = losses[step].item()
        assert by["landscape", step, "", "loss"] == pytest.approx(loss, rel=1e-9)
        assert by["descent", step, "", "loss"] == pytest.approx(loss, rel=1e-9)
        assert by["statistics_gap", step, "", "train_loss"] == pytest.approx(loss, rel=1e-9)
        bend = by["landscape", step, "", "curvature"]
        assert by["curvature", step, "", "gradient_curvature@train"] == pytest.approx(bend, rel=1e-9)
        assert by["descent", step, "", "step_to_safe"] == pytest.approx(0.2 * bend / 2, rel=1e-9)
        squares = [
            value**2
            for (probe, at, _, name), value in by.items()
            if (probe, at, name) == ("covariate_shift", step, "gradient_norm")
        ]
        assert 0 < sum(squares) < by["landscape", step, "", "gradient_norm"] ** 2
        top = by["curvature", step, "", "top_eigenvalue@train"]
        assert by["output_moments", step, "", "top_eigenvalue@train"] == pytest.approx(top, rel=0.05)


# -- all together ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", nets.NETS)
def test_all_probes_together_leave_no_trace_in_any_network(net):
    class OfNet(Loop):
        pass

    OfNet.net, OfNet.lr = net, 0.01
    assert differences(OfNet().run(CODES, steps=4, every=3)[0], OfNet().run(steps=4)[0]) == []
