"""RMS norm against layer norm: the mean is measured and removed as said, and the judge finds what was planted."""

import math

import pytest
import torch

from kit.planted_evidence import Plant, jitter, part, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.rmsnorm_equals_layernorm import identity_error
from normscope.studies.lab import token_norms
from normscope.studies.lab.data import load
from normscope.studies.lab.stream_mean import centred_inputs, mean_shares, norm_places, without_centring
from normscope.studies.lab.transformer import transformer

SLUG = "rmsnorm-equals-layernorm"
STUDY = studies.get(SLUG)
RATES = [0.001, 0.003, 0.01]


def jolted(data="text", norm=token_norms.layer, **options):
    """A small network with no parameter at its initial value."""
    source = torch.Generator().manual_seed(7)
    options = {"width": 16, "blocks": 2, "heads": 2, "context": 8, "init": "xavier"} | options
    model = transformer(load(data), norm(), seed=0, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=source)
    return model


def planted(factor=1.0, *, share=1.0, centred=1.0, error=1e-14):
    """Losses with RMS norm a factor above layer norm's, whose best rate is another."""
    plant = Plant(settings(SLUG, lrs=RATES, steps=200))
    chance = 1 / plant.settings["network"]["width"]
    for seed in plant.seeds:
        for arm, best in (("layer", 0.003), ("rms", 0.01)):
            for lr in RATES:
                loss = 2.5 * (1 if lr == best else 1.1) * math.exp(jitter(seed, 0.02)) * (factor if arm == "rms" else 1)
                loss *= math.exp(jitter(seed, 0.001, len(arm)))
                plant.end(arm, seed, test_loss=loss, val_loss=loss, step=200, lr=lr)
                for step in (0, 200):
                    value = chance * share * math.exp(jitter(seed, 0.05, step + len(arm)))
                    plant.add(arm, seed, "mean_share", value, step=step, probe="stream", site="norm", lr=lr)
                if arm == "rms":
                    plant.add(
                        arm,
                        seed,
                        "centred_loss",
                        loss * centred * math.exp(jitter(seed, 0.001, 9)),
                        step=200,
                        probe="stream",
                        lr=lr,
                    )
                else:
                    plant.add(arm, seed, "identity_error", error, step=200, probe="stream", lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(("factor", "word"), [(1.0, "holds"), (1.005, "holds"), (1.03, "opposite"), (0.97, "opposite")])
def test_the_judge_finds_what_was_planted(factor, word):
    assert STUDY.judge(planted(factor)).outcome.value == word


def test_each_arm_is_read_at_its_own_best_rate():
    words = words_by_name(STUDY.judge(planted()))
    assert words["own best"] == "holds"
    assert (words["rate 0.003"], words["rate 0.01"]) == ("opposite", "opposite")


@pytest.mark.parametrize(("share", "word"), [(1.0, "holds"), (1.6, "holds"), (4.0, "opposite"), (0.2, "opposite")])
def test_the_share_of_the_mean_is_held_against_chance(share, word):
    assert part(STUDY.judge(planted(share=share)), "share after training, rms").outcome.value == word


@pytest.mark.parametrize(("centred", "word"), [(1.0, "holds"), (1.1, "opposite")])
def test_the_use_of_the_mean_is_found(centred, word):
    assert part(STUDY.judge(planted(centred=centred)), "centred").outcome.value == word


@pytest.mark.parametrize(("error", "word"), [(1e-14, "exact"), (1e-6, "false")])
def test_the_identity_is_judged_by_its_largest_error(error, word):
    assert part(STUDY.judge(planted(error=error)), "identity").outcome.value == word


@pytest.mark.parametrize("data", ["text", "digits"])
def test_a_pre_norm_network_of_layer_norms_is_a_network_of_rms_norms(data):
    model = jolted(data)
    split = load(data).split(0, **({"context": 8} if data == "text" else {}))
    assert identity_error(model, split) < 1e-12
    with torch.no_grad():
        model.blocks[0].feedforward.contract.bias += 1.0  # a shift of all features alike, which layer norm takes out
    assert identity_error(model, split) < 1e-12
    assert not any(isinstance(norm, torch.nn.LayerNorm) for _, norm in norm_places(without_centring(model)))


def test_shares_are_those_of_the_stream():
    model = jolted()
    x = torch.randint(0, 96, (4, 8), generator=torch.Generator().manual_seed(0))
    shares = mean_shares(model, x)
    assert list(shares) == [name for name, _ in norm_places(model)]
    stream = model.stream(x).detach().double()
    expected = float(stream.mean(-1).square().mean() / stream.square().mean())
    assert shares["blocks.0.attention_norm"] == pytest.approx(expected, rel=1e-6)
    assert all(share == pytest.approx(0, abs=1e-10) for share in mean_shares(without_centring(model), x).values())


def test_centred_inputs_change_rms_norms_and_no_layer_norms():
    x = torch.randint(0, 96, (4, 8), generator=torch.Generator().manual_seed(0))
    for norm, alike in ((token_norms.layer, True), (token_norms.rms, False)):
        model = jolted(norm=norm)
        before = model(x)
        with centred_inputs(model):
            inside = model(x)
        assert torch.equal(model(x), before)
        assert torch.allclose(inside, before, rtol=1e-4, atol=1e-4) is alike


def test_a_cell_records_what_its_arm_has():
    layer, rms = (cell_records(SLUG, arm) for arm in ("layer", "rms"))
    assert values(layer, "identity_error")[0] < 1e-9
    assert values(rms, "centred_loss")[0] > 0
    assert values(layer, "mean_share")[0] == values(rms, "mean_share")[0]  # the same embeddings
