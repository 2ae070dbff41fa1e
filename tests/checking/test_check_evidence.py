"""What a check does where the evidence of one rule cannot be had: it says so, and the others judge."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import normscope as ns
from normscope import checking
from normscope._errors import UsageError
from normscope.evidence import examples


class TwoFaced(nn.Module):
    """Returns a mapping of two scales in training, and one tensor, of half the size, in eval mode."""

    def __init__(self):
        super().__init__()
        self.body = examples.seeded(lambda: nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh()))

    def forward(self, x):
        y = self.body(x)
        return {"large": 2 * y, "small": y} if self.training else 0.5 * y


def two_faced(*, spoilt, **options):
    model = TwoFaced().train()
    loader = [x for x, _ in examples.data((12,), batches=10)]
    for x in loader * 6:
        model(x)
    if spoilt:
        model.body[1].momentum = 0.99
    return ns.Case(
        model,
        lambda model, x: (model(x)["large"] - 1).square().mean(),
        loader,
        torch.optim.SGD(model.parameters(), lr=1e-3),
        loader[:3],
        **options,
    )


def test_a_model_that_returns_something_else_in_eval_mode_is_judged_by_the_rules_that_need_no_evaluation():
    found = checking.check(two_faced(spoilt=True))
    assert "NS108" in [finding.code for finding in found]
    unmeasured = dict(found.unmeasured)
    assert {"gap", "NS129", "NS130"} <= set(unmeasured) <= {"gap", "NS102", "NS129", "NS130"}
    assert all("give Case(eval_loss_fn=...)" in why for why in unmeasured.values())
    assert found.gap is None
    quiet = checking.check(two_faced(spoilt=False), ["NS108"], gap=False)
    assert (list(quiet), quiet.unmeasured) == ([], ())


def test_the_loss_of_evaluation_is_taken_wherever_the_model_is_in_eval_mode():
    def eval_loss_fn(model, x):
        assert not model.training
        return (model(x) * 4 - 1).square().mean()

    case = two_faced(spoilt=False, eval_loss_fn=eval_loss_fn)
    case.averaged = two_faced(spoilt=False).model
    gap = checking.check(case, ["NS103"]).gap
    assert gap.of("other code that depends on the mode") == pytest.approx(0.0, abs=1e-5)  # 4 * 0.5 is 2: the same loss
    assert sum(share.loss for share in gap.shares) == pytest.approx(gap.total, abs=1e-6)
    with torch.no_grad():
        wanted = sum(float(eval_loss_fn(case.model.eval(), x)) for x in case.eval_loader) / 3
    assert gap.eval == pytest.approx(wanted, rel=1e-5)


def test_a_loss_of_evaluation_is_a_function():
    with pytest.raises(UsageError, match="eval_loss_fn must be a function"):
        two_faced(spoilt=False, eval_loss_fn=0.5)


@pytest.mark.parametrize(("samples", "found"), [(41, ["NS104"]), (40, [])])
def test_a_last_batch_of_one_sample_is_found_though_torch_refuses_it(samples, found):
    model = examples.seeded(lambda: examples.mlp(depth=2)).train()
    x, y = (torch.cat(part)[:samples] for part in zip(*examples.data((12,), batches=2), strict=True))
    loader = DataLoader(TensorDataset(x, y), 8)
    case = ns.Case(model, examples.loss_fn, loader, torch.optim.SGD(model.parameters(), lr=0.1))
    checked = checking.check(case, ignore=["NS105"])  # 8 samples a batch are few, and it says so
    assert [finding.code for finding in checked if finding.code == "NS104"] == found
    assert checked.unmeasured == ()


def test_a_set_up_that_does_not_train_is_refused_as_a_whole():
    case = two_faced(spoilt=False)
    case.loss_fn = lambda model, x: model(x)["missing"].mean()
    with pytest.raises(UsageError, match="training step 0 raised KeyError"):
        checking.check(case)


def penalised(model, batch):
    """Return a loss whose gradient by the input is held near 1."""
    x = batch[0].clone().requires_grad_()
    scores = model(x)
    (slope,) = torch.autograd.grad(scores.square().sum(), x, create_graph=True)
    return nn.functional.cross_entropy(scores, batch[1]) + 0.01 * (slope.flatten(1).norm(dim=1) - 1).square().mean()


@pytest.mark.parametrize("net", [examples.mlp, examples.cnn])
def test_a_loss_may_take_gradients_itself_in_every_pass(net):
    case = examples.healthy(net, trained=30)
    plain = checking.check(case)
    case = examples.healthy(net, trained=30)
    case.loss_fn, case.averaged = penalised, examples.healthy(net, trained=20).model
    found = checking.check(case)
    assert (plain.unmeasured, found.unmeasured) == ((), ())
    assert {finding.code for finding in plain} <= {finding.code for finding in found}
    assert found.gap.of("averaged weights") != 0
    assert all(parameter.grad is None for parameter in case.model.parameters())


@pytest.mark.parametrize(
    ("given", "select", "said"),
    [
        ("", "NS130", "without eval_loader both losses are of training batches"),
        ("", "NS103", "without eval_loader the gap between training and evaluation is not measured"),
        (", None, loader", "NS103", "as eval_loader is the loader itself, both losses are of training batches"),
        (", None, list(loader)", "NS103", ""),
    ],
)
def test_a_note_says_of_which_data_the_gap_is(run, write, given, select, said):
    path = write(f"""
def make():
    model, loader = trained(), data()
    return ns.Case(model, loss_fn, loader{given})
""")
    document = json.loads(run("check", f"{path}:make", "--json", "--select", select).stdout)
    notes = [note for note in document["notes"] if "eval_loader" in note]
    assert len(notes) == bool(said)
    assert all(note.startswith(said) for note in notes)
    assert (document["gap"] is None) is ("not measured" in said)
