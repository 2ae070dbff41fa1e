"""What holds of every study, whatever it claims: shown on planted records in the shape of a real run.

A study need not declare anything for it: its contrasts say what they compare and where. A study that is new needs the
shape of its records once; the failing test has the command.
"""

import dataclasses
import functools
import math

import numpy as np
import polars as pl
import pytest

from kit import record_shapes
from kit.planted_runs import SEEDS, changed, exchanged, planted_run, rows_at, rows_read
from normscope import studies
from normscope.records import Outcome, answer, standing
from normscope.studies import Arrivals, Best, Quantity, contrast as contrast_module, last

ALL = studies.all()
every_study = pytest.mark.parametrize("study", ALL, ids=lambda study: study.CODE)
HOLDS, OPPOSITE, NO_EFFECT = Outcome.HOLDS, Outcome.OPPOSITE, Outcome.NO_EFFECT
UNCLEAR, NOT_MEASURABLE, EXACT, FALSE = (
    Outcome.UNCLEAR,
    Outcome.NOT_MEASURABLE,
    Outcome.EXACT,
    Outcome.FALSE,
)


def contrasts_of(study, evidence):
    """All contrasts, each followed by its premises."""
    found = []
    for contrast in study.ordered(evidence):
        found += [contrast, *contrast.premises]
    return found


def sides_of(contrast):
    """Both sides as (arm, the rest of its condition), or None where one is not an arm."""
    sides = []
    for side in (contrast.first, contrast.second):
        where = {**contrast.at, **({"arm": side} if isinstance(side, str) else side if isinstance(side, dict) else {})}
        if side is None or isinstance(side, int | float) or "arm" not in where:
            return None
        sides.append((where.pop("arm"), where))
    return sides


def compares_arms(contrast):
    """Whether it compares two arms under one condition by a rule that is the same for both."""
    sides = sides_of(contrast)
    return sides is not None and sides[0][0] != sides[1][0] and sides[0][1] == sides[1][1]


def at_one_point(contrast, evidence):
    """Whether both arms lie at the same points of the grid: only there do equal arms have equal numbers."""
    columns = [key for key in evidence.frame.columns if key not in record_shapes.COLUMNS]
    found = []
    for side in (contrast.first, contrast.second):
        where = {key: value for key, value in contrast.where(side, evidence).items() if key in evidence.frame.columns}
        found.append(evidence.select(**where).select(columns).unique().sort(columns) if columns else None)
    return found[0] is None or found[0].equals(found[1])


def is_even_handed(contrast):
    """Whether equal sides have no effect, and exchanged sides the opposite (unlike the smaller of two, or a room)."""
    effect = contrast.effect
    return effect is None or (effect(1.0, 1.0) == 0 and (effect(1.0, 2.0) > 0) == (effect(2.0, 1.0) < 0))


def described(contrast):
    return f"{contrast.quantity.words}: {contrast.first} and {contrast.second} at {contrast.at}"


def numbers(verdict):
    """A verdict and its parts without words."""
    effect = verdict.effect
    return [
        (verdict.outcome, verdict.margin, effect.n, effect.scale, *_rounded(effect.point, effect.low, effect.high)),
        *(row for part in verdict.parts for row in numbers(part)),
    ]


def _rounded(*values):
    return [value if not math.isfinite(value) else float(f"{value:.9g}") for value in values]


def same(first, second):
    return repr(first) == repr(second)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Resample little: what is held here does not depend on how finely an interval's ends are drawn."""
    for name in ("interval", "decide", "alike", "no_worse"):
        monkeypatch.setattr(contrast_module, name, functools.partial(getattr(contrast_module, name), draws=200))


# --- the shape of the records ------------------------------------------------------------------------------------


@every_study
def test_the_shape_of_its_records_is_kept_and_is_that_of_its_quick_preset(study):
    shape = record_shapes.read(study.CODE)
    say = f"its quick preset has changed: run `{record_shapes.command(study.CODE)}`"
    assert shape["settings"] == study.PRESETS["quick"], say
    cells = [[arm, point] for arm, point, _ in shape["cells"]]
    assert cells == [[arm, dict(point)] for arm, point in study.grid(study.PRESETS["quick"])], say


