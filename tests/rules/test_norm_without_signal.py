"""What comes through norms of each class: shares and responses by hand."""

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet
from kit.foreign_norms import BatchNormAct2d, GemmaRMSNorm, GlobalResponseNorm, LayerNorm, LlamaRMSNorm, PixelNorm
from normscope.evidence import Case, answers, examples
from normscope.records import Severity


def on_data(norm, shape, *, scale=1.0, shift=0.0, then=(), size=16):
    """A norm on normal values of this scale."""
    stream = torch.Generator().manual_seed(0)
    loader = [scale * torch.randn(size, *shape, generator=stream) + shift for _ in range(3)]
    model = nn.Sequential(norm, *then).train()
    parameters = [*model.parameters()] or [torch.zeros(1, requires_grad=True)]
    return Case(model, examples.mean_square, loader, torch.optim.SGD(parameters, lr=0.0))


MUTE = [
    (nn.GroupNorm(8, 8), (8, 1, 1), "a constant"),
    (nn.LayerNorm(1), (6, 1), "a constant"),
    (LayerNorm(1, data_format="channels_last"), (6, 1), "a constant"),
    (nn.GroupNorm(4, 8), (8,), "signs alone"),
    (nn.GroupNorm(8, 8), (8, 2), "signs alone"),
    (nn.InstanceNorm1d(8), (8, 2), "signs alone"),
    (nn.LayerNorm(2), (6, 2), "signs alone"),
    (nn.RMSNorm(1), (6, 1), "signs alone"),
    (LlamaRMSNorm(1), (6, 1), "signs alone"),
]


@pytest.mark.parametrize(("norm", "shape", "what"), MUTE)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (300.0, 100.0)])
def test_a_norm_of_one_value_puts_out_a_constant_and_of_two_their_signs(norm, shape, what, scale, shift):
    finding = finding_of(on_data(norm, shape, scale=scale, shift=shift), "NS138")
    assert finding.places == ("0",)
    assert finding.measured < 0.1
    assert finding.bound == 0.3
    assert finding.message.startswith(f"1 norm puts out {what}: ")


def test_a_batch_of_two_makes_a_batch_norm_of_vectors_a_sign():
    assert "signs" in finding_of(on_data(nn.BatchNorm1d(8), (8,), size=2), "NS138").message
    assert is_quiet(on_data(nn.BatchNorm1d(8), (8,), size=3), "NS138")
    assert is_quiet(on_data(nn.BatchNorm2d(8), (8, 2, 2), size=2), "NS138")


LOUD = [
    (nn.GroupNorm(4, 8), (8, 3, 3)),
    (nn.GroupNorm(4, 12), (12,)),
    (nn.LayerNorm(3), (6, 3)),
    (nn.RMSNorm(2), (6, 2)),
    (nn.InstanceNorm2d(4), (4, 3, 3)),
    (nn.BatchNorm2d(4), (4, 3, 3)),
    (nn.BatchNorm1d(4, affine=False), (4,)),
    (BatchNormAct2d(4), (4, 3, 3)),
    (PixelNorm(), (4, 3, 3)),
    (GlobalResponseNorm(4), (4, 3, 3)),
    (nn.LocalResponseNorm(3), (6, 3, 3)),
    (GemmaRMSNorm(8), (8,)),
]


@pytest.mark.parametrize(("norm", "shape"), LOUD)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (300.0, 100.0)])
def test_norms_that_let_a_signal_through_are_left_in_peace(norm, shape, scale, shift):
    assert is_quiet(on_data(norm, shape, scale=scale, shift=shift), "NS138")


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(12), nn.LayerNorm(12), nn.GroupNorm(1, 12), nn.RMSNorm(12, eps=1e-5)])
@pytest.mark.parametrize("variance", [1e-8, 4e-6, 9e-6])
def test_the_share_that_eps_leaves_is_var_over_var_plus_eps(norm, variance):
    signs = torch.tensor([-1.0, 1.0])
    x = variance**0.5 * (signs.repeat(8)[:, None] * signs.repeat(6))  # the same variance by rows and by columns
    case = on_data(norm, (12,))
    case.loader = [x] * 3
    finding = finding_of(case, "NS138")
    assert finding.measured == pytest.approx(variance / (variance + 1e-5), rel=1e-3)
    assert finding.bound == 0.5
    assert finding.severity is (Severity.WARNING if variance == 1e-8 else Severity.INFO)
    assert finding.message.startswith("1 norm works below eps: it leaves ")


