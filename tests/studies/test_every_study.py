"""What holds of every study, whatever it claims: shown on planted records in the shape of a real run.

A study need not declare anything for it: its contrasts say what they compare and where. A study that is new needs the
shape of its records once; the failing test has the command.
"""

import dataclasses
import math

import numpy as np
import polars as pl
import pytest

from kit import record_shapes
from kit.planted_runs import SEEDS, changed, exchanged, planted_run, rows_at, rows_read
from normscope import studies
from normscope._errors import DataError
from normscope.records import Outcome
from normscope.studies import AbstractStudy, AllOf, Best, Contrast, Quantity, last

ALL = studies.all()
#: Studies whose judgement is made of contrasts, and can be looked into.
OPEN = [study for study in ALL if type(study).contrasts is not AbstractStudy.contrasts]
every_study = pytest.mark.parametrize("study", ALL, ids=lambda study: study.CODE)
every_open_study = pytest.mark.parametrize("study", OPEN, ids=lambda study: study.CODE)
S, R, U = Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE


def flat(items):
    """Contrasts, with those that must all hold, and premises."""
    for item in items:
        if isinstance(item, AllOf):
            yield from flat(item.parts)
        elif isinstance(item, Contrast):
            yield item
            yield from flat(item.premises)


def contrasts_of(study, evidence):
    return list(flat(study.contrasts(evidence)))


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
        assert "nan" not in judged.reason.split(), judged.reason
        assert 0 <= judged.p_value <= 1
        assert judged.effect.n <= SEEDS


@every_study
def test_the_order_of_rows_and_seeds_does_not_matter(study):
    evidence = planted_run(study.CODE)
    shuffled = evidence.frame.sample(fraction=1, shuffle=True, seed=1)
    turned = dataclasses.replace(evidence, frame=shuffled, seeds=evidence.seeds[::-1])
    assert same(numbers(study.judge(turned)), numbers(study.judge(evidence)))


#: Judges that refuse such a run: slopes and intervals over all seeds that nobody filters.
REFUSE = ("bn-backward-three-terms", "bn-noise-regularises")


@pytest.mark.parametrize(
    "study",
    [
        pytest.param(
            study,
            id=study.CODE,
            marks=[pytest.mark.xfail(raises=DataError, strict=True)] if study.CODE in REFUSE else [],
        )
        for study in ALL
    ],
)
def test_a_seed_without_numbers_is_left_out_and_said(study):
    """A seed is not measured: no number of it counts, whatever stood there, and the verdicts it lacks say so."""
    evidence = planted_run(study.CODE)
    without = changed(evidence, pl.col("seed") == 2, lambda value: pl.lit(math.nan))
    verdict = study.judge(without)
    for judged in (verdict, *verdict.parts):
        assert judged.effect.n in (SEEDS, SEEDS - 1, 0)
        assert not math.isnan(judged.effect.low)
    if study in OPEN:
        for contrast in contrasts_of(study, without):
            reading, judged = contrast.read(without), study.verdict_of(contrast, without)
            if contrast.exact_within is not None:
                assert judged.outcome is not S, described(contrast)
            else:
                measured = int(np.isfinite(reading.values).sum())
                assert judged.effect.n == measured, described(contrast)
                missing = f"{SEEDS - measured} of {SEEDS} seeds could not be measured."
                missing = missing if measured else "Not one seed could be measured."
                assert (missing in judged.reason) == (measured < SEEDS), described(contrast)


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


@every_open_study
def test_the_first_contrast_decides_and_the_others_are_parts_in_their_order(study):
    evidence = planted_run(study.CODE)
    verdict, (first, *others) = study.judge(evidence), list(study.contrasts(evidence))
    alone = study.verdict_of(first, evidence, primary=True)
    assert same(numbers(verdict)[0], numbers(alone)[0])
    assert verdict.reason.startswith(alone.reason)
    expected = [*alone.parts, *(study.verdict_of(other, evidence) for other in others)]
    assert list(verdict.parts) == expected


@every_open_study
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
        effects = effects[np.isfinite(effects)]
        if not len(effects):  # of planted numbers it may be none
            continue
        found = study.verdict_of(contrast, evidence).effect
        assert found.n == len(effects)
        assert found.point == pytest.approx(effects.mean(), rel=1e-9, abs=1e-12), described(contrast)


@every_open_study
def test_equal_arms_are_never_called_different(study):
    evidence = planted_run(study.CODE, equal=True)
    compared = [item for item in contrasts_of(study, evidence) if compares_arms(item) and is_even_handed(item)]
    for contrast in compared:
        judged = study.verdict_of(contrast, evidence)
        if contrast.equal_within is not None:
            assert judged.outcome is S, described(contrast)
        elif contrast.exact_within is None and judged.margin >= 0:
            assert judged.outcome is not S, described(contrast)
    first = next(iter(study.contrasts(evidence)))
    decisive = [item for item in flat([first]) if item in compared and not (item.equal_within or item.exact_within)]
    if decisive and all((study.MARGIN if item.margin is None else item.margin) >= 0 for item in decisive):
        assert study.judge(evidence).outcome is not S


