"""What the first update changes, against an update made by hand, and the signs of a warm-up."""

import copy

import pytest
import torch

from kit.findings import finding_of, is_quiet
from normscope.evidence import Case, Evidence, example_transformers as nets, has_learnt

CODE = "NS140"


def chain(**options):
    return nets.transformer(nets.Chain, **{"norms": 22, "lr": 0.03} | options)


def changed_by_hand(case):
    model, batch = copy.deepcopy(case.model), case.loader[0]
    optimizer = type(case.optimizer)(model.parameters(), lr=case.optimizer.param_groups[0]["lr"])
    before = model(batch[:, :-1]).detach()
    nets.next_words(model, batch).backward()
    optimizer.step()
    return float((model(batch[:, :-1]).detach() - before).norm() / before.norm())


def test_the_change_is_that_of_one_update_made_by_hand():
    case = chain()
    finding = finding_of(case, CODE)
    assert finding.measured == pytest.approx(changed_by_hand(case), rel=1e-4)
    assert finding.places == tuple(f"norms.{index}" for index in range(22))
    assert finding.details == {"norms": 22}
    assert f"changes the outputs by {finding.measured:.2g} of their length" in finding.message


def test_dropout_does_not_count_as_a_change():
    case = nets.transformer(nets.Encoder, depth=1, first=False, final=False, dropout=0.5, lr=0.0)
    assert Evidence(case).first_update == (0.0, False)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1.0),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.03, 100),
    ],
)
def test_a_scheduler_is_a_sign(schedule):
    case = chain()
    schedule(case.optimizer)
    for group in case.optimizer.param_groups:
        group["lr"] = 0.03
    assert is_quiet(case, CODE)


def test_an_optimizer_that_has_made_updates_is_a_sign():
    case = chain(lr=1e-6)
    for index in range(11):
        nets.next_words(case.model, case.loader[index % 4]).backward()
        case.optimizer.step()
    case.optimizer.param_groups[0]["lr"] = 0.03
    assert is_quiet(case, CODE)


def test_a_network_that_has_learnt_is_past_its_first_steps():
    case = chain(lr=3e-3, trained=60)
    assert has_learnt(case)
    assert is_quiet(Case(case.model, case.loss_fn, case.loader, torch.optim.SGD(case.model.parameters(), 30.0)), CODE)


def test_norms_are_counted_along_one_stream_and_not_of_two():
    """An encoder and a decoder of 6 blocks each: 12 norms on the one stream, 18 on the other."""
    torch.manual_seed(0)
    model = torch.nn.Transformer(16, 2, 6, 6, 32, 0.0, batch_first=True)
    x = torch.randn(4, 5, 16)
    case = Case(model, lambda m, b: m(b, b).square().mean(), [x] * 3, torch.optim.SGD(model.parameters(), 0.1))
    post = Evidence(case).residuals.post
    assert post == tuple(f"decoder.layers.{index}.norm{number}" for index in range(6) for number in (1, 2, 3))
