"""Comparisons of networks written in the style of public code: the arms are what they say, and the sentences agree."""

import re

import pytest
import torch
from torch.nn import functional as F

import normscope as ns
from kit.public_networks import NETWORKS, FunctionalNorms, dcgan_discriminator, dcgan_generator
from normscope.surgery import norm_sites

FORMS = ["resnet", "mobilenet", "densenet", "unet", "lstm", "tcn", "pre-norm", "convnext"]
#: Questions that together read every probe but the costliest.
QUESTIONS = ["gradients", "shift", "speed", "generalisation", "units", "affine", "gap"]


def batches(shape, count=2, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return [torch.randn(6, *shape, generator=stream) for _ in range(count)]


def loss_of(model, batch):
    output = model(batch)
    output = output[0] if isinstance(output, tuple) else output
    return (output - 0.3).square().mean()


def factory(name, seen):
    make, shape = NETWORKS[name]

    def make_case():
        model = make()
        seen.append(model)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        return ns.Case(model, loss_of, batches(shape), optimizer, batches(shape, seed=1))

    return make_case


def numbers_of(found, answer):
    """Return the numbers that a sentence gives for the two arms of its contrast, where it gives them."""
    return [found.numbers(answer)[arm] for arm in (found.pairs[0].first, found.pairs[0].second)]


# Public code calls activations as functions: the comparison says that no probe hears them.
@pytest.mark.filterwarnings("ignore:activations that are called as functions are not heard")
@pytest.mark.parametrize("name", FORMS)
def test_a_public_network_is_compared_with_itself_without_norms(name, tmp_path):
    seen = []
    found = ns.compare(factory(name, seen), seeds=1, steps=3, questions=QUESTIONS, workers=1, out=tmp_path)
    assert {"own", "none"} <= set(found.arms)
    norms = [len(norm_sites(model)) for model in seen]
    assert 0 in norms  # the arm without norms has none left
    assert max(norms) > 0
    assert found.reports["none"].counts["changed"] == max(norms)
    text = str(found)
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert {cell.arm for cell in found.store.cells()} >= {"own", "none"}
    for answer in found.answers_in_order:
        assert answer.sentence.startswith(("Described, not judged (1 seed): ", "Not measurable: "))
        for number in numbers_of(found, answer):
            assert re.fullmatch(r"|never|−?[\d.,]+(e[−-]?\d+)?.*", number), (answer.question.CODE, number)


def gan(watched):
    def make_case():
        generator, critic = dcgan_generator(), dcgan_discriminator()
        first, second = (torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.999)) for net in (generator, critic))

        def loss_g(model, batch):
            return F.softplus(-critic(model(batch))).mean()

        def loss_d(model, batch):
            fake = generator(batch).detach()
            return F.softplus(model(fake)).mean() + F.softplus(-model(torch.ones_like(fake))).mean()

        def step(model, batch):
            second.zero_grad()
            loss_d(critic, batch).backward()
            second.step()
            first.zero_grad()
            loss = loss_g(generator, batch)
            loss.backward()
            first.step()
            return loss

        latent = batches((10, 1, 1))
        if watched == "generator":
            return ns.Case(generator, loss_g, latent, first, step=step)
        return ns.Case(critic, loss_d, latent, second, step=step)

    return make_case


@pytest.mark.parametrize("watched", ["generator", "critic"])
def test_both_sides_of_a_gan_are_compared(watched, tmp_path):
    found = ns.compare(
        gan(watched), seeds=1, steps=3, questions=["gradients", "speed", "affine"], workers=1, out=tmp_path
    )
    assert {"own", "none"} <= set(found.arms)
    losses = found.evidence.select(probe="training", name="loss")
    assert losses["value"].is_finite().all()
    assert not re.search(r"\b(nan|inf|None)\b", str(found))


def test_norms_that_are_functions_are_told_before_anything_runs(tmp_path):
    def make_case():
        model = FunctionalNorms()
        return ns.Case(model, loss_of, batches((3, 16, 16)), torch.optim.SGD(model.parameters(), 0.1))

    with pytest.raises(ns.NormscopeError, match="norms only as functions, which cannot be replaced"):
        ns.compare(make_case, seeds=1, steps=3, workers=1, out=tmp_path)
    assert not (tmp_path / "run.json").exists()
