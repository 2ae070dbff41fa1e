"""What holds of the network of every cell that is built and trained by the shared parts, whatever the study."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kit.small_studies import SMALL, settings
from normscope import studies
from normscope.studies import AbstractTraining
from normscope.studies.lab.arms import schedule
from normscope.studies.lab.data import load
from normscope.studies.lab.models import Block, Place
from normscope.studies.lab.train import evaluate

TRAINING = [study for study in studies.all() if isinstance(study, AbstractTraining)]
every_training = pytest.mark.parametrize("study", TRAINING, ids=lambda study: study.CODE)
ACTIVATIONS = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "gelu": nn.GELU,
    "leaky-relu": nn.LeakyReLU, "linear": nn.Identity,
}  # fmt: skip
DATA = load("digits")


def cells_of(study):
    """The cells of one seed of the quick preset that are no more than the shared parts, of the arms in words."""
    return [cell for cell in study.cells("quick", [0], DATA) if study.trains(cell) and cell.arm in study.ARMS]


def plain_network(study):
    return type(study).network is AbstractTraining.network


@every_training
def test_a_network_is_what_its_cell_says(study):
    for cell in cells_of(study) if plain_network(study) else ():
        said = {"activation": "relu", "gain": 2.0, **cell.settings["network"], **study.sizes(cell)}
        model = study.network(cell, DATA, "cpu")
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        if said["name"] == "mlp":
            assert len(blocks) == said["depth"]
        for index, block in enumerate(blocks):
            weight = block.linear.weight.detach()
            if said["name"] == "mlp":
                assert len(weight) == said["width"]
            assert type(block.activation) is ACTIVATIONS[said["activation"]]
            fan_in, error = weight[0].numel(), math.sqrt(2 / weight.numel())
            assert float(weight.var()) * fan_in == pytest.approx(said["gain"], rel=5 * error)
            spatial = weight.dim() == 4
            assert type(block.norm) is type(study.norm(cell)(Place(index, len(weight), spatial=spatial)))
        assert all(module.training for module in model.modules())


@every_training
def test_an_arm_has_the_norm_that_its_words_say(study):
    for cell in cells_of(study):
        words = study.wording.arms[cell.arm]
        normed = [module for module in study.network(cell, DATA, "cpu").modules() if isinstance(module, _BatchNorm)]
        if words.startswith("no batch norm"):
            assert not normed, words
        if words.startswith("batch norm"):
            assert normed, words


@every_training
def test_arms_share_their_initial_weights(study):
    """Where two arms have layers of the same shapes; seeds do not share theirs."""
    weights = {}
    for cell in cells_of(study):
        linears = [m.weight for m in study.network(cell, DATA, "cpu").modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        if linears and plain_network(study):
            sizes = {**study.sizes(cell)}
            key = json.dumps([cell.point, sizes.get("gain"), [list(weight.shape) for weight in linears]])
            first = weights.setdefault(key, linears)
            assert all(torch.equal(a, b) for a, b in zip(first, linears, strict=True))
    cell, other = (study.cells("quick", [seed], DATA)[0] for seed in (0, 1))
    if study.trains(cell):
        pair = [next(study.network(found, DATA, "cpu").parameters()) for found in (cell, other)]
        assert not torch.equal(*pair)


@every_training
def test_the_optimizer_has_the_rate_of_the_cell(study):
    for cell in cells_of(study):
        given, options = {**cell.settings, **cell.point}, study.options(cell)
        model = study.network(cell, DATA, "cpu")
        other = options.get("optimizer")
        if other is not None:
            made = other(model)
            rates = {group["lr"] for group in made.param_groups}
            learnt = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
            assert learnt <= {id(parameter) for group in made.param_groups for parameter in group["params"]}
        else:
            rates = {options.get("lr", schedule(cell)["lr"])}
        assert all(rate > 0 for rate in rates)
        if "lr" in given and "lr" not in options and other is None:
            assert rates == {given["lr"]}
        if "lr" in cell.point:
            assert cell.point["lr"] in rates


@every_training
def test_looking_at_a_network_leaves_it_as_it_was(study):
    """Modes and parameters: behind an evaluation, with buffers too, and behind measurements around the training."""
    small = {**settings(study.CODE)} if study.CODE in SMALL else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(study), "PRESETS", {"quick": small or study.PRESETS["quick"]})
        cells = cells_of(study)
    for cell in {cell.arm: cell for cell in cells}.values():
        model, split = study.network(cell, DATA, "cpu"), study.split(cell, DATA, "cpu")
        for number, module in enumerate(model.modules()):  # modes that are not all the same
            module.training = number % 3 != 2
        modes = [module.training for module in model.modules()]
        state = copy.deepcopy(model.state_dict())
        evaluate(model, split, cell.id, 0)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        model.train()
        for look in (study.before, study.after):
            list(look(cell, model, split))
            assert all(module.training for module in model.modules()), look.__name__
            learnt = dict(model.named_parameters())
            assert all(torch.equal(value, state[name]) for name, value in learnt.items()), look.__name__
