import json
import math

import numpy as np
import polars as pl
import pytest
import vl_convert

from kit import report_pages
from kit.charts import rows_of
from normscope import plots
from normscope._errors import StoreError, UsageError
from normscope.plots._draw import round_values  # white box: ticks are not public
from normscope.plots._figure import fitted  # white box: what the page does to a figure's width
from normscope.plots._frames import chosen, layered, summarised  # white box: the numbers that are drawn
from normscope.plots._theme import PALETTE, arm_styles, order_arms, theme  # white box: colours of arms in company
from normscope.records import Estimate, Outcome, Verdict

INF = math.inf
COLUMNS = ["arm", "seed", "step", "site", "name", "value"]
BUILDERS = {
    "curves": lambda f: plots.curves(f, y="loss", title="t"),
    "curves, several": lambda f: plots.curves(f, y=("loss", "accuracy"), title="t", log=True, band="ci"),
    "curves, sites": lambda f: plots.curves(f, y="norm", facet="site", title="t", band="range", center="median"),
    "landscape": lambda f: plots.landscape_band(f, title="t"),
    "landscape, from zero": lambda f: plots.landscape_band(
        f, title="t", low=None, high="gradient_difference", log=True
    ),
    "percentiles": lambda f: plots.percentiles(f, title="t"),
    "depth": lambda f: plots.by_depth(f, y="norm", title="t"),
    "heatmap": lambda f: plots.heatmap(f, y="norm", title="t", log=True),
    "heatmap, two-sided": lambda f: plots.heatmap(f, y="cosine", title="t", middle=0),
    "layers": lambda f: plots.by_layer(f, y="norm", title="t", log=True),
    "layers, several": lambda f: plots.by_layer(f, y=("norm", "cosine"), title="t"),
    "layers, theory": lambda f: plots.by_layer(f, y="norm", title="t", theory=("theory", 1.0)),
}
CAPTIONED = {
    "curves": lambda f, **words: plots.curves(f, y="loss", **words),
    "landscape": lambda f, **words: plots.landscape_band(f, **words),
    "percentiles": lambda f, **words: plots.percentiles(f, **words),
    "depth": lambda f, **words: plots.by_depth(f, y="norm", **words),
    "heatmap": lambda f, **words: plots.heatmap(f, y="norm", **words),
    "layers": lambda f, **words: plots.by_layer(f, y="norm", **words),
}


def made(rows):
    return pl.DataFrame(
        rows, schema=dict(zip(COLUMNS, (pl.String, pl.Int64, pl.Int64, pl.String, pl.String, pl.Float64), strict=True)),
        orient="row",
    )  # fmt: skip


@pytest.fixture(scope="module")
def full():
    return report_pages.frame(every=1)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_figure_is_small_and_compiles_and_is_the_same_twice(name, full):
    figure = BUILDERS[name](full)
    text = json.dumps(figure.spec)
    assert len(text) < 150_000
    assert "config" not in figure.spec
    assert figure.caption
    assert figure.alt
    assert "NaN" not in text
    svg = vl_convert.vegalite_to_svg(fitted(figure.spec, 640), config=theme())
    assert svg.count("<path") > 4
    assert json.dumps(BUILDERS[name](full).spec) == text


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.head(0),
        lambda f: f.filter(pl.col("seed") == 0),
        lambda f: f.filter(pl.col("arm") == "bn"),
        lambda f: f.filter(pl.col("step") == 0),
        lambda f: f.with_columns(pl.lit(math.nan).alias("value")),
        lambda f: f.with_columns(pl.lit(1.0).alias("value")),
        lambda f: f.with_columns((-pl.col("value").abs()).alias("value")),
        lambda f: f.with_columns(pl.when(pl.col("step") > 40).then(math.inf).otherwise("value").alias("value")),
    ],
    ids=["empty", "one seed", "one arm", "one step", "all NaN", "constant", "negative", "infinite later"],
)
def test_odd_frames_give_a_figure_that_compiles(name, change):
    figure = BUILDERS[name](change(report_pages.frame(seeds=3, steps=80, every=10, layers=3)))
    vl_convert.vegalite_to_svg(fitted(figure.spec, 330), config=theme("dark"))