# --- every judge -------------------------------------------------------------------------------------------------


@every_study
def test_its_verdict_is_whole_and_in_words(study):
    verdict = study.judge(planted_run(study.CODE))
    assert verdict.primary
    assert not any(part.primary for part in verdict.parts)
    assert (verdict.study, verdict.claim, verdict.sources) == (study.CODE, study.CLAIM, study.SOURCES)
    for judged in (verdict, *verdict.parts):
        assert judged.claim.endswith(".")
        assert judged.endpoint
        assert judged.reason.endswith((".", "?")), judged.reason
        assert "nan" not in f"{judged.reason} {judged.finding}".split(), judged.reason
        tested = judged.outcome not in (NOT_MEASURABLE, EXACT, FALSE) and judged.effect.scale != "error"
        assert (judged.p_value is not None) == tested
        assert judged.p_value is None or 0 <= judged.p_value <= 1
        assert judged.effect.n <= SEEDS
        assert bool(judged.why) != judged.outcome.decided
        assert bool(judged.margin_reason) == (judged.effect.scale != "error")
        assert judged.finding
        assert "{" not in judged.finding
        assert judged.amount
    assert verdict.here or verdict.outcome.of_identity
    assert standing(verdict)
    assert answer(verdict).endswith(".")


@every_study
def test_sentences_can_refer_to_each_of_its_contrasts_by_name(study):
    names = [contrast.name for contrast in study.ordered(planted_run(study.CODE))]
    assert all(names), "give every contrast a name"
    assert len(set(names)) == len(names)


@every_study
def test_its_claims_are_told_apart_and_the_headline_has_its_own(study):
    """Contrasts of one claim differ in a condition, so that a sentence can say on what the claim depends."""
    verdict = study.judge(planted_run(study.CODE))
    seen = {}
    for judged in (verdict, *verdict.parts):
        where = (judged.claim, tuple((each.name, each.value) for each in judged.conditions))
        assert where not in seen, f"{judged.name} and {seen.get(where)} have one claim and the same conditions"
        seen[where] = judged.name


@every_study
def test_the_order_of_rows_and_seeds_does_not_matter(study):
    evidence = planted_run(study.CODE)
    shuffled = evidence.frame.sample(fraction=1, shuffle=True, seed=1)
    turned = dataclasses.replace(evidence, frame=shuffled, seeds=evidence.seeds[::-1])
    assert same(numbers(study.judge(turned)), numbers(study.judge(evidence)))


@every_study
def test_a_seed_without_numbers_is_left_out_and_said(study):
    """A seed is not measured: no number of it counts, whatever stood there, and the verdicts it lacks say so."""
    evidence = planted_run(study.CODE)
    without = changed(evidence, pl.col("seed") == 2, lambda value: pl.lit(math.nan))
    for contrast in contrasts_of(study, without):
        reading, judged = contrast.read(without), study.verdict_of(contrast, without)
        measured = int(np.isfinite(reading.values).sum())
        assert judged.effect.n == measured, described(contrast)
        assert not math.isnan(judged.effect.low)
        if contrast.exact_within is not None:
            assert judged.outcome is not EXACT, described(contrast)
        assert (reading.missing in judged.reason) if measured < SEEDS else not reading.missing


def all_said(study, evidence):
    verdict = study.judge(evidence)
    return [verdict, *verdict.parts]