def names_read(contrast, side, evidence):
    rows = rows_read(contrast.quantity, evidence, **contrast.where(side, evidence))
    return frozenset(evidence.frame.filter(rows).select("probe", "name").unique().rows())


@every_open_study
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
                assert (np.sign(after) == -np.sign(before)).all(), described(contrast)


@every_open_study
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
        for kept in (here, within):
            contrary = changed(evidence, ~kept, lambda value: 3 - 40 * value)
            np.testing.assert_array_equal(contrast.read(contrary).values, before.values, described(contrast))


@every_open_study
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
        rows = rows_read(by, evidence, **where) & (pl.col("name") != "diverged")
        tried = [changed(evidence, rows, lambda value, f=factor: value * f) for factor in (0.4, 1.0, 2.5)]
        good, *_, bad = sorted(tried, key=lambda found: score(found, where))
        assert score(good, where) < score(bad, where), f"{by.words} cannot be planted"
        evidence = good if choice == own[over] else bad
    return evidence


# --- rules -------------------------------------------------------------------------------------------------------


def with_effects(contrast, size):
    """The contrast with its rule, and an effect of one size in every seed, but for a spread far below any margin."""
    effects = size * (1 + 1e-7 * np.array([-1.0, 1.0, 0.5, -0.5, 0.2, -0.2]))
    bare = {"first": None, "second": None, "at": {}, "effect": None, "premises": (), "reason": "Planted."}
    return dataclasses.replace(contrast, quantity=Quantity("planted", lambda evidence: effects), **bare)


def sizes_and_outcomes(contrast, margin):
    """Effects just inside and just outside what the contrast's rule allows, and what must be said of them."""
    if contrast.exact_within is not None:
        return [(0.98 * contrast.exact_within, S), (1.02 * contrast.exact_within, R)]
    if contrast.equal_within is not None:
        bound = contrast.equal_within
        return [(0.98 * bound, S), (-0.98 * bound, S), (1.02 * bound, R), (-1.02 * bound, R), (0.0, S)]
    margin = margin if contrast.margin is None else contrast.margin
    against = margin if contrast.refuted_below is None else contrast.refuted_below
    near = 0.02 * max(abs(margin), 0.01)
    between = [] if against == margin else [((margin + against) / 2, U)]
    return [(margin + near, S), (against - near, R), *between]


def judged_as(outcome, contrast, study):
    """The contrast with an effect that must be judged so."""
    sizes = sizes_and_outcomes(contrast, study.MARGIN)
    return with_effects(contrast, next(size for size, said in sizes if said is outcome))


@every_open_study
def test_margins_are_respected_on_both_sides(study):
    evidence = planted_run(study.CODE)
    for contrast in contrasts_of(study, evidence):
        for size, outcome in sizes_and_outcomes(contrast, study.MARGIN):
            planted = with_effects(contrast, size)
            judged = study.verdict_of(planted, evidence)
            assert judged.outcome is outcome, f"{described(contrast)}: {size}"
            if contrast.exact_within is None:
                assert judged.effect.point == pytest.approx(size, rel=1e-6, abs=1e-12)
                assert (judged.p_value < 0.05) == (outcome is not U)


@every_open_study
def test_conditions_must_all_hold(study):
    """Of several conditions one that fails is enough, and that is the one shown; so it is with premises."""
    evidence = planted_run(study.CODE)
    for item in study.contrasts(evidence):
        if isinstance(item, AllOf) and all(isinstance(part, Contrast) for part in item.parts):
            holding = [judged_as(S, part, study) for part in item.parts]
            assert study.verdict_of(dataclasses.replace(item, parts=holding), evidence).outcome is S
            for index, part in enumerate(item.parts):
                failing = [*holding]
                failing[index] = judged_as(R, part, study)
                judged = study.verdict_of(dataclasses.replace(item, parts=failing), evidence)
                assert judged.outcome is R
                assert judged.effect == judged.parts[index].effect
        for contrast in flat([item]):
            if contrast.premises:
                met = judged_as(S, contrast, study)
                for premise in contrast.premises:
                    good, bad = (judged_as(outcome, premise, study) for outcome in (S, R))
                    assert study.verdict_of(dataclasses.replace(met, premises=(good,)), evidence).outcome is S
                    unmet = study.verdict_of(dataclasses.replace(met, premises=(bad,)), evidence)
                    assert unmet.outcome is U
                    assert "premise is not met" in unmet.reason
