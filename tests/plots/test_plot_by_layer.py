"""A chart by layer holds the first and the last mean of every layer, in the order given, and says what it holds."""

import json
import statistics

import polars as pl
import pytest

from kit.charts import rows_of
from normscope import plots

ORDER = ["stem", "deep.10", "deep.2"]  # as a network might run them, unlike their names
STEPS, SEEDS, ARMS = (0, 5, 30), range(3), ("none", "bn")
#: Value of every record, no two alike.
PLANTED = {
    (arm, seed, step, site): 1.0 + number**1.5
    for number, (arm, seed, step, site) in enumerate(
        (arm, seed, step, site) for arm in ARMS for seed in SEEDS for step in STEPS for site in ORDER
    )
}
FRAME = pl.DataFrame(
    [(*key, "gradient_norm", value) for key, value in PLANTED.items()],
    schema=["arm", "seed", "step", "site", "name", "value"],
    orient="row",
)


def mean(arm, step, site):
    return statistics.fmean(PLANTED[arm, seed, step, site] for seed in SEEDS)


def encodings(spec):
    if isinstance(spec, list):
        return [found for part in spec for found in encodings(part)]
    if not isinstance(spec, dict):
        return []
    own = [spec["encoding"]] if "encoding" in spec else []
    return own + [found for part in spec.values() for found in encodings(part)]


def made(frame=FRAME, **options):
    return plots.by_layer(frame, **{"y": "gradient_norm", "title": "t", "order": ORDER} | options)


def test_a_row_holds_the_first_and_the_last_mean_over_seeds():
    drawn = {(row["arm"], row["site"]): row for row in rows_of(made().spec)}
    assert set(drawn) == {(arm, site) for arm in ARMS for site in ORDER}
    for (arm, site), row in drawn.items():
        assert (row["first"], row["now"]) == pytest.approx((mean(arm, 0, site), mean(arm, 30, site)), rel=1e-4)
        assert (row["first_step"], row["last_step"]) == (0, 30)


@pytest.mark.parametrize("order", [ORDER, ["deep.10"], []])
def test_layers_stand_in_the_order_given_and_the_others_by_number_after_them(order):
    expected = [*order, *(site for site in ("deep.2", "deep.10", "stem") if site not in order)]
    found = made(order=order)
    sorts = [channels["y"]["sort"] for channels in encodings(found.spec) if "sort" in channels.get("y", {})]
    assert sorts
    assert all(sort == expected for sort in sorts)
    rows = [row["site"] for row in rows_of(found.spec) if row["arm"] == "bn"]
    assert rows == expected
    assert f"from {expected[0]} to {expected[-1]}" in found.alt


@pytest.mark.parametrize("moved", [True, False])
def test_the_first_value_is_told_where_there_is_a_later_one(moved):
    found = made(FRAME if moved else FRAME.filter(pl.col("step") == 5))
    told = [
        [tip["title"] for tip in channels["tooltip"]] for channels in encodings(found.spec) if "tooltip" in channels
    ]
    assert told
    assert all(("first" in titles) is moved for titles in told)
    assert all({"cell", "layer", "last", "step"} <= set(titles) for titles in told)
    assert ("Ring: step 0; dot: step 30." if moved else "At step 5.") in found.caption


@pytest.mark.parametrize("log", [False, True])
def test_the_subtitle_says_what_is_drawn_and_on_which_axis(log):
    for words in (None, "Norm of the gradient, planted"):
        subtitle = made(log=log, x_title=words).spec["usermeta"]["normscope"]["subtitle"]
        assert (words or plots.readable("gradient_norm")) in subtitle
        assert ("logarithmic" in subtitle) is log
    assert ('"type": "log"' in json.dumps(made(log=log).spec)) is log


def test_several_quantities_have_a_panel_each_with_its_own_numbers():
    both = pl.concat([FRAME, FRAME.with_columns(pl.lit("other").alias("name"), pl.col("value") * 1000)])
    drawn = rows_of(made(both, y=("gradient_norm", "other")).spec)
    for name, times in (("gradient_norm", 1), ("other", 1000)):
        rows = {(row["arm"], row["site"]): row["now"] for row in drawn if row["panel"] == plots.readable(name)}
        assert rows == {
            (arm, site): pytest.approx(times * mean(arm, 30, site), rel=1e-4) for arm in ARMS for site in ORDER
        }


@pytest.mark.parametrize("value", [7.5, {"stem": 2.0, "deep.2": 9.0}])
def test_theory_stands_where_it_says_and_its_words_in_the_caption(value):
    found = made(theory=("what theory says", value))
    drawn = [row for row in rows_of(found.spec) if "first" not in row]
    assert [row["now"] for row in drawn] == ([value] if isinstance(value, float) else [2.0, 9.0])
    assert "Dashed: what theory says." in found.caption