@pytest.mark.parametrize("name", CAPTIONED)
@pytest.mark.parametrize("empty", [False, True])
def test_the_words_given_are_kept_whether_or_not_there_is_anything_to_draw(name, empty, full):
    figure = CAPTIONED[name](full.head(0) if empty else full, title="Planted title", caption="Planted caption.")
    assert figure.title == "Planted title"
    assert figure.caption.startswith("Planted caption.")
    assert "Planted title" in figure.alt


@pytest.mark.parametrize("name", ["curves", "landscape", "percentiles", "depth"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_an_area_is_drawn_between_the_ends_where_there_are_ends(name, seeds, full):
    """A landscape and percentiles have ends within a seed, curves and depth between seeds."""
    text = json.dumps(BUILDERS[name](full.filter(pl.col("seed") < seeds)).spec)
    assert ('"area"' in text) is (seeds > 1 or name in ("landscape", "percentiles"))


@pytest.mark.parametrize("name", ["curves", "landscape", "percentiles"])
def test_points_under_the_pointer_are_hidden_until_the_pointer_is_near(name, full):
    text = json.dumps(BUILDERS[name](full).spec)
    assert '"opacity": {"condition": [{"param": "near", "value": 1, "empty": false}], "value": 0}' in text


def test_values_that_cannot_be_drawn_are_counted_in_the_caption():
    rows = [("bn", 0, s, "", "loss", v) for s, v in enumerate((1.0, math.nan, math.inf, -INF, -2.0, 3.0))]
    assert "Left out: 3 values not finite." in plots.curves(made(rows), y="loss", title="t").caption
    logged = plots.curves(made(rows), y="loss", title="t", log=True)
    assert "Left out: 1 value not positive" in logged.caption
    assert {row["x"] for row in rows_of(logged.spec)} == {0, 5}


def test_a_missing_quantity_is_said_not_raised():
    assert "no records of nothing" in plots.curves(report_pages.frame(1, 10), y="nothing", title="t").caption


@pytest.mark.parametrize(("log", "middle"), [(False, (1 + 100 + 4) / 3), (True, 400 ** (1 / 3))])
def test_the_middle_is_the_mean_over_seeds_or_the_geometric_one(log, middle):
    # seed 2 has two sites: it must count once, as its own (geometric) mean
    rows = [("bn", 0, 0, "a", "l", 1.0), ("bn", 1, 0, "a", "l", 100.0)]
    rows += [("bn", 2, 0, site, "l", v) for site, v in (("a", 2.0), ("b", 8.0 if log else 6.0))]
    drawn = summarised(chosen(made(rows), ["l"])[0], x="step", panel=None, log=log)
    assert drawn.frame["mid"].to_list() == pytest.approx([middle])
    assert drawn.frame["n"].to_list() == [3]


def test_bands_are_what_their_captions_say():
    rng = np.random.default_rng(3)
    sample = rng.normal(size=9)
    frame = made([("bn", s, 0, "", "l", float(v)) for s, v in enumerate(sample)])
    half = 2.306004135204166 * sample.std(ddof=1) / 3
    ends = {"p10-90": np.quantile(sample, (0.1, 0.9)), "range": (sample.min(), sample.max())}
    ends["ci"] = (sample.mean() - half, sample.mean() + half)
    for band, (low, high) in ends.items():
        row = summarised(chosen(frame, ["l"])[0], x="step", panel=None, band=band).frame.row(0, named=True)
        assert (row["low"], row["high"]) == pytest.approx((low, high))
    with pytest.raises(UsageError, match="band"):
        summarised(chosen(frame, ["l"])[0], x="step", panel=None, band="sd")


def test_depth_is_the_rank_of_a_site_within_its_arm():
    sites = {"none": ["net.0", "net.2", "net.10"], "bn": ["net.0", "net.3", "net.15"]}
    frame = made([(arm, 0, 0, site, "norm", 1.0) for arm, names in sites.items() for site in names])
    ranks = {(a, s): rank for a, s, rank in layered(frame).select("arm", "site", "layer").rows()}
    assert ranks == {(arm, site): i for arm, names in sites.items() for i, site in enumerate(names, start=1)}


@pytest.mark.parametrize("kind", [pl.String, pl.Categorical, pl.Enum(["net.10", "net.2", "bn", "none"])])
def test_depth_does_not_depend_on_how_a_frame_keeps_its_words(kind):
    frame = made([(arm, 0, 0, site, "norm", 1.0) for arm in ("none", "bn") for site in ("net.10", "net.2")])
    held = layered(frame.with_columns(pl.col("arm", "site").cast(kind)))
    ranks = held.select(pl.col("arm", "site").cast(pl.String), "layer").rows()
    assert set(ranks) == {(arm, site, rank) for arm in ("none", "bn") for site, rank in (("net.2", 1), ("net.10", 2))}


def test_colours_part_at_the_middle_where_there_is_a_middle(full):
    """Two hues that part at the middle say the sign; without a middle a single scale has no sign to say."""
    for middle in (None, 0, 0.5):
        text = json.dumps(plots.heatmap(full, y="cosine", title="t", middle=middle).spec)
        assert ('"scheme": "blueorange"' in text) is (middle is not None)
        assert (f'"domainMid": {middle}' in text) is (middle is not None)
        assert ('"scheme": "viridis"' in text) is (middle is None)


def test_panels_of_layers_stand_in_the_order_of_their_numbers():
    rows = [("bn", 0, step, f"net.{n}", "norm", 1.0 + step) for n in (10, 9, 100) for step in (0, 1)]
    figure = plots.curves(made(rows), y="norm", facet="site", title="t")
    assert figure.spec["facet"]["sort"] == ["net.9", "net.10", "net.100"]


@pytest.mark.parametrize("points", [3, 20])
def test_many_measured_points_have_round_ticks_and_few_have_their_own(points):
    across = [float(2 * 3**n) for n in range(points)]
    theory = pl.DataFrame({"m": across, "value": across})
    figure = plots.versus_theory(theory, theory, x="m", title="t", y_title="y", log=True, log_x=True)
    (ticks,) = {
        tuple(layer["encoding"]["x"]["axis"]["values"]) for layer in figure.spec["layer"] if "encoding" in layer
    }
    assert (list(ticks) == across) is (points == 3)
    assert points == 3 or all(f"{tick:e}"[0] in "125" for tick in ticks)


def test_thinning_keeps_the_first_and_the_last_step():
    rows = [("bn", 0, s, "", "loss", 1.0 + s) for s in range(5000)]
    figure = plots.curves(made(rows), y="loss", title="t")
    steps = sorted({row["x"] for row in rows_of(figure.spec)})
    assert (steps[0], steps[-1]) == (0, 4999)
    assert "of 5000 recorded steps" in figure.caption


def test_the_percentiles_of_the_last_layer_are_those_of_its_records():
    rows = [("bn", seed, 0, site, name, base + seed) for site, base in (("n.2", 0.0), ("n.10", 50.0))
            for name, base in (("p15", base - 1), ("p50", base), ("p85", base + 1)) for seed in range(3)]  # fmt: skip
    (row,) = rows_of(plots.percentiles(made(rows), title="t").spec)
    assert (row["low"], row["mid"], row["high"]) == (50, 51, 52)


def test_landscape_bands_hold_the_medians_of_both_ends():
    ends = {"loss_min@same-step": 1.0, "loss_max@same-step": 7.0}
    rows = [("bn", seed, 0, "", name, v + seed) for name, v in ends.items() for seed in (0, 1, 50)]
    (row,) = rows_of(plots.landscape_band(made(rows), title="t").spec)
    assert (row["low"], row["high"]) == (2, 8)


def test_an_arm_has_one_colour_wherever_it_stands():
    everyone = ("none", "bn", "noisy-bn", "layer-norm", "ghost")
    whole = arm_styles(everyone, everyone)
    for shown in (("bn",), ("ghost", "none"), ("layer-norm", "ghost", "bn")):
        assert arm_styles(shown, everyone) == {arm: whole[arm] for arm in order_arms(shown, everyone)}
    assert len({colour for colour, _ in whole.values()}) == 5
    assert arm_styles(["BatchNorm"])["BatchNorm"] == arm_styles(["bn"])["bn"]
    assert arm_styles(["own", "none"])["own"] == arm_styles(["bn"])["bn"]
    both = arm_styles(["own", "batch", "none"])
    assert len({colour for colour, _ in both.values()}) == 3
    assert list(arm_styles(["zeta", "bn", "none"])) == ["none", "bn", "zeta"]
    assert len(arm_styles([f"arm {i}" for i in range(20)])) == 20


def luminance(colour):
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("colour", PALETTE)
def test_every_colour_stands_out_from_both_grounds(mode, colour):
    dim, bright = sorted((luminance(colour), luminance(theme(mode)["background"])))
    assert (bright + 0.05) / (dim + 0.05) >= 3


def verdict(point, low, high, scale="difference", margin=0.1, outcome=Outcome.UNCLEAR):
    return Verdict("s", "c", outcome, "e", Estimate(point, low, high, 0.95, 5, "m", scale), margin, "r")


def drawn(figure):
    return [row for row in rows_of(figure.spec) if "label" in row]


def test_the_forest_draws_ratios_where_they_are_and_cuts_what_has_no_bound():
    (row,) = drawn(plots.forest([verdict(math.log(2), -INF, math.log(3), "log-ratio", math.log(1.5))]))
    assert (row["mid"], row["to"], row["margin_above"]) == pytest.approx((2, 3, 1.5), rel=1e-4)
    assert row["margin_below"] == pytest.approx(1 / 1.5, rel=1e-4)
    assert (row["cut_left"], row["cut_right"]) == (True, False)
    assert row["words"] == "Unclear: ×2.0 (no bound to 3.0)"


def test_effects_on_several_scales_share_an_axis_in_margins_in_the_order_given():
    """Whatever its scale, an interval that clears its margin lies beyond 1, and the opposite beyond -1."""
    ratio = verdict(math.log(4), math.log(2), math.log(8), "log-ratio", math.log(2))
    lower = verdict(-0.01, -0.015, -0.005, "difference", 0.005)
    whole = verdict(3.0, 2.0, 4.0, "value", 0.0)
    rows = drawn(plots.forest([lower, ratio, whole], labels=["b", "a", "c"]))
    assert [row["label"] for row in rows] == ["b", "a", "c"]
    assert [[row[key] for key in ("from", "mid", "to")] for row in rows] == [
        pytest.approx(expected) for expected in ([-3, -2, -1], [1, 2, 3], [0.5, 0.75, 1])
    ]
    assert [(row["margin_below"], row["margin_above"]) for row in rows] == [(-1, 1), (-1, 1), (0, 0)]


def test_what_is_not_measurable_has_a_row_and_no_mark():
    (row,) = drawn(plots.forest([verdict(0.3, 0.2, 0.4, outcome=Outcome.NOT_MEASURABLE)]))
    assert (row["words"], row["mid"], row["from"], row["to"]) == ("Not measurable", None, None, None)


def test_identities_are_not_drawn_and_said_to_be_left_out():
    exact = verdict(1e-16, 0, 2e-16, "error", 1e-9, Outcome.EXACT)
    figure = plots.forest([exact, verdict(0.2, 0.1, 0.3)])
    assert len(drawn(figure)) == 1
    assert "1 identity is not drawn." in figure.caption
    assert "2 identities are not drawn." in plots.forest([exact, exact]).caption


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.012, 8.0, [0.01, 0.1, 1, 10]), (0.3, 3.0, [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]), (1e-9, 1.0, None)],
)
def test_logarithmic_axes_are_labelled_at_powers_of_ten_or_one_two_five(low, high, ticks):
    found = round_values(low, high)
    if ticks is None:
        assert len(found) <= 8
        assert all(math.log10(value).is_integer() for value in found)
    else:
        within = [tick for tick in found if low / 10 < tick < high * 10]
        assert set(within) <= set(ticks)
        assert {tick for tick in ticks if low <= tick <= high} <= set(found)


