"""Whether a network is as it was made: by its buffers, not by its gains, and where those do not tell by its loss."""

from functools import partial

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet
from normscope import checking
from normscope.evidence import Evidence, as_made, examples


def drawn_gains(model):
    for norm in examples.norms(model):
        nn.init.normal_(norm.weight, 1.0, 0.02, generator=torch.Generator().manual_seed(4))


def drawn_shifts(model):
    for norm in examples.norms(model):
        nn.init.uniform_(norm.bias, -0.1, 0.1, generator=torch.Generator().manual_seed(4))


def shifts_of_three(model):
    for norm in examples.norms(model):
        nn.init.constant_(norm.bias, 3.0)


def new_buffers(model):
    for norm in examples.norms(model):
        norm.reset_running_stats()


@pytest.mark.parametrize("change", [drawn_gains, drawn_shifts, shifts_of_three])
@pytest.mark.parametrize("net", examples.NETS)
def test_a_new_network_is_new_whatever_its_gains_and_shifts(net, change):
    case = examples.healthy(net, trained=0, change=change)
    assert Evidence(case).untrained
    assert is_quiet(case, "NS109")


def test_a_new_network_without_gains_is_new():
    case = examples.healthy(examples.mlp, trained=0, norm=partial(nn.BatchNorm1d, affine=False))
    assert Evidence(case).untrained
    assert is_quiet(case, "NS109")


@pytest.mark.parametrize("options", [{}, {"norm": partial(nn.BatchNorm1d, affine=False)}])
def test_learnt_weights_with_the_buffers_of_a_new_network_are_an_error(options):
    case = examples.healthy(examples.mlp, change=new_buffers, **options)
    assert not Evidence(case).untrained
    assert finding_of(case, "NS109").severity.value == "error"


def test_a_count_or_the_state_of_an_optimizer_shows_training():
    case = examples.healthy(examples.mlp, trained=0)
    case.model[1].num_batches_tracked.fill_(1)
    assert not Evidence(case).untrained
    case = examples.healthy(examples.mlp, trained=0)
    case.optimizer.state[case.model[0].weight] = {"momentum_buffer": torch.zeros(16, 12)}
    assert not Evidence(case).untrained


def test_a_checkpoint_shows_training_by_shifts_that_differ():
    fresh = examples.healthy(examples.cnn, trained=0, change=drawn_gains).model.state_dict()
    assert as_made({"1": {key[2:]: value for key, value in fresh.items() if key.startswith("1.")}})
    assert not checking.check_state(fresh, ["NS109"])
    learnt = examples.healthy(examples.cnn, change=new_buffers).model.state_dict()
    assert [finding.severity.value for finding in checking.check_state(learnt, ["NS109"])] == ["error"]
