"""Shares of Jacobians by the formula; losses that take gradients by inputs in many ways, and losses that do not."""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd import grad

from kit.findings import finding_of, is_quiet
from normscope import checking
from normscope.evidence import Case, examples
from normscope.modules.state import Snapshot


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def penalty(model, x):
    x = x.detach().requires_grad_()
    y = model(x)
    (gradient,) = grad(y.sum(), x, create_graph=True)
    return y.square().mean() + (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def case_of(*modules, loss_fn=penalty, loader=None, **options):
    model = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    loader = [normal(16, 4, seed=seed) for seed in range(2)] if loader is None else loader
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01) if list(model.parameters()) else None
    return Case(model.train(), loss_fn, loader, optimizer, **options)


class LessMean(nn.Module):
    """Takes the mean of the batch off: the output of a sample falls by 1 / N with the input of each other."""

    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize("size", [4, 16, 100])
def test_a_half_lies_between_samples_where_the_mean_is_taken_off(size):
    finding = finding_of(case_of(LessMean(), loader=[normal(size, 4)] * 2), "NS134")
    assert finding.measured == pytest.approx(0.5, rel=1e-6)
    assert finding.details["error"] == pytest.approx(1, rel=1e-5)  # the sum of all outputs is 0 whatever is put in
    assert finding.places == ("",)


@pytest.mark.parametrize("size", [8, 32])
def test_the_share_of_a_batch_norm_is_that_of_its_jacobian(size):
    """Values 1 and -1: of the others only those of the same sign count, each -2 / N beside 1 - 2 / N."""
    norm = nn.BatchNorm1d(4, affine=False)
    finding = finding_of(case_of(nn.Sequential(norm), loader=[examples.two_values(0.0, 1.0, size, 4)] * 2), "NS134")
    others = (size / 2 - 1) * 2 / size
    assert finding.measured == pytest.approx(others / (others + 1 - 2 / size), rel=1e-3)
    assert finding.places == ("0",)
    assert finding.details["with_norms_fixed"] == 0.0
    assert f"{finding.measured:.0%} of these lies between samples" in finding.message


def of_stacked_columns(model, batch):
    """A residual of physics: derivatives by coordinates that are put together behind them."""
    x, t = (column.detach().requires_grad_() for column in batch.split(2, 1))
    u = model(torch.cat([x, t], 1))
    return (grad(u.sum(), t, create_graph=True)[0] - grad(u.sum(), x, create_graph=True)[0]).square().mean()


def of_mixed_samples(model, batch):
    """Between two kinds of data, after a call on each, as critics are trained."""
    other = batch.flip(0) + 1
    mixed = (0.3 * batch + 0.7 * other).requires_grad_()
    difference = model(other).mean() - model(batch).mean()
    (slope,) = torch.autograd.grad(outputs=model(mixed).sum(), inputs=[mixed], create_graph=True)
    return difference + (slope.norm(dim=1) - 1).square().mean()


def of_a_backward_pass(model, batch):
    x = batch.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a cycle of references
        model(x).sum().backward(create_graph=True)
    return (x.grad.norm(dim=1) - 1).square().mean()


def critic():
    return examples.seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)))


@pytest.mark.parametrize("loss_fn", [penalty, of_stacked_columns, of_mixed_samples, of_a_backward_pass])
def test_losses_that_take_gradients_by_inputs_in_any_way_are_seen(loss_fn):
    case = case_of(critic(), loss_fn=loss_fn)
    before = Snapshot(case.model)
    assert finding_of(case, "NS134").places == ("1",)
    assert before.differences() == []
    case.model[1] = nn.LayerNorm(8)
    assert is_quiet(case, "NS134")


def test_a_penalty_in_the_step_is_seen():
    case = case_of(critic(), loss_fn=examples.mean_square)
    assert is_quiet(case, "NS134")
    examples.stepped(case, lambda model, batch: [penalty(model, batch)])
    assert finding_of(case, "NS134").places == ("1",)


def adversarial(model, batch):
    """Moves inputs along a gradient that is not trained on."""
    x = batch.detach().requires_grad_()
    (gradient,) = grad(model(x).square().mean(), x)
    return model(x + 0.1 * gradient.sign()).square().mean()


def of_parameters(model, batch):
    """A gradient by parameters that is trained on, as where it is learnt to learn."""
    weight = model[0].weight
    return grad(model(batch).square().mean(), weight, create_graph=True)[0].square().mean()


@pytest.mark.parametrize("loss_fn", [adversarial, of_parameters, examples.mean_square])
def test_other_gradients_are_left(loss_fn):
    assert is_quiet(case_of(critic(), loss_fn=loss_fn), "NS134")


def test_norms_in_eval_mode_couple_nothing():
    case = case_of(critic())
    case.model[1].eval()
    assert is_quiet(case, "NS134")


class Molecule(nn.Module):
    """Energies of atoms that act on each other, which is what forces are for."""

    def __init__(self, norm):
        super().__init__()
        self.inlet, self.norm, self.head = nn.Linear(4, 8), norm, nn.Linear(8, 1)

    def forward(self, positions):
        near = torch.exp(-(positions[:, None] - positions).square().sum(2))
        return self.head(torch.tanh(self.norm(self.inlet(near @ positions))))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(8), nn.BatchNorm1d(8)])
def test_atoms_that_act_on_each_other_are_no_defect(norm):
    assert is_quiet(case_of(examples.seeded(lambda: Molecule(norm))), "NS134")


class Standardised(nn.Module):
    """A norm of the user's own."""

    def forward(self, x):
        return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


def test_norms_of_the_users_own_couple_too_alone_and_beside_torchs():
    linear = nn.Linear(4, 4)
    for norms, places in ((Standardised(),), ("1",)), ((Standardised(), nn.Tanh(), nn.BatchNorm1d(4)), ("1", "3")):
        assert finding_of(case_of(linear, *norms, nn.Tanh(), nn.Linear(4, 1)), "NS134").places == places


def test_dropout_and_outputs_without_samples_are_no_obstacle():
    model = examples.seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1)))
    assert finding_of(case_of(model), "NS134").places == ("2",)

    class Total(nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = critic()

        def forward(self, x):
            return self.critic(x).sum()

    found = checking.check(case_of(Total()), ["NS134"], gap=False)
    assert (list(found), found.unmeasured) == ([], ())
