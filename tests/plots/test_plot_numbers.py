"""What a chart holds are the numbers of its frame: each kind against plain loops over planted records."""

import itertools
import json
import math
import statistics

import numpy as np
import polars as pl
import pytest
from scipy import stats as scipy_stats

from kit.charts import rows_of
from normscope import plots
from normscope.records import Estimate, Outcome, Verdict

ARMS, SEEDS, STEPS = ("none", "bn"), range(7), (0, 10, 40)
SITES = {"none": ("net.1", "net.2", "net.10"), "bn": ("net.0", "net.3", "net.20")}
LABELS = {"none": "no norm", "bn": "batch norm"}
NAMES = ("l", "p15", "p50", "p85", "loss_min@a", "loss_max@a", "loss_min@b", "loss_max@b")
#: Value of every record: positive, and no two alike.
PLANTED = {
    (arm, seed, step, site, name): 1.0 + float(value)
    for value, (arm, seed, step, layer, name) in zip(
        np.random.default_rng(0).lognormal(size=2000),
        itertools.product(ARMS, SEEDS, STEPS, range(3), NAMES),
        strict=False,
    )
    for site in (SITES[arm][layer],)
}
FRAME = pl.DataFrame(
    [(*key, value) for key, value in PLANTED.items()],
    schema=["arm", "seed", "step", "site", "name", "value"],
    orient="row",
)


def per_seed(arm, step, name, sites, log=False):
    """Return a number a seed: the mean over its sites, the geometric one if ``log``."""
    turn, back = (math.log, math.exp) if log else (float, float)
    return [back(statistics.fmean(turn(PLANTED[arm, seed, step, site, name]) for site in sites)) for seed in SEEDS]


def summary(values, band, center="mean", log=False):
    """Return (low, mid, high) by the definitions in the captions."""
    logs = np.log(values) if log else np.array(values)
    mid = np.median(logs) if center == "median" else logs.mean()
    if band == "ci":
        low, high = scipy_stats.t.interval(0.95, len(logs) - 1, loc=logs.mean(), scale=scipy_stats.sem(logs))
    elif band == "range":
        low, high = logs.min(), logs.max()
    else:
        low, high = np.quantile(logs, (0.1, 0.9))
    return tuple(np.exp((low, mid, high)) if log else (low, mid, high))


def near(row, expected):
    return tuple(row[end] for end in ("low", "mid", "high")) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("band", ["p10-90", "range", "ci"])
@pytest.mark.parametrize("log", [False, True])
def test_curves(band, log):
    figure = plots.curves(FRAME, y="l", title="t", band=band, log=log, labels=LABELS, y_title="Loss")
    drawn = {(row["arm"], row["x"]): row for row in rows_of(figure.spec)}
    assert set(drawn) == {(LABELS[arm], step) for arm in ARMS for step in STEPS}
    for arm, step in itertools.product(ARMS, STEPS):
        expected = summary(per_seed(arm, step, "l", SITES[arm], log), band, log=log)
        assert near(drawn[LABELS[arm], step], expected)
    words = {"p10-90": "middle 80 %", "range": "lowest seed", "ci": "95 % confidence"}
    assert words[band] in figure.caption
    assert ("geometric mean" in figure.caption) is log


def test_curves_over_a_column_of_the_grid_by_site_and_with_medians():
    rates = FRAME.with_columns((pl.col("step") + 1).alias("lr"))
    figure = plots.curves(
        rates, y="l", title="t", x="lr", x_title="Rate", facet="site", center="median", band="range", log_x=True
    )
    drawn = {(row["arm"], row["panel"], row["x"]): row for row in rows_of(figure.spec)}
    for arm, step in itertools.product(ARMS, STEPS):
        for site in SITES[arm]:
            expected = summary(per_seed(arm, step, "l", [site]), "range", "median")
            assert near(drawn[arm, site, step + 1], expected)
    assert len(drawn) == len(ARMS) * len(STEPS) * 3


def test_several_quantities_have_a_panel_each_with_its_own_numbers():
    drawn = {(row["arm"], row["panel"], row["x"]): row for row in rows_of(
        plots.curves(FRAME, y=("p15", "p85"), title="t").spec)}  # fmt: skip
    for arm, step, name in itertools.product(ARMS, STEPS, ("p15", "p85")):
        expected = summary(per_seed(arm, step, name, SITES[arm]), "p10-90")
        assert near(drawn[arm, plots.readable(name), step], expected)


