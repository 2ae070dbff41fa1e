"""Gradients by placement: the measured norms are autograd's, and the judge finds planted powers of the depth."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kit.planted_evidence import Plant, jitter, part, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope._errors import UsageError
from normscope.records import answer, standing
from normscope.studies.lab import token_norms
from normscope.studies.lab.data import load
from normscope.studies.lab.last_gradients import last_gradients
from normscope.studies.lab.transformer import transformer

SLUG = "pre-ln-post-ln-gradients"
STUDY = studies.get(SLUG)


def planted(post=0.0, pre=-0.5, *, gpt2=(0.0, 0.0), spread=0.02, ratio=1.0):
    """Gradient norms that go as a power of the depth, the same in every set-up but GPT-2's."""
    plant = Plant(settings(SLUG, depths=[8, 16, 32, 64], shallow=[1, 2, 4, 8]))
    for seed in plant.seeds:
        for arm, point in STUDY.grid(plant.settings):
            own = dict(zip(("post", "pre"), gpt2 if point["setup"] == "gpt2" else (post, pre), strict=True))[arm]
            value = (ratio if arm == "post" else 1.0) * point["blocks"] ** own
            for name in ("position", "batch", "stream"):
                wobble = math.exp(jitter(seed, spread, round(point["blocks"]) + len(arm)))
                plant.add(arm, seed, name, value * wobble, probe="gradient", **point)
    return plant.evidence()


@pytest.mark.parametrize(
    ("post", "pre", "word"),
    [
        (0.0, -0.5, "holds"),
        (0.3, -0.3, "holds"),
        (0.0, 0.0, "no effect that matters"),
        (0.0, -0.2, "no effect that matters"),
        (-0.5, 0.0, "opposite"),
    ],
)
def test_the_judge_finds_what_was_planted(post, pre, word):
    assert STUDY.judge(planted(post, pre)).outcome.value == word


@pytest.mark.parametrize(("post", "pre", "words"), [
    (0.0, -0.5, ("holds", "holds")), (0.3, -0.3, ("opposite", "opposite")), (0.05, -0.55, ("holds", "holds")),
])  # fmt: skip
def test_each_power_is_held_against_theory(post, pre, words):
    found = words_by_name(STUDY.judge(planted(post, pre)))
    assert (found["post, theory"], found["pre, theory"]) == words


def test_the_answer_names_the_set_up_on_which_it_depends():
    verdict = STUDY.judge(planted(gpt2=(0.0, 0.0)))
    assert standing(verdict) == "depends on the set-up"
    assert "no effect that matters with the initial weights of GPT-2" in answer(verdict)


@pytest.mark.parametrize(("ratio", "word"), [(8.0, "holds"), (1 / 8, "no effect that matters"), (1 / 64, "opposite")])
def test_sizes_are_compared_at_the_largest_depth(ratio, word):
    """There pre-norm has 64 to the power -1/2, an eighth of its gradient."""
    assert part(STUDY.judge(planted(ratio=ratio)), "size, theory").outcome.value == word


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_norms_are_those_of_autograd_at_each_position(placement):
    data, source = load("text"), torch.Generator().manual_seed(3)
    model = transformer(
        data, token_norms.layer(), seed=0, width=12, blocks=2, heads=2, context=8, placement=placement, init="xavier"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=source)
    x, y = (torch.randint(0, data.classes, (2, 4), generator=source) for _ in range(2))
    weight = model.blocks[-1].feedforward.contract.weight
    norms = [
        float(torch.autograd.grad(cross_entropy(model(x)[n, :, t], y[n, t]), weight)[0].norm())
        for n in range(2)
        for t in range(4)
    ]
    whole = float(torch.autograd.grad(cross_entropy(model(x), y), weight)[0].norm())
    found = last_gradients(model, x, y)
    assert found["position"] == pytest.approx(sum(norms) / 8, rel=1e-5)
    assert found["batch"] == pytest.approx(whole, rel=1e-4)
    h = model.stream(x)
    for block in model.blocks:
        h = block(h)
    assert found["stream"] == pytest.approx(float(h.detach().square().mean()), rel=1e-5)


def test_with_queries_and_keys_of_zero_attention_averages_and_the_set_ups_differ_as_named():
    where = {"blocks": 4}
    found = {
        setup: {
            arm: values(cell_records(SLUG, arm, where | {"setup": setup}), "position")[0] for arm in ("post", "pre")
        }
        for setup in ("theory", "true labels", "usual", "gpt2", "no final norm")
    }
    assert found["theory"]["post"] == found["no final norm"]["post"]
    assert len({round(each["pre"], 12) for each in found.values()}) == 5


def test_a_data_set_of_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match="measures the loss at each position of a text"):
        STUDY.run(data="digits", out=tmp_path)
