"""The dosed shift: what it does to values, that batch norm takes it out, and planted gradients."""

import math

import pytest
import torch

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.lab.arms import batch_norm
from normscope.studies.lab.models import Place
from normscope.studies.lab.shift import Shift, root_mean_square

SLUG = "shift-causes-vanishing"
STUDY = studies.get(SLUG)
DOSES = [0.0, 0.5, 1.0]


def shift(dose, *, kept=False, features=6):
    return Shift(features, dose, kept=kept, source=torch.Generator().manual_seed(4))


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_shift_is_one_line_a_unit_for_all_samples():
    x, module = drawn(30, 6), shift(0.7)
    out = module(x)
    for unit in range(6):
        slope, offset = torch.linalg.lstsq(torch.stack([x[:, unit], torch.ones(30)], 1).double(), out[:, unit]).solution
        torch.testing.assert_close(slope * x[:, unit] + offset, out[:, unit])
        assert math.sqrt(0.3) <= slope <= math.sqrt(1.7)
    assert not torch.equal(module(x), out)
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(shift(0.0)(x), x)


def test_a_kept_shift_is_drawn_once():
    module, x = shift(0.7, kept=True), drawn(30, 6)
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("dose", [0.3, 1.0])
def test_factors_are_one_in_the_mean_square_and_offsets_have_the_dose(dose):
    x = drawn(9, 4000)
    module = shift(dose, features=4000)
    moved, other = module(x).var(0, correction=0), x.var(0, correction=0)
    assert float((moved / other).mean()) == pytest.approx(1, abs=0.03)
    flat = torch.cat([x, -x])  # of mean zero, so that what is left is the offset
    left = shift(dose, features=4000)(flat).mean(0) / flat.std(0, correction=0)
    assert float(left.std()) == pytest.approx(dose, rel=0.05)


def test_batch_norm_behind_the_shift_takes_it_out_forward_and_backward():
    norm = batch_norm(eps=1e-12, dtype=torch.float64)(Place(0, 6))
    with torch.no_grad():
        norm.weight.copy_(drawn(6, seed=1))
        norm.bias.copy_(drawn(6, seed=2))
    x, upstream = drawn(30, 6).requires_grad_(), drawn(30, 6, seed=3)
    plain = norm(x)
    shifted = norm(shift(1.0)(x))
    torch.testing.assert_close(shifted, plain, rtol=1e-6, atol=1e-7)
    (first,), (second,) = (torch.autograd.grad(out, x, upstream) for out in (plain, shifted))
    # The spread by which the offset is measured is a constant there, so the backward pass agrees too.
    torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-6)


def test_the_size_of_a_gradient_is_its_root_mean_square():
    x = drawn(4, 3).requires_grad_()
    (2 * x).sum().backward()
    assert root_mean_square(x) == pytest.approx(2)
    assert root_mean_square(None) == 0
    assert root_mean_square(drawn(2, 2)) == 0


def planted(shifted=0.1, *, fixed=0.1, batch=3.0, moved=3.0, swing=False):
    """Ratios of gradients by dose: 1.5 without a shift, some number at dose 1, between them their geometric mean."""
    plant = Plant(settings(SLUG, doses=DOSES))
    for seed in plant.seeds:
        for activation in plant.settings["activations"]:
            for dose in DOSES:
                ends = {"moving": shifted, "fixed": fixed, "batch": batch}
                for salt, (arm, end) in enumerate(ends.items()):
                    start = batch if arm == "batch" else 1.5
                    ratio = start ** (1 - dose) * end**dose * math.exp(jitter(seed, 0.01, salt + round(10 * dose)))
                    where = {"activation": activation, "dose": dose}
                    for step in range(4):
                        flip = swing and dose and step % 2 and arm == "moving"
                        plant.add(
                            arm, seed, "ratio", 1 / ratio if flip else ratio, probe="gradients", step=step, **where
                        )
                    by = math.exp(jitter(seed, 0.05, 50 + round(10 * dose))) * (moved if dose else 1)
                    plant.add(arm, seed, "relative_mean_shift", 0.2 * by, probe="channel_shift", site="blocks.0.norm",
                              **where)  # fmt: skip
    return plant.evidence()


@pytest.mark.parametrize(
    ("shifted", "outcome"),
    [
        (0.1, "holds"),
        (10.0, "holds"),
        (1.4, "no effect that matters"),
        (1.1, "no effect that matters"),
        (2.25, "unclear"),
    ],
)
@pytest.mark.parametrize("swing", [False, True])
def test_the_judge_finds_what_was_planted_whether_gradients_vanish_or_explode(shifted, outcome, swing):
    assert STUDY.judge(planted(shifted, swing=swing)).outcome.value == outcome


def test_the_answer_says_where_the_gradient_goes():
    finding = STUDY.judge(planted(0.1)).finding
    assert "dose 1: 0.1 times the last one's at the first layer, and 1.5 times without the shift" in finding


def test_a_shift_no_larger_than_that_of_training_is_no_dose():
    verdict = STUDY.judge(planted(moved=1.2))
    assert verdict.outcome.value == "not measurable"
    assert "at least twice as far" in verdict.why


@pytest.mark.parametrize(("fixed", "outcome"), [(1.4, "holds"), (0.1, "no effect that matters"), (0.01, "opposite")])
def test_change_is_told_from_distortion(fixed, outcome):
    assert words_by_name(STUDY.judge(planted(0.1, fixed=fixed)))["change, tanh"] == outcome


def test_batch_norm_that_leaves_some_of_the_shift_is_found():
    words = words_by_name(STUDY.judge(planted()))
    assert (words["batch norm, relu"], words["slope, relu"]) == ("holds", "holds")
    evidence = planted()
    rows = (evidence.frame["arm"] == "batch") & (evidence.frame["dose"] == 1)
    values_ = evidence.frame["value"].to_numpy().copy()
    values_[rows.to_numpy()] *= 2
    changed = type(evidence)(evidence.frame.with_columns(value=values_), evidence.settings, evidence.seeds)
    assert words_by_name(STUDY.judge(changed))["batch norm, relu"] == "opposite"


@pytest.mark.trains
def test_in_a_cell_batch_norm_leaves_no_trace_of_the_shift():
    where = {"activation": "tanh"}
    shifted, still = (values(cell_records(SLUG, "batch", where | {"dose": dose}), "ratio") for dose in (1.0, 0.0))
    assert shifted == pytest.approx(still, rel=1e-2)
    moved = values(cell_records(SLUG, "moving", where | {"dose": 1.0}), "ratio")
    assert moved != pytest.approx(still, rel=1e-2)