@pytest.mark.parametrize("log", [False, True])
def test_depth(log):
    figure = plots.by_depth(FRAME, y="l", title="t", steps=[3, 1000], log=log, band="ci")
    drawn = {(row["arm"], row["panel"], row["x"]): row for row in rows_of(figure.spec)}
    assert len(drawn) == 2 * 2 * 3
    for arm, (panel, step) in itertools.product(ARMS, {"Step 0": 0, "Step 40": 40}.items()):  # the nearest steps
        for layer, site in enumerate(SITES[arm], start=1):
            expected = summary(per_seed(arm, step, "l", [site]), "ci", log=log)
            assert near(drawn[arm, panel, layer], expected)


def test_depth_is_drawn_at_the_first_the_middle_and_the_last_step():
    panels = {row["panel"] for row in rows_of(plots.by_depth(FRAME, y="l", title="t").spec)}
    assert panels == {"Step 0", "Step 10", "Step 40"}


@pytest.mark.parametrize("log", [False, True])
def test_landscape_bands(log):
    figure = plots.landscape_band(FRAME, title="t", log=log)
    drawn = {(row["arm"], row["panel"], row["x"]): row for row in rows_of(figure.spec)}
    assert len(drawn) == 2 * 2 * 3
    for arm, step, matching in itertools.product(ARMS, STEPS, "ab"):
        row = drawn[arm, f"Matched by {matching}", step]
        for end, name in (("low", f"loss_min@{matching}"), ("high", f"loss_max@{matching}")):
            assert row[end] == pytest.approx(statistics.median(per_seed(arm, step, name, SITES[arm])), rel=1e-4)


def test_landscape_from_zero():
    drawn = rows_of(plots.landscape_band(FRAME, title="t", low=None, matchings=["b"]).spec)
    assert {row["low"] for row in drawn} == {0}
    assert len(drawn) == 6
    logged = rows_of(plots.landscape_band(FRAME, title="t", low=None, matchings=["b"], log=True).spec)
    assert all(row["low"] == row["high"] for row in logged)


@pytest.mark.parametrize(("layer", "place"), [(-1, 2), (0, 0), (1, 1), (-2, 1)])
def test_percentiles_of_a_layer(layer, place):
    drawn = {(row["arm"], row["x"]): row for row in rows_of(plots.percentiles(FRAME, title="t", layer=layer).spec)}
    assert len(drawn) == 6
    for arm, step in itertools.product(ARMS, STEPS):
        ends = [statistics.median(per_seed(arm, step, p, [SITES[arm][place]])) for p in ("p15", "p50", "p85")]
        assert near(drawn[arm, step], ends)


@pytest.mark.parametrize("log", [False, True])
def test_heatmap(log):
    """Three steps a third of the way apart fall into cells of their own; their mean is over seeds."""
    even = FRAME.with_columns(pl.col("step").replace({10: 20}))
    drawn = rows_of(plots.heatmap(even, y="l", title="t", log=log).spec)
    assert len(drawn) == 2 * 3 * 3
    for row in drawn:
        arm, site = row["panel"], SITES[row["panel"]][row["layer"] - 1]
        (step,) = (step for step in (0, 20, 40) if row["x"] - 1e-3 <= step < row["x2"] + 1e-3)
        values = per_seed(arm, {20: 10}.get(step, step), "l", [site])
        expected = statistics.geometric_mean(values) if log else statistics.fmean(values)
        assert row["mid"] == pytest.approx(expected, rel=1e-4)
    assert {(row["panel"], row["layer"]) for row in drawn} == set(itertools.product(ARMS, (1, 2, 3)))


def test_steps_that_share_a_cell_are_averaged():
    steps = pl.DataFrame({"step": range(200), "value": [float(s) for s in range(200)], "name": "l", "site": "a"})
    drawn = sorted(rows_of(plots.heatmap(steps, y="l", title="t").spec), key=lambda row: row["x"])
    assert len(drawn) == 60
    for row in drawn:
        inside = [s for s in range(200) if row["x"] - 1e-3 <= s < row["x2"] - 1e-3]
        assert row["mid"] == pytest.approx(statistics.fmean(inside), abs=0.51)


