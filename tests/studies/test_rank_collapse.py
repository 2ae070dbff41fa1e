"""Ranks of hidden values: of matrices that are known, of chains against their laws, and judged."""

import math

import pytest
import torch

from kit.planted_evidence import Plant, jitter, part, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.rank_collapse import chain, ranks
from normscope.studies.lab.streams import generator

SLUG = "rank-collapse"
STUDY = studies.get(SLUG)
WIDTHS = [16, 64, 256]


def with_singular_values(sizes, scale=1.0):
    source = torch.Generator().manual_seed(0)
    shape = (len(sizes), len(sizes))
    left, right = (torch.linalg.qr(torch.randn(shape, generator=source, dtype=torch.float64))[0] for _ in range(2))
    return scale * left @ torch.diag(torch.tensor(sizes, dtype=torch.float64)) @ right


@pytest.mark.parametrize(
    ("sizes", "stable", "participation"),
    [([1, 1, 1, 1], 4, 4), ([3, 0, 0, 0], 1, 1), ([2, 1, 1, 0], 6 / 4, 36 / 18), ([5, 5, 0, 0], 2, 2)],
)
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_ranks_of_known_matrices_do_not_depend_on_their_scale(sizes, stable, participation, scale):
    assert ranks(with_singular_values(sizes, scale)) == pytest.approx((stable, participation), rel=1e-9)


def test_a_linear_chain_without_a_norm_is_the_product_of_its_matrices():
    source = generator(3, "chain")
    product = torch.randn(8, 8, generator=source, dtype=torch.float64)
    for pre, out in chain(3, 8, 6, "linear", "none"):
        product = product @ torch.randn(8, 8, generator=source, dtype=torch.float64)
        torch.testing.assert_close(pre, product / product.square().mean().sqrt())
        assert torch.equal(out, pre)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_batch_norm_normalizes_each_unit(activation):
    for pre, out in chain(1, 16, 4, activation, "batch"):
        assert pre.mean(0).abs().max() < 1e-12
        assert pre.square().mean(0).tolist() == pytest.approx([1.0] * 16)
        assert torch.equal(out, pre if activation == "linear" else pre.clamp_min(0))
    for pre, _ in chain(1, 16, 4, activation, "scale"):
        assert pre.square().mean(0).tolist() == pytest.approx([1.0] * 16)


@pytest.mark.parametrize("seed", range(3))
def test_a_deep_narrow_chain_of_rectifiers_collapses_and_batch_norm_holds_it(seed):
    ends = {arm: ranks(list(chain(seed, 24, 60, "relu", arm))[-1][0])[0] for arm in ("none", "batch")}
    assert ends["none"] < 1.2  # over ten seeds 1.00 to 1.13
    assert ends["batch"] > 1.4 * ends["none"]  # the first is 2.7 to 3.9


def planted(without=1.3, with_norm=4.5, *, slope=0.5, scale_only=1.0):
    plant = Plant(settings(SLUG, widths=WIDTHS, judged=64))
    for seed in plant.seeds:
        for activation in plant.settings["activations"]:
            for width in WIDTHS:
                full = with_norm * (width / 64) ** slope
                for salt, (arm, rank) in enumerate(
                    {"none": without, "batch": full, "scale": full * scale_only}.items()
                ):
                    where = {"probe": "rank", "activation": activation, "width": width}
                    size = rank * math.exp(jitter(seed, 0.02, salt + width))
                    plant.add(arm, seed, "stable_rank", size, **where)
                    plant.add(arm, seed, "participation", size, **where)
    return plant.evidence()


@pytest.mark.parametrize(
    ("without", "with_norm", "outcome"),
    [(1.3, 4.5, "holds"), (4.5, 1.3, "opposite"), (3.0, 3.3, "no effect that matters"), (3.0, 4.5, "unclear")],
)
def test_the_judge_finds_what_was_planted(without, with_norm, outcome):
    assert STUDY.judge(planted(without, with_norm)).outcome.value == outcome


def test_collapse_order_and_the_mean_are_judged_by_themselves():
    words = words_by_name(STUDY.judge(planted(without=1.02)))
    assert words["collapse, linear, width 64"] == "holds"
    assert words["order of the stable rank, linear"] == "holds"
    assert words["mean, relu"] == "holds"
    other = words_by_name(STUDY.judge(planted(without=1.5, slope=0.1, scale_only=0.5)))
    assert other["collapse, linear, width 64"] == "opposite"
    assert other["order of the participation ratio, relu"] == "opposite"
    assert other["mean, relu"] == "opposite"
    assert part(STUDY.judge(planted(slope=0.25)), "order of the stable rank, linear").effect.point == pytest.approx(
        -0.25, abs=0.02
    )


def test_a_cell_records_the_ranks_of_its_last_layer():
    where = {"activation": "relu", "width": 16}
    records = cell_records(SLUG, "batch", where)
    pre, out = list(chain(0, 16, settings(SLUG)["depth"], "relu", "batch"))[-1]
    assert values(records, "stable_rank") == [ranks(pre)[0]]
    assert values(records, "participation") == [ranks(pre)[1]]
    assert values(records, "behind") == [ranks(out)[0]]
    assert values(records, "by_layer")[-1] == ranks(pre)[0]