def test_what_varies_enough_for_its_eps_is_left_in_peace():
    assert is_quiet(on_data(nn.LayerNorm(12, eps=1e-12), (12,), scale=1e-4), "NS138")
    assert is_quiet(on_data(nn.LayerNorm(12), (12,), scale=4e-3), "NS138")  # 1.6e-5 of 2.6e-5


def test_padding_and_inputs_without_a_signal_are_not_judged():
    case = on_data(nn.LayerNorm(12), (7, 12))
    for x in case.loader:
        x[:, 2:] = 0.0  # most positions are padding
    assert is_quiet(case, "NS138")
    case.loader = [torch.zeros(16, 7, 12)] * 3  # queries that start at zero
    assert is_quiet(case, "NS138")
    maps = on_data(nn.InstanceNorm2d(4), (4, 1, 1))
    maps.loader = [x.expand(-1, -1, 5, 5) for x in maps.loader]  # every map is flat, and the samples differ
    assert "a constant" in finding_of(maps, "NS138").message


def drawn(norm, shape, deviation, *, seed=0, minority=True, **options):
    draws = deviation * torch.randn(norm.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        norm.weight.copy_(draws if minority else draws.abs())
    return on_data(norm, shape, **options)


NORMS = [
    (nn.BatchNorm2d, (24,), (24, 3, 3)),
    (nn.LayerNorm, (24,), (24,)),
    (nn.GroupNorm, (4, 24), (24, 3, 3)),
    (nn.RMSNorm, (24,), (24,)),
    (BatchNormAct2d, (24,), (24, 3, 3)),
    (LlamaRMSNorm, (24,), (24,)),
]


@pytest.mark.parametrize(("kind", "args", "shape"), NORMS)
def test_gains_that_were_drawn_about_zero_are_found_in_every_class(kind, args, shape):
    norm = kind(*args)
    finding = finding_of(drawn(norm, shape, 0.02), "NS138")
    assert finding.measured == pytest.approx(float(norm.weight.detach().abs().median()), rel=1e-6)
    assert finding.bound == 0.1
    assert is_quiet(drawn(kind(*args), shape, 0.02, minority=False), "NS138")  # small on purpose
    assert is_quiet(drawn(kind(*args), shape, 1.0), "NS138")


def test_a_gain_that_is_kept_as_its_distance_from_one_may_be_about_zero():
    assert is_quiet(drawn(GemmaRMSNorm(24), (24,), 0.02), "NS138")


class Branch(nn.Module):
    """A residual branch that ends in a norm; what follows the norm is said."""

    def __init__(self, end, *, skip=True):
        super().__init__()
        self.fc, self.norm, self.end, self.skip = nn.Linear(24, 24), nn.BatchNorm1d(24), end, skip
        nn.init.normal_(self.norm.weight, 0.0, 0.02, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        y = self.end(self.norm(self.fc(x)))
        return x + y if self.skip else y


@pytest.mark.parametrize(
    ("end", "skip", "found"),
    [
        (nn.Identity(), True, False),
        (nn.Dropout(0.1), True, False),
        (nn.ReLU(), True, False),
        (nn.Linear(24, 24), True, True),
        (nn.Identity(), False, True),
    ],
)
def test_gains_about_zero_at_the_end_of_a_residual_branch_are_on_purpose(end, skip, found):
    case = on_data(Branch(end, skip=skip), (24,), then=[nn.Linear(24, 2)])
    assert is_quiet(case, "NS138") is not found


def test_norms_with_running_statistics_are_not_judged():
    case = on_data(nn.BatchNorm1d(8), (8,), scale=1e-4)
    case.model.eval()
    assert answers(case) == {}
    case.model.train()
    assert set(answers(case)) == {"0"}


class Standardised(nn.Module):
    """Observations by running statistics, cut off far out, as agents have them; its name says norm, as users' do."""

    def __init__(self, bound):
        super().__init__()
        self.bound = bound
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, x):
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), 0.01)
            self.running_var.lerp_(x.detach().var(0), 0.01)
        y = (x - self.running_mean) / (self.running_var + 1e-8).sqrt()
        return y if self.bound is None else y.clamp(-self.bound, self.bound)


@pytest.mark.parametrize("bound", [None, 5.0, 10.0, 1000.0])
def test_a_function_that_is_cut_off_far_out_is_no_norm_below_eps(bound):
    assert is_quiet(on_data(Standardised(bound), (8,)), "NS138")
