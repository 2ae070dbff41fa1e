"""What the buffers of averaged weights are."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kit.small_convnets import assert_same_state, images, small_convnet, state_of, twin
from normscope import surgery
from normscope._errors import DataError, UsageError


def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    data = torch.randn(512, 4) * 3 + 5
    target = data.sum(1, keepdim=True) / 6
    average, by_hand = AveragedModel(model), twin(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for start in range(0, 512, 16):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data[start : start + 16]), target[start : start + 16]).backward()
        optimizer.step()
        average.update_parameters(model)
    by_hand.load_state_dict(dict(average.module.named_parameters()), strict=False)
    return model, average, by_hand, data, target


def loss(model, data, target):
    return nn.functional.mse_loss(model.eval()(data), target).item()


@pytest.mark.trains
def test_averaged_weights_with_stale_statistics_and_the_cures():
    """NS107: trained weights, averaged, with the statistics of other weights: the source's, or an untrained model's."""
    model, average, by_hand, data, target = trained()
    assert not torch.equal(average.module[0].weight, model[0].weight)
    for averaged, stale_mean in ((average, model[1].running_mean), (by_hand, torch.zeros(8))):
        inner = averaged.module if averaged is average else averaged
        assert torch.equal(inner[1].running_mean, stale_mean)
        stale = loss(averaged, data, target)
        report = surgery.average_buffers(averaged, model, loader=data.split(100))
        torch.testing.assert_close(inner[1].running_mean, inner[0](data).mean(0).detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(inner[1].running_var, inner[0](data).var(0).detach(), rtol=1e-4, atol=1e-4)
        if averaged is by_hand:  # over ten seeds 0.003 to 0.03 of it; statistics of the source can by luck be no worse
            assert loss(averaged, data, target) < 0.3 * stale
        assert report["1"].numbers["mean_shift"] > 0.05  # 0.19 to 3.4
        report = surgery.average_buffers(averaged, model, "copy")
        assert "source" in str(report["1"])
        assert torch.equal(inner[1].running_mean, model[1].running_mean)


def test_plain_averaging_of_replicas_variances_and_the_law_of_total_variance():
    """NS114: two replicas, each variance about 1.02, means 3.03 apart: together 3.32."""
    torch.manual_seed(0)
    parts = [torch.randn(4000, 1) * 1.02**0.5 + shift for shift in (-1.5166, 1.5166)]
    replicas = [nn.Sequential(nn.BatchNorm1d(1, momentum=1.0)) for _ in parts]
    for replica, part in zip(replicas, parts, strict=True):
        replica.train()(part)
    truth = torch.cat(parts).var().item()
    assert truth == pytest.approx(3.32, abs=0.1)
    assert sum(r[0].running_var.item() for r in replicas) / 2 == pytest.approx(1.02, abs=0.05)
    pooled = twin(replicas[0])
    surgery.average_buffers(pooled, replicas, "average")
    assert pooled[0].running_var.item() == pytest.approx(truth, rel=1e-3)
    assert pooled[0].running_mean.item() == pytest.approx(torch.cat(parts).mean().item(), abs=1e-5)
    surgery.average_buffers(pooled, replicas, "average", shares=[0, 3])
    assert pooled[0].running_var.item() == pytest.approx(replicas[1][0].running_var.item(), rel=1e-6)


def test_other_buffers_are_copied_and_mistakes_change_nothing():
    a, b = small_convnet(), small_convnet()
    for model, value in ((a, 1.0), (b, 2.0)):
        model.register_buffer("table", torch.full((3,), value))
    b[1].running_mean += 1
    before = state_of(a)
    for error, arguments, options in (
        (UsageError, (b, "mean"), {}),
        (UsageError, ([], "copy"), {}),
        (DataError, (b,), {}),
        (UsageError, (b, "copy"), {"loader": [1]}),
        (UsageError, ([a, b], "average"), {"shares": [1]}),
        (UsageError, (nn.BatchNorm1d(3), "copy"), {}),
        (RuntimeError, (b,), {"loader": [torch.randn(1, 1)]}),
    ):
        with pytest.raises(error):
            surgery.average_buffers(a, *arguments, **options)
        assert_same_state(before, state_of(a))
    surgery.average_buffers(a, b, loader=[images()])
    assert a.table.eq(2).all()