@every_study
@pytest.mark.parametrize("lack", ["no finite number", "no record", "no seed that ended", "two seeds", "equal seeds"])
def test_where_nothing_was_measured_nothing_is_said(study, lack):
    """No word and no p-value without numbers; a word of algebra needs no spread, but a number in every seed."""
    evidence = planted_run(study.CODE)
    if lack == "no finite number":
        evidence = changed(evidence, pl.lit(True), lambda value: pl.lit(math.nan))
    elif lack == "no record":
        evidence = dataclasses.replace(evidence, frame=evidence.frame.clear())
    elif lack == "no seed that ended":  # a learning rate of 1e30
        kept = evidence.frame.filter((pl.col("step") == 0) & ~pl.col("name").str.contains("test|val"))
        evidence = dataclasses.replace(evidence, frame=kept)
        evidence = changed(evidence, pl.lit(True), lambda value: value * math.inf)
    elif lack == "two seeds":
        frame = evidence.frame.filter(pl.col("seed") < 2)
        evidence = dataclasses.replace(evidence, frame=frame, seeds=(0, 1))
    else:
        one = evidence.frame.filter(pl.col("seed") == 0)
        frame = pl.concat([one.with_columns(pl.lit(seed).alias("seed").cast(pl.Int64)) for seed in range(SEEDS)])
        evidence = dataclasses.replace(evidence, frame=frame.select(evidence.frame.columns))
    for judged in all_said(study, evidence):
        if judged.effect.scale == "error" and lack in ("two seeds", "equal seeds"):
            continue
        assert judged.outcome is NOT_MEASURABLE, (judged.name, judged.amount)
        assert judged.p_value is None
        assert judged.why
        assert answer(judged).startswith("Not measurable: ")


@every_study
def test_three_seeds_are_judged(study):
    evidence = planted_run(study.CODE)
    three = dataclasses.replace(evidence, frame=evidence.frame.filter(pl.col("seed") < 3), seeds=(0, 1, 2))
    for judged in all_said(study, three):
        assert judged.effect.n <= 3


@every_study
def test_its_figures_and_tables_are_drawn(study):
    evidence = planted_run(study.CODE)
    figures, tables = study.figures(evidence), study.tables(evidence)
    assert figures
    assert len({figure.slug for figure in figures}) == len(figures)
    for figure in figures:
        assert figure.title
        assert figure.caption
        assert figure.alt
        assert "nothing to draw" not in figure.alt
    assert tables
    for table in tables:
        assert table.title
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


# --- judges made of contrasts ------------------------------------------------------------------------------------


@every_study
def test_the_headline_decides_and_the_others_are_parts_in_their_order(study):
    evidence = planted_run(study.CODE)
    verdict, (first, *others) = study.judge(evidence), study.ordered(evidence)
    alone = study.verdict_of(first, evidence, primary=True)
    assert same(numbers(verdict)[0], numbers(alone)[0])
    assert list(verdict.parts) == [study.verdict_of(other, evidence) for other in others]


@every_study
def test_an_effect_is_the_mean_over_seeds_of_first_against_second(study):
    """By hand: the numbers of both sides, their difference or log-ratio, its mean."""
    evidence = planted_run(study.CODE)
    for contrast in contrasts_of(study, evidence):
        if sides_of(contrast) is None or contrast.exact_within is not None:
            continue
        first, second = (
            contrast.quantity(evidence, **contrast.where(side, evidence)) for side in (contrast.first, contrast.second)
        )
        effects = first - second
        if contrast.effect is not None:
            effects = contrast.effect(first, second)
        elif contrast.scale == "log-ratio" and not contrast.quantity.logs:
            effects = np.log(first / second)
        read = [
            contrast.quantity.read(evidence, **contrast.where(side, evidence))
            for side in (contrast.first, contrast.second)
        ]
        if all(isinstance(found, Arrivals) for found in read):
            effects = np.where(read[0].missed & read[1].missed, np.nan, effects)
        floor, ceiling = contrast.quantity.limits(evidence)
        stuck = (np.maximum(first, second) <= floor) | (np.minimum(first, second) >= ceiling)
        effects = np.where(stuck, np.nan, effects)
        effects = effects[np.isfinite(effects)]
        if not len(effects):  # of planted numbers it may be none
            continue
        found = study.verdict_of(contrast, evidence).effect
        assert found.n == len(effects)
        assert found.point == pytest.approx(effects.mean(), rel=1e-9, abs=1e-12), described(contrast)


@every_study
def test_equal_arms_are_never_called_different(study):
    evidence = planted_run(study.CODE, equal=True)
    compared = [
        item
        for item in contrasts_of(study, evidence)
        if compares_arms(item) and is_even_handed(item) and at_one_point(item, evidence)
    ]
    for contrast in compared:
        judged = study.verdict_of(contrast, evidence)
        assert judged.outcome not in (OPPOSITE, FALSE), described(contrast)
        if contrast.equal_within is None and contrast.no_worse_than is None and contrast.exact_within is None:
            assert judged.outcome is not HOLDS, described(contrast)


