"""Realistic verdicts, frames and sections for the tests of the page: 10 seeds, 4 arms, 8 layers, 300 steps."""

import math

import numpy as np
import polars as pl

from normscope import plots
from normscope.records import Condition, Estimate, Outcome, Premise, Verdict
from normscope.report import Section

LABELS = {
    "none": "no norm",
    "bn": "batch norm",
    "noisy-bn": "noisy batch norm",
    "bn-frozen": "batch norm, frozen statistics",
}
ARMS = list(LABELS)
INF = math.inf


def frame(seeds=10, steps=300, every=5, layers=8, arms=ARMS):
    rng = np.random.default_rng(0)
    rows = []
    for arm in arms:
        rate = {"none": 0.012, "bn": 0.03, "noisy-bn": 0.022}.get(arm, 0.018)
        stride = 2 if arm == "none" else 3
        for seed in range(seeds):
            speed = math.exp(rng.normal(0, 0.15))
            for step in range(0, steps, every):
                loss = 2.3 * math.exp(-rate * speed * step) + 0.02 * abs(rng.normal())
                read = {("", "loss"): loss, ("", "accuracy"): 1 - loss / 2.6}
                read |= {("", "test_loss"): loss * 1.1 + 0.1, ("", "test_accuracy"): 0.97 - loss / 2.6}
                if step % 20 == 0:
                    for matching, scale in (("same-step", 1), ("relative-step", 0.6), ("predicted-decrease", 0.3)):
                        width = scale * loss * {"none": 1.5, "bn": 0.3}.get(arm, 0.5) * math.exp(rng.normal(0, 0.3))
                        read[("", f"loss_min@{matching}")] = loss * 0.8
                        read[("", f"loss_max@{matching}")] = loss * 0.8 + width
                        read[("", f"gradient_difference@{matching}")] = width * 4
                    for layer in range(layers):
                        site = f"net.{layer * stride}"
                        growth = 1.0 if arm == "none" else 1.3
                        read[(site, "norm")] = loss * growth ** (layers - layer) * math.exp(rng.normal(0, 0.2))
                        shift = 0.1 * layer * (0.3 if arm == "none" else 0.6)
                        read[(site, "cosine")] = float(np.clip(1 - shift + rng.normal(0, 0.05), -1, 1))
                        sd = 1 + (step / 100 if arm == "none" else 0)
                        for name, z in (("p15", -1), ("p50", 0), ("p85", 1)):
                            read[(site, name)] = z * sd + (step / 200 if arm == "none" else 0) + rng.normal(0, 0.05)
                rows += [(arm, seed, step, site, name, float(value)) for (site, name), value in read.items()]
    return pl.DataFrame(rows, schema=["arm", "seed", "step", "site", "name", "value"], orient="row")


def log_ratio(point, low, high, n=10, method="paired t"):
    return Estimate(math.log(point), math.log(low), math.log(high), 0.95, n, method, "log-ratio")


NARROWER = "Along the gradient, batch norm gives a narrower range of loss values."
HALF_AGAIN = math.log(1.5)
MATCHED = Condition("matching", "the same step sizes")


def contrast(study, outcome, effect, amount, *, claim=NARROWER, margin=HALF_AGAIN, depth=8, **changed):
    """Return a contrast of a claim that is not its headline."""
    conditions = (Condition("depth", f"{depth} hidden layers"), MATCHED)
    given = {"primary": False, "amount": amount, "finding": f"the range is {amount}", "conditions": conditions}
    return Verdict(study, claim, outcome, f"range at depth {depth}", effect, margin, "Numbers.", **(given | changed))


def verdicts():
    """Return a claim that depends on the depth, an opposite, a claim that is not measurable, and a false identity."""
    slug = "landscape-smoothness"
    smooth = contrast(
        slug,
        Outcome.HOLDS,
        log_ratio(1.83, 1.52, 2.2),
        "1.83 times narrower (1.52 to 2.20)",
        primary=True,
        sources=("Santurkar et al. 2018, section 3.1, Fig. 4a",),
        p_value=0.0104,
        adjusted_p=0.0212,
        margin_reason="half as wide again is not seen in a figure",
        here="dense networks, 8x8 digits",
        name="same-step",
        parts=(
            contrast(slug, Outcome.OPPOSITE, log_ratio(0.5, 0.4, 0.6), "2.0 times wider (1.7 to 2.5)", depth=3),
            contrast(slug, Outcome.UNCLEAR, log_ratio(1.2, 0.8, 1.9), "1.20 times narrower (0.8 to 1.9)", depth=20,
                     why="about 40 seeds would decide, if they spread as these do"),
            contrast(slug, Outcome.HOLDS, log_ratio(3.1, 2.4, 4.0), "3.1 times smaller (2.4 to 4.0)", p_value=1e-5,
                     claim="Along the gradient, the gradient changes less with batch norm."),
        ),
    )  # fmt: skip
    shift = Verdict(
        "ics-gradient-shift",
        "Batch norm reduces internal covariate shift, measured as the change of a layer's gradient "
        "when the layers before it are updated.",
        Outcome.OPPOSITE,
        "mean cosine of G and G′, batch norm − no norm",
        Estimate(-0.12, -0.19, -0.05, 0.95, 10, "paired t", "difference"),
        0.05,
        "The gradients agree less with batch norm.",
        ("Santurkar et al. 2018, Definition 2.1",),
        p_value=0.002,
        adjusted_p=0.004,
        margin_reason="a twentieth of the range of a cosine",
        finding="gradients agree 0.12 less with batch norm",
        amount="0.12 less (0.05 to 0.19)",
        here="dense networks, 8x8 digits",
    )
    noisy = Verdict(
        "noisy-batchnorm",
        "Noise after batch norm, which makes the shift worse than without it, leaves the gain of batch norm intact.",
        Outcome.NOT_MEASURABLE,
        "share of the gain in steps that is retained",
        Estimate(0.62, 0.41, 0.83, 0.95, 10, "BCa bootstrap", "value"),
        0.7,
        "Retained: 0.62.",
        ("Santurkar et al. 2018, section 2.1, Fig. 2", "summary of the paper, experiment 1"),
        margin_reason="most of the gain",
        premises=(
            Premise("Batch norm gains over none (seen: 35 against 28 steps: unclear)", False),
            Premise("The noise shifts means (seen: 2.4 times as much: holds)", True),
        ),
        amount="0.62 (0.41 to 0.83)",
        why="a premise is not met: Batch norm gains over none (seen: 35 against 28 steps: unclear)",
        here="dense networks, 8x8 digits",
    )
    three = Verdict(
        "bn-backward-three-terms",
        "The gradient through batch norm is the upstream gradient rescaled by γ/σ, and nothing else.",
        Outcome.FALSE,
        "relative error of the short formula at batch 64",
        Estimate(0.182, 0.165, 0.201, 0.95, 10, "largest of all seeds", "error", "%"),
        1e-9,
        "The short formula is off by 18 %; with all three terms the error is 2e-16.",
        ("note on batch norm, section 1",),
        finding="the short formula is off by 18 %",
        amount="largest error 18 %",
    )
    return smooth, shift, noisy, three


