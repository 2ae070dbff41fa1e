"""Norms taken out, with and without making up for them."""

import pytest
import torch
from torch import nn

from kit.foreign_norms import BatchNormAct2d
from kit.small_convnets import assert_same_state, images, small_convnet, state_of, trained_looking, twin
from normscope import surgery
from normscope._errors import DataError, NonFiniteError, UsageError


def has_norms(model):
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_plainly_the_weights_stay():
    model = small_convnet()
    expected = model[0](images())
    report = surgery.strip(model)
    assert not has_norms(model)
    assert len(report.done) == 4
    assert "lost" in report["1"].detail
    torch.testing.assert_close(model[1](model[0](images())), expected)


@pytest.mark.parametrize("where", ["eval", "train"])
def test_population_preserves_the_function_in_evaluation(where):
    model = small_convnet().double().train(where == "train")
    x = images(dtype=torch.float64)
    expected = twin(model).eval()(x)
    report = surgery.strip(model, "population", example=x)
    assert not has_norms(model)
    assert len(report.done) == 4
    assert model.training == (where == "train")
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-11, atol=1e-11)


def test_batch_preserves_the_function_in_training_at_that_batch():
    model = small_convnet().double().train()
    model[8].p = 0.0
    x = images(dtype=torch.float64)
    expected = twin(model)(x)
    surgery.strip(model, "batch", example=x)
    assert not has_norms(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_what_cannot_be_taken_in_leaves_its_scale_and_shift():
    model = trained_looking(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU())).double().eval()
    model[1].bias.requires_grad_(False)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    expected = model(x)
    report = surgery.strip(model, "population")
    assert isinstance(model[1], surgery.ChannelAffine)
    assert "not from a linear layer" in report["1"].detail
    assert model[1].weight.requires_grad
    assert not model[1].bias.requires_grad
    torch.testing.assert_close(model(x), expected)


def test_unit_variance_in_order_of_execution():
    model = nn.Sequential()
    torch.manual_seed(0)
    for _ in range(6):
        model.extend([nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh()])
    x = torch.randn(256, 64) * 3
    plain = twin(model)
    surgery.strip(plain)
    report = surgery.strip(model, "unit-variance", example=x, deviation=0.7)
    assert not has_norms(model)
    h, g = x, x
    deviations = []
    for layer, other in zip(model, plain, strict=True):
        h, g = layer(h), other(g)
        if isinstance(layer, nn.Linear):
            torch.testing.assert_close(h.std(correction=0), torch.tensor(0.7), rtol=1e-5, atol=1e-5)
            deviations.append(g.std().item())
    assert deviations[-1] < 0.5 * deviations[0]  # without it the signal shrinks from layer to layer
    assert report["1"].numbers["deviation"] == pytest.approx(deviations[0], rel=1e-2)


def test_other_norms_and_repeated_calls_are_skipped_with_the_reason():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.ln = nn.BatchNorm1d(4), nn.LayerNorm(4)

        def forward(self, x):
            return self.ln(self.bn(self.bn(x) + 1))

    x = torch.randn(8, 4)
    report = surgery.strip(Twice(), "batch", example=x)
    assert [s.path for s in report.skipped] == ["bn", "ln"]
    assert "2 times" in report.skipped[0].why
    assert "each sample" in report.skipped[1].why
    model = trained_looking(Twice()).eval()
    expected = model(x)
    surgery.strip(model, "population")
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_errors_leave_everything():
    model = small_convnet()
    before = state_of(model)
    with pytest.raises(UsageError, match="rescale is one of"):
        surgery.strip(model, "lsuv")
    with pytest.raises(UsageError, match="give an example"):
        surgery.strip(model, "batch")
    with pytest.raises(DataError, match="standard deviation"):
        surgery.strip(nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)), "unit-variance",
                      example=torch.zeros(4, 2))  # fmt: skip
    with pytest.raises(NonFiniteError, match="1: the example"):
        surgery.strip(model, "batch", example=images() * torch.inf)
    model[7].running_var[0] = torch.nan
    before = state_of(model)
    with pytest.raises(NonFiniteError, match="7: its scale"):
        surgery.strip(model, "population")
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize(("scale", "spread"), [(0.0, "0.0"), (1e200, "inf"), (torch.nan, "nan")])
def test_an_output_that_has_no_finite_spread_cannot_be_scaled(scale, spread):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.fill_(0.5)
    before = state_of(model)
    with pytest.raises(DataError, match=f"before 1 the output has standard deviation {spread}: give other data"):
        surgery.strip(model, "unit-variance", example=torch.randn(8, 3, dtype=torch.float64))
    assert_same_state(before, state_of(model))


def test_what_a_norm_of_another_library_does_beside_normalizing_stays():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act_layer=nn.SiLU)), images()
    report = surgery.strip(model)
    assert "SiLU behind it stays" in report["1"].detail
    torch.testing.assert_close(model(x), nn.functional.silu(model[0](x)))