def test_a_figure_over_learning_rates_has_round_ticks():
    rates = [{"arm": "a", "seed": 0, "lr": lr, "name": "loss", "value": lr} for lr in (0.013, 0.4, 9.0)]
    figure = plots.curves(pl.DataFrame(rates), y="loss", x="lr", log_x=True, log=True, title="t")
    for axis in ("x", "y"):
        found = [layer["encoding"][axis]["axis"]["values"] for layer in figure.spec["layer"] if layer.get("encoding")]
        assert {0.1, 1.0} <= set(found[0]) <= {0.001, 0.01, 0.1, 1.0, 10.0}


@pytest.mark.parametrize(
    "verdicts",
    [
        [],
        [verdict(math.nan, -INF, INF)],
        [verdict(0.0, 0.0, 0.0, margin=0.0)],
        [verdict(800.0, -900.0, 900.0, "log-ratio")],
        [verdict(-INF, -INF, INF, "log-ratio")],
        [verdict(1e-16, 0, 2e-16, "value", 1e-9), verdict(1, -INF, INF), verdict(0.1, 0, 0.2, "log-ratio")],
    ],
    ids=["none", "NaN", "zeros", "huge", "minus infinity", "mixed"],
)
def test_odd_verdicts_give_a_forest_that_compiles(verdicts):
    figure = plots.forest(verdicts, parts=True)
    vl_convert.vegalite_to_svg(fitted(figure.spec, 640), config=theme())