def names_read(contrast, side, evidence):
    rows = rows_read(contrast.quantity, evidence, **contrast.where(side, evidence))
    return frozenset(evidence.frame.filter(rows).select("probe", "name").unique().rows())


@every_study
def test_exchanged_arms_exchange_the_sign_of_an_effect(study):
    evidence = planted_run(study.CODE)
    for contrast in contrasts_of(study, evidence):
        if compares_arms(contrast) and is_even_handed(contrast) and contrast.exact_within is None:
            (first, _), (second, _) = sides_of(contrast)
            if len({names_read(contrast, side, evidence) for side in (contrast.first, contrast.second)}) > 1:
                continue  # without a norm there is nothing to freeze: such an arm is read from other records
            before = contrast.read(evidence).values
            after = contrast.read(exchanged(evidence, first, second)).values
            if contrast.effect is None:
                np.testing.assert_allclose(after, -before, rtol=1e-9, atol=1e-12, err_msg=described(contrast))
            else:
                finite = np.isfinite(before)
                assert (np.sign(after[finite]) == -np.sign(before[finite])).all(), described(contrast)


@every_study
def test_what_stands_elsewhere_does_not_matter(study):
    """Contrary numbers under other conditions, of other arms, sites, steps and names than those asked for."""
    evidence = planted_run(study.CODE)
    columns = set(evidence.frame.columns)
    for contrast in contrasts_of(study, evidence):
        sides, here, within = sides_of(contrast), pl.lit(False), pl.lit(False)
        if sides is None:
            continue
        for side in (contrast.first, contrast.second):
            where = contrast.where(side, evidence)
            free = {key for key, value in contrast.at.items() if isinstance(value, Best)}
            here |= rows_at({key: value for key, value in where.items() if key in columns - free})
            within |= rows_read(contrast.quantity, evidence, **where)
            for key in free:  # a rate is chosen over all rates
                within |= rows_at({key: value for key, value in where.items() if key in columns - {key}})
        before = contrast.read(evidence)
        # A target that follows the best arm, and chance, are read from other arms: then only what is asked for counts.
        follows = contrast.quantity.censored or contrast.quantity.floor is not None
        for kept in (within,) if follows else (here, within):
            contrary = changed(evidence, ~kept, lambda value: 3 - 40 * value)
            np.testing.assert_array_equal(contrast.read(contrary).values, before.values, described(contrast))


@every_study
def test_each_arm_is_judged_at_its_own_best(study):
    """Each arm is best at another value; the effect is that of both at their own, and no other."""
    evidence = planted_run(study.CODE)
    for contrast in contrasts_of(study, evidence):
        best = {key: value for key, value in contrast.at.items() if isinstance(value, Best)}
        if sides_of(contrast) is None or not best:
            continue
        ((over, rule),) = best.items()
        planted, own = evidence, {}
        for turn, (arm, where) in enumerate(sides_of(contrast)):
            fixed = {"arm": arm, **{key: value for key, value in where.items() if key != over}}
            choices = sorted(evidence.select(**fixed)[over].unique())
            own[turn] = {**fixed, over: choices[-1 - turn]}
            planted = best_at(planted, rule, over, own[turn], choices)
        assert own[0][over] != own[1][over]
        assert contrast.where(contrast.first, planted) == own[0], described(contrast)
        assert contrast.where(contrast.second, planted) == own[1], described(contrast)
        at = {key: value for key, value in contrast.at.items() if key != over}
        effect = study.verdict_of(contrast, planted).effect.point
        stated = dataclasses.replace(contrast, first=own[0], second=own[1], at=at)
        if not math.isfinite(effect):
            continue
        assert study.verdict_of(stated, planted).effect.point == effect
        for shared in own.values():
            other = dataclasses.replace(contrast, at={**at, over: shared[over]})
            assert study.verdict_of(other, planted).effect.point != effect, described(contrast)


