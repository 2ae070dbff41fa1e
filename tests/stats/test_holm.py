"""Claims that are judged together: Holm's correction by hand, its laws, and what it does to words."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kit.decided import verdict
from normscope._errors import DataError
from normscope.records import Outcome
from normscope.stats import adjust, as_judged_alone, holm

H, X, N = Outcome.HOLDS, Outcome.OPPOSITE, Outcome.NO_EFFECT
U, M = Outcome.UNCLEAR, Outcome.NOT_MEASURABLE


def test_holm_by_hand() -> None:
    adjusted, rejected = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert rejected.tolist() == [True, False, False, True]
    assert holm([])[0].size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_holm_laws(p, random) -> None:
    adjusted, rejected = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1) + 1e-15).all()  # never worse than Bonferroni
    order = random.sample(range(len(p)), len(p))
    assert np.array_equal(holm([p[k] for k in order])[0], adjusted[order])
    assert [a == b for a in p for b in p] <= [a == b for a in adjusted for b in adjusted]  # ties stay ties
    assert np.array_equal(rejected, adjusted <= 0.05)


@pytest.mark.parametrize("p", [[0.1, math.nan], [-0.1], [1.1, 2.0, 0.5], ["x"], [[0.1]]])
def test_holm_refuses(p) -> None:
    with pytest.raises(DataError):
        holm(p)


def test_adjust() -> None:
    family = [
        verdict(H, 0.0),
        verdict(H, 0.04),
        verdict(X, 0.012),
        verdict(U, 0.5),
        verdict(H, 0.04, primary=False),
        verdict(Outcome.EXACT, None),
        verdict(N, 0.03),
        verdict(M, None),
    ]
    after = adjust(family)
    assert [each.outcome for each in after] == [H, U, X, U, H, Outcome.EXACT, U, M]
    assert [each.adjusted_p for each in after] == pytest.approx([0.0, 0.09, 0.048, 0.5, None, None, 0.09, None])
    assert [after[k] for k in (4, 5, 7)] == [family[k] for k in (4, 5, 7)]
    assert after[1].why == (
        "alone this would read 'holds' (p = 0.04), but among 5 claims judged together p = 0.09 exceeds 0.05 (Holm)"
    )
    assert after[1].reason == family[1].reason
    assert adjust([]) == []
    assert adjust([verdict(H, 0.04)])[0].outcome is H


@given(st.lists(st.tuples(st.sampled_from([H, X, N]), st.floats(0, 1)), min_size=2, max_size=8), st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_a_family_that_grows_is_corrected_as_if_it_had_been_whole_from_the_start(drawn, cut) -> None:
    family = [verdict(outcome, p) for outcome, p in drawn]
    first = adjust(family[:cut])
    assert [as_judged_alone(each) for each in first] == family[:cut]
    assert adjust([as_judged_alone(each) for each in (*first, *family[cut:])]) == adjust(family)
