"""A comparison without its records is judged as the comparison itself."""

import math
from dataclasses import fields, replace
from types import MappingProxyType

import numpy as np
import polars as pl
from hypothesis import given, settings, strategies as st

from normscope import atlas
from normscope.atlas.kept import keep, verdict_of
from normscope.records import Verdict
from normscope.studies import Contrast, Evidence, Quantity
from normscope.studies.evidence import Arrivals
from normscope.studies.judging import AbstractJudge

FIELDS = [field.name for field in fields(Verdict) if field.name not in ("study", "parts", "sources")]


def same(one, other):
    """Whether two verdicts say the same, NaN beside NaN."""
    return [name for name in FIELDS if repr(getattr(one, name)) != repr(getattr(other, name))]


def test_every_verdict_and_every_sentence_is_that_of_the_comparison(comparison, kept):
    found = atlas.answers_of(kept)
    assert [each.question.code for each in found] == [each.question.CODE for each in comparison.answers_in_order]
    for own, again in zip(comparison.answers_in_order, found, strict=True):
        assert own.asks == again.question.asks
        assert own.sentence.startswith(again.sentence)  # the comparison adds its other pairs of arms
        assert len(own.verdict.parts) == len(again.verdict.parts)
        for one, other in zip((own.verdict, *own.verdict.parts), (again.verdict, *again.verdict.parts), strict=True):
            assert same(one, other) == []


def test_the_words_alone_are_those_of_the_answers(kept):
    assert atlas.outcomes_of(kept) == {each.question.code: each.verdict.outcome for each in atlas.answers_of(kept)}


class Judge(AbstractJudge):
    """Judges planted contrasts."""

    CODE = "planted"
    CLAIM = "The first is larger."
    SOURCES = ()
    MARGIN = 0.25
    MARGIN_REASON = "a quarter"
    ARMS = MappingProxyType({"a": "with norms", "b": "without norms"})


numbers = st.one_of(st.floats(-3, 3), st.sampled_from([0.0, math.nan, math.inf, -math.inf]))
positive = st.floats(1e-3, 1e3)


@st.composite
def contrasts(draw):
    """A contrast with the evidence that it reads: any rule, scale, side and limit; runs that end before a target."""
    seeds = draw(st.integers(1, 6))
    scale = draw(st.sampled_from(["difference", "log-ratio", "value"]))
    logs = scale == "log-ratio" and draw(st.booleans())
    kind = positive if scale == "log-ratio" and not logs else numbers
    values = {arm: np.array(draw(st.lists(kind, min_size=seeds, max_size=seeds))) for arm in "ab"}
    censored = scale != "value" and not logs and draw(st.booleans())
    missed = {arm: np.array(draw(st.lists(st.booleans(), min_size=seeds, max_size=seeds))) for arm in "ab"}

    def read(_, arm, **where):
        return Arrivals(np.abs(values[arm]) + 1, missed[arm], 9.0) if censored else values[arm].copy()

    quantity = Quantity(
        "steps to a target",
        read,
        logs=logs,
        censored=censored,
        unit=draw(st.sampled_from(["", "%", "points", "steps"])),
        floor=(lambda _: -2.0) if draw(st.booleans()) else None,
        ceiling=draw(st.sampled_from([None, 2.0])),
    )
    second = None if scale == "value" else draw(st.sampled_from(["b", 0.5]))
    rule = draw(st.sampled_from(["margin", "equal_within", "no_worse_than", "each_above", "exact_within", ""]))
    own = draw(st.booleans()) and second == "b" and scale == "difference"
    contrast = Contrast(
        quantity,
        "a",
        second,
        at={"lr": 0.1},
        conditions=draw(st.sampled_from([{}, {"matching": "equal steps"}])),
        scale=scale,
        effect=(lambda a, b: (a - b) / 2) if own else None,
        comparative=draw(st.sampled_from([None, ("more", "fewer")])),
        says=draw(st.sampled_from(["", "training takes {effect} steps"])),
        reason=draw(st.sampled_from(["", "Because."])),
        counted=draw(st.booleans()),
        labels=draw(st.sampled_from([("", ""), ("left", "right")])),
        **({rule: draw(st.sampled_from([0.1, 1.0]))} if rule else {}),
    )
    if draw(st.booleans()):
        premise = Contrast(quantity, "b", scale="value", each_above=0.5, claim="The other is large.")
        contrast = replace(contrast, premises=(premise,))
    level = draw(st.sampled_from([0.95, 0.975]))
    return contrast, Evidence(pl.DataFrame(), {}, tuple(range(seeds)), level, "")


@settings(max_examples=150, deadline=None)
@given(contrasts(), st.booleans())
def test_any_contrast_is_judged_as_before(planted, primary):
    contrast, evidence = planted
    own = Judge().verdict_of(contrast, evidence, primary=primary)
    found = keep(contrast, evidence, Judge(), primary=primary)
    assert same(own, verdict_of(found, {}, evidence.seeds, evidence.level, primary=primary)) == []


def test_a_later_rule_gives_another_word_without_a_run(kept):
    contrast = next(each for each in kept.questions if each.code == "gradients").contrasts[0]
    words = {
        bound: verdict_of(replace(contrast, bound=bound), kept.learning, kept.seeds, kept.level).outcome.value
        for bound in (0.0, 1e9)
    }
    assert words == {0.0: words[0.0], 1e9: "no effect that matters"}
    assert words[0.0] != words[1e9]


def test_an_arm_that_does_not_learn_leaves_what_rests_on_learning_unmeasurable(kept):
    flat = kept.learning["none"]
    idle = replace(flat, first=replace(flat.first, values=(0.0,) * len(kept.seeds)))
    found = atlas.answers_of(replace(kept, learning={**kept.learning, "none": idle}))
    (flatness,) = (each for each in found if each.question.code == "flatness")
    assert flatness.sentence == "Not measurable: the network without norms does not learn."


def test_no_path_and_no_name_of_the_users_is_in_the_file(comparison, kept):
    text = atlas.dumps(kept)
    assert str(comparison.path) not in text
    assert "set_ups" not in text
    assert {"BatchNorm1d", "Linear"} <= kept.network.layers.keys() <= {"BatchNorm1d", "Linear", "ReLU", "Dropout"}