def best_at(evidence, rule, over, own, choices):
    """Plant that an arm does best at one value: what decides is made worse at every other."""
    by = rule.by or last("val_loss")

    def score(found, where):
        values = by(found, **where)
        return float(values.mean() if rule.most or by.logs else np.log(values).mean()) * (-1 if rule.most else 1)

    for choice in choices:
        where = {**own, over: choice}
        rows = rows_read(by, evidence, **where) & rows_at(where) & (pl.col("name") != "diverged")
        # A target that follows the best arm would move with it: there, values are only made worse.
        factors = (0.4, 1.0) if by.censored else (0.4, 1.0, 2.5)
        tried = [changed(evidence, rows, lambda value, f=factor: value * f) for factor in factors]
        good, *_, bad = sorted(tried, key=lambda found: score(found, where))
        assert score(good, where) < score(bad, where), f"{by.words} cannot be planted"
        evidence = good if choice == own[over] else bad
    return evidence


# --- rules -------------------------------------------------------------------------------------------------------


def with_effects(contrast, size, spread):
    """The contrast with its rule, and an effect of one size in every seed, but for a spread far below any margin."""
    effects = size + 1e-7 * spread * np.array([-1.0, 1.0, 0.5, -0.5, 0.2, -0.2])
    bare = {"first": None, "second": None, "at": {}, "effect": None, "premises": (), "reason": "Planted."}
    return dataclasses.replace(contrast, quantity=Quantity("planted", lambda evidence: effects), **bare)


def sizes_and_outcomes(contrast, margin):
    """Effects just beside each bound of a contrast's rule, and the word for each."""
    if contrast.exact_within is not None:
        return [(0.98 * contrast.exact_within, EXACT), (1.02 * contrast.exact_within, FALSE)]
    if contrast.equal_within is not None:
        bound = contrast.equal_within
        within = [(size * bound, HOLDS) for size in (-0.98, 0.0, 0.98)]
        return [*within, (1.02 * bound, OPPOSITE), (-1.02 * bound, OPPOSITE)]
    if contrast.no_worse_than is not None:
        bound = contrast.no_worse_than
        return [(5 * bound, HOLDS), (-0.98 * bound, HOLDS), (-1.02 * bound, OPPOSITE)]
    margin = margin if contrast.margin is None else contrast.margin
    near = 0.02 * max(margin, 0.01)
    inside = [(size * margin, NO_EFFECT) for size in (-0.98, 0.0, 0.98)] if margin else []
    return [(margin + near, HOLDS), (-margin - near, OPPOSITE), *inside]


def judged_as(outcome, contrast, study):
    """The contrast with an effect that must be judged so."""
    sizes = sizes_and_outcomes(contrast, study.MARGIN)
    size = next(size for size, said in sizes if said is outcome)
    return with_effects(contrast, size, max(abs(size), 1e-3))


@every_study
def test_margins_are_respected_on_both_sides(study):
    evidence = planted_run(study.CODE)
    for contrast in contrasts_of(study, evidence):
        sizes = sizes_and_outcomes(contrast, study.MARGIN)
        spread = max(abs(size) for size, _ in sizes)
        for size, outcome in sizes:
            judged = study.verdict_of(with_effects(contrast, size, spread), evidence)
            assert judged.outcome is outcome, f"{described(contrast)}: {size}"
            if contrast.exact_within is None:
                assert judged.effect.point == pytest.approx(size, rel=1e-6, abs=1e-6 * spread)
                assert judged.p_value < 0.05


@every_study
def test_a_premise_that_fails_leaves_nothing_to_say_either_way(study):
    evidence = planted_run(study.CODE)
    for contrast in study.ordered(evidence):
        words = (EXACT, FALSE) if contrast.exact_within is not None else (HOLDS, OPPOSITE)
        for premise in contrast.premises:
            good, bad = (judged_as(outcome, premise, study) for outcome in (HOLDS, OPPOSITE))
            for word in words:
                planted = judged_as(word, contrast, study)
                met = study.verdict_of(dataclasses.replace(planted, premises=(good,)), evidence)
                unmet = study.verdict_of(dataclasses.replace(planted, premises=(good, bad)), evidence)
                assert (met.outcome, unmet.outcome) == (word, NOT_MEASURABLE)
                assert [premise.met for premise in unmet.premises] == [True, False]
                assert unmet.p_value is None
                assert unmet.why.startswith("a premise is not met: ")