@pytest.mark.parametrize("scale", ["log-ratio", "difference", "value"])
def test_forest(scale):
    turn = math.exp if scale == "log-ratio" else float
    listed = [(0.3, 0.1, 0.5, 0.2), (-0.4, -0.6, -0.1, 0.2), (0.05, -0.3, 0.4, 0.25)]
    verdicts = [
        Verdict(f"s{i}", "c", outcome, f"e{i}", Estimate(point, low, high, 0.95, 5 + i, "m", scale), margin, "r")
        for i, ((point, low, high, margin), outcome) in enumerate(zip(listed, list(Outcome)[:3], strict=True))
    ]
    drawn = [row for row in rows_of(plots.forest(verdicts).spec) if "mid" in row]
    assert [row["row"] for row in drawn] == [0, 1, 2]
    for row, verdict, (point, low, high, margin) in zip(drawn, verdicts, listed, strict=True):
        found = (row["from"], row["mid"], row["to"], row["margin_above"])
        assert found == pytest.approx(tuple(map(turn, (low, point, high, margin))), rel=1e-4)
        assert (row["label"], row["outcome"], row["seeds"]) == (verdict.claim, verdict.outcome, verdict.effect.n)
        assert not row["cut_left"]
        assert not row["cut_right"]
    text = json.dumps(plots.forest(verdicts).spec)
    assert ('"type": "log"' in text) is (scale == "log-ratio")


@pytest.mark.parametrize("log", [False, True])
def test_theory(log):
    measured = FRAME.filter(pl.col("name") == "l").filter(pl.col("site").is_in(["net.1", "net.0"])).drop("name")
    theory = pl.DataFrame({"step": [0, 10, 40, 0], "value": [1.0, 2.0, -3.0, 5.0], "arm": ["bn", "bn", "bn", "none"]})
    figure = plots.versus_theory(measured, theory, x="step", by="arm", title="t", y_title="Growth", log=log)
    found = rows_of(figure.spec)
    points = {(row["arm"], row["x"]): row for row in found if "low" in row}
    lines = {(row["arm"], row["x"]): row["mid"] for row in found if "low" not in row}
    assert lines == {("bn", 0): 1, ("bn", 10): 2, ("none", 0): 5} | ({} if log else {("bn", 40): -3})
    floor = min(row["mid"] for row in points.values())
    for arm, step in itertools.product(ARMS, STEPS):
        low, mid, high = summary(per_seed(arm, step, "l", [SITES[arm][0]]), "ci")
        if log and low <= 0:
            low = min(floor, mid)
        assert near(points[arm, step], (low, mid, high))


KINDS = {
    "curves": lambda frame, log: plots.curves(frame, y="l", title="t", log=log, x_title="Across", y_title="Upward"),
    "depth": lambda frame, log: plots.by_depth(frame, y="l", title="t", log=log, y_title="Upward"),
    "landscape": lambda frame, log: plots.landscape_band(frame, title="t", log=log, y_title="Upward"),
    "percentiles": lambda frame, log: plots.percentiles(frame, title="t", y_title="Upward"),
    "heatmap": lambda frame, log: plots.heatmap(frame, y="l", title="t", log=log, value_title="Upward"),
}
ACROSS = {"curves": "Across", "depth": "Layer, from input to output", "landscape": "Optimizer step"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log", [False, True])
def test_axes_have_titles_and_a_logarithm_holds_positive_numbers_alone(kind, log):
    mixed = FRAME.with_columns(
        pl.when(pl.col("arm") == "none").then(-pl.col("value")).otherwise("value").alias("value")
    )
    figure = KINDS[kind](mixed, log)
    text = json.dumps(figure.spec)
    logged = log and kind != "percentiles"
    assert ('"type": "log"' in text) is logged
    assert ("Left out: " in figure.caption) is logged
    assert f'"title": "{ACROSS.get(kind, "Optimizer step")}"' in text
    meta = figure.spec["usermeta"]["normscope"]
    assert "Upward" in meta["subtitle"]
    assert ("logarithmic" in meta["subtitle"]) is logged
    shown = [row[key] for row in rows_of(figure.spec) for key in ("low", "mid", "high") if key in row]
    assert (min(shown) > 0) is logged
    assert max(shown) > 1


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_caption_counts_the_seeds(n):
    figure = plots.curves(FRAME.filter(pl.col("seed") < n), y="l", title="t")
    assert ("One seed" if n == 1 else f"over {n} seeds") in figure.caption
    assert ('"area"' in json.dumps(figure.spec)) is (n > 1)