def test_the_parts_of_a_verdict_follow_it_named_by_what_differs():
    smooth = report_pages.verdicts()[0]
    labels = [row["label"].replace("\n", " ").strip() for row in drawn(plots.forest([smooth], parts=True))]
    assert labels == [smooth.claim, "3 hidden layers", "20 hidden layers", smooth.parts[2].claim]


def test_theory_takes_intervals_or_makes_them():
    theory = pl.DataFrame({"m": [1, 2], "value": [1.0, 2.0]})
    given = pl.DataFrame({"m": [1, 2], "point": [1.1, math.nan], "low": [-INF, 0.0], "high": [INF, 1.0]})
    figure = plots.versus_theory(given, theory, x="m", title="t", y_title="y")
    assert "1 point not finite" in figure.caption
    (point,) = [row for row in rows_of(figure.spec) if "low" in row]
    assert point["low"] == point["mid"] == point["high"] == 1.1
    seeds = pl.DataFrame({"m": [4] * 3, "seed": [0, 1, 2], "value": [1.0, 2.0, 3.0]})
    made_here = plots.versus_theory(seeds, theory, x="m", title="t", y_title="y", log=True, log_x=True)
    (point,) = [row for row in rows_of(made_here.spec) if "low" in row]
    assert (point["mid"], point["high"]) == pytest.approx((2, 2 + 4.302653 / math.sqrt(3)), rel=1e-4)


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<svg"), (".pdf", b"%PDF")])
def test_a_figure_is_saved(tmp_path, suffix, start):
    figure = plots.forest(report_pages.verdicts())
    written = figure.save(tmp_path / "new" / f"f{suffix}", mode="dark")
    assert written.read_bytes().startswith(start)


def test_saving_says_what_was_wrong(tmp_path):
    figure = plots.forest(report_pages.verdicts())
    with pytest.raises(UsageError, match=r"\.png, \.svg or \.pdf, not as \.gif"):
        figure.save(tmp_path / "f.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another path"):
        figure.save(tmp_path / "file" / "f.svg")