PAGE = {
    "Claim": "Along the gradient the loss varies less.",
    "Method": (
        "Arms `none`, `bn`, `noisy-bn` are paired by seed.\n\nAt each probe, on the same batch:\n\n"
        "- step $s \\in [\\frac{1}{2}, 4]\\eta$;\n- the **range** of the loss;\n"
        "- the ``gradient_difference`` of :class:`~normscope.probes.Landscape`.\n\n"
        "    normscope study show landscape-smoothness"
    ),
    "Prediction": "Supported at the same step; $\\lambda_{max} \\approx 2/\\eta$ decides the rest.",
    "Threats": "1. The step is confounded with the gradient's scale.\n2. Small networks: *reversed* in shallow ones.",
}  # fmt: skip


def sections(data=None):
    data = frame() if data is None else data
    smooth, shift, noisy, three = verdicts()
    own = {"arms": ARMS, "labels": LABELS}
    ratios = pl.DataFrame({"m": [4, 8, 16, 64, 256], "value": [3.084, 1.788, 1.59, 1.493, 1.473]})
    seeds = [(m, s, v * (1 + 0.02 * (s % 5 - 2))) for m, v in ratios.rows() for s in range(10)]
    measured = pl.DataFrame(seeds, schema=["m", "seed", "value"], orient="row")
    table = plots.Table(
        "Steps to 80 % training accuracy",
        (
            "arm",
            "median",
            "10 %",
            "90 %",
            "never reached",
            "best learning rate",
            "final test accuracy",
            "steps a second",
        ),
        (
            ("no norm", 131.5, 97.0, 178.0, 0, 0.03, 0.9631, 412.7),
            ("batch norm", 52.0, 41.0, 66.5, 0, 0.1, 0.9755, 296.2),
        ),
        "Over 10 seeds.",
    )
    command = "normscope study run landscape-smoothness --preset quick --seeds 10 --data digits --out runs/demo"
    return [
        Section("landscape-smoothness", "Does batch norm smooth the loss along the gradient?", smooth.claim, PAGE,
                (smooth,),
                (plots.landscape_band(data, title="The loss met along the gradient", slug="band", **own),
                 plots.curves(data, y=("loss", "accuracy", "test_accuracy"), title="Training", **own),
                 plots.landscape_band(data, title="How far the gradient turns", low=None, high="gradient_difference",
                                      matchings=["same-step"], **own)),
                (table,), command, ("The grid of steps was cut at 0.4, where the network without norm diverges.",)),
        Section("ics-gradient-shift", "Does batch norm reduce internal covariate shift?", shift.claim, PAGE, (shift,),
                (plots.heatmap(data, y="cosine", title="Agreement of the gradients, by layer and step", middle=0.7,
                               **own),
                 plots.by_depth(data, y="norm", title="Gradient norm by depth", **own)), (), command),
        Section("noisy-batchnorm", "Does noise after batch norm undo its gain?", noisy.claim, PAGE, (noisy,),
                (plots.curves(data, y="loss", title="Training loss", log=True, reference={"chance": 2.302}, **own),
                 plots.percentiles(data, title="Where the last layer's outputs lie", **own)), (), command),
        Section("bn-backward-three-terms", "Is the gradient only rescaled?", three.claim, PAGE, (three,),
                (plots.versus_theory(measured, ratios, x="m", title="Growth of the squared gradient per layer",
                                     y_title="Growth per layer", x_title="Batch size", log_x=True),), (), command),
    ]  # fmt: skip


PROVENANCE = {
    "data": "digits", "preset": "quick", "seeds": 10, "device": "cpu",
    "versions": {"normscope": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.6"},
    "machine": {"cpu": "Some CPU at 2.4 GHz", "cores": 2, "threads": 1},
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "time_utc": "2026-01-02 03:04", "config_hash": "b1946ac92492d2347c6235b4d2611184",
}  # fmt: skip
TIMES = {
    "landscape-smoothness": 61.2,
    "ics-gradient-shift": 44.0,
    "noisy-batchnorm": 52.7,
    "bn-backward-three-terms": 18.4,
    "report": 3.1,
}
