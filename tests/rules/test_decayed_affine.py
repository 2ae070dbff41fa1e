"""Decay on gains and shifts: whose, how much, and how the groups are parted."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from kit.own_norms import Root
from normscope.evidence import Case, example_transformers as nets, examples


def grouped(*decays, frozen=()):
    """A model of norms alone, each with a group of its own."""
    norms = [
        examples.batch_norm(3),
        nn.LayerNorm(3),
        nn.GroupNorm(1, 3),
        nn.BatchNorm1d(3, affine=False),
        nn.Linear(3, 3),
    ]
    for index in frozen:
        norms[index].weight.requires_grad_(False)
    groups = [
        {"params": list(norm.parameters()), "weight_decay": decay}
        for norm, decay in zip(norms, decays, strict=True)
        if list(norm.parameters())
    ]
    return Case(
        nn.Sequential(*norms), examples.mean_square, [examples.two_values(1.0, 2.0, 8, 3)] * 3, torch.optim.SGD(groups)
    )


def test_the_decayed_norms_are_named_with_the_largest_decay_and_their_numbers():
    finding = finding_of(grouped(0.1, 0.0, 0.3, 0.5, 0.9), "NS123")
    assert finding.places == ("0", "2")
    assert finding.measured == 0.3
    assert finding.details == {"numbers": 12.0}
    assert finding.message == "gain and shift of 2 norms are under a weight decay of 0.3"


def test_parameters_without_a_gradient_do_not_decay():
    finding = finding_of(grouped(0.1, 0.0, 0.0, 0.0, 0.0, frozen=[0]), "NS123")
    assert finding.details == {"numbers": 3.0}
    assert is_quiet(grouped(0.0, 0.0, 0.0, 0.0, 0.9), "NS123")


@pytest.mark.parametrize("named", [False, True])
def test_moving_gain_and_shift_keeps_every_parameter_once_and_every_option(named):
    case = examples.healthy(examples.cnn)
    given = case.model.named_parameters() if named else case.model.parameters()
    case.optimizer = torch.optim.AdamW(given, lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))
    assert "4 parameters" in repaired(case, "NS123")
    groups = case.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(group["lr"] == 0.02 and group["betas"] == (0.8, 0.9) for group in groups)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in case.model.parameters())
    assert {id(p) for p in groups[1]["params"]} == {id(p) for m in examples.norms(case.model) for p in m.parameters()}
    if named:
        names = dict(case.model.named_parameters())
        assert all(names[n] is p for g in groups for n, p in zip(g["param_names"], g["params"], strict=True))


def test_a_group_that_is_emptied_goes():
    case = grouped(0.1, 0.0, 0.3, 0.0, 0.9)
    repaired(case, "NS123")
    assert [(len(g["params"]), g["weight_decay"]) for g in case.optimizer.param_groups] == [
        (2, 0.0), (2, 0.9), (2, 0.0), (2, 0.0),
    ]  # fmt: skip


def one_norm(kind, *, lr, decay, **options):
    model = nn.Sequential(examples.batch_norm(3)).train()
    optimizer = kind(model.parameters(), lr=lr, weight_decay=decay, **options)
    return Case(model, examples.mean_square, [examples.two_values(1.0, 2.0, 8, 3)] * 3, optimizer)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize(("lr", "decay"), [(0.01, 1e-8), (1e-6, 0.01), (1e-12, 1.0), (0.0, 0.1)])
def test_a_decay_that_a_step_rounds_away_is_none(kind, lr, decay):
    assert is_quiet(one_norm(kind, lr=lr, decay=decay), "NS123")


def test_the_bound_is_the_decay_that_float32_rounds_away_at_this_learning_rate():
    finding = finding_of(one_norm(torch.optim.SGD, lr=0.01, decay=1e-3), "NS123")
    assert finding.bound == pytest.approx(2**-24 / 0.01)
    assert f"by {1 - torch.exp(torch.tensor(-1.0)):.2g} of themselves in 100,000" in finding.cost  # 0.01 * 0.001 * 1e5
    gain = torch.ones(1)
    assert torch.equal(gain * (1 - 0.4 * 2**-24), gain)


def test_the_largest_rate_of_a_schedule_counts():
    case = one_norm(torch.optim.SGD, lr=0.1, decay=1e-4)
    torch.optim.lr_scheduler.LambdaLR(case.optimizer, lambda step: step / 100)  # warms up: the rate is 0 now
    assert case.optimizer.param_groups[0]["lr"] == 0
    assert finding_of(case, "NS123").measured == 1e-4


@pytest.mark.parametrize(("kind", "found"), [(torch.optim.Adam, True), (torch.optim.AdamW, False)])
def test_adam_divides_the_decay_by_the_root_of_the_mean_squared_gradient(kind, found):
    case = one_norm(kind, lr=1e-3, decay=1e-6)  # 1e-9 a step
    assert is_quiet(case, "NS123")
    for parameter in case.model.parameters():
        case.optimizer.state[parameter] = {
            "step": torch.tensor(5.0),
            "exp_avg": torch.zeros(3),
            "exp_avg_sq": torch.full((3,), 1e-10),  # gradients of 1e-5: a step takes off 1e-4
        }
    assert is_quiet(case, "NS123") is not found


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.0), (0.8, 0.3)])
def test_the_shrinking_is_that_of_the_optimizer(momentum, dampening):
    """Torch's own steps on a gain without any gradient but that of the decay."""
    decay, rate, steps = 0.01, 0.002, 4000
    norm = nn.LayerNorm(3)
    options = {"lr": rate, "weight_decay": decay, "momentum": momentum, "dampening": dampening}
    optimizer = torch.optim.SGD([norm.weight], **options)
    for _ in range(steps):
        norm.weight.grad = torch.zeros(3)
        optimizer.step()
    share = -float(norm.weight.detach()[0].log()) / steps
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3))
    fresh = torch.optim.SGD(model.parameters(), **options)
    finding = finding_of(Case(model, examples.mean_square, [torch.randn(8, 3)] * 3, fresh), "NS123")
    assert decay * 2**-24 / finding.bound == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm, Root])
def test_layer_and_rms_norms_of_any_class_are_seen_and_mended(kind):
    case = nets.transformer(norm=kind, depth=1)
    finding = finding_of(case, "NS123")
    assert finding.places == ("blocks.0.norm1", "blocks.0.norm2", "final")
    assert finding.details["numbers"] == 3 * 16 * (2 if kind is nn.LayerNorm else 1)
    assert repaired(case, "NS123").startswith(f"moved {6 if kind is nn.LayerNorm else 3} parameters")
    assert is_quiet(case, "NS123")
