"""The same operations on an accelerator, where there is one."""

import pytest
import torch
from torch import nn

from kit.small_convnets import assert_same_state, images, small_convnet, state_of, trained_looking
from normscope import surgery

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")


def test_fold_convert_and_recalibrate_stay_on_the_device():
    model, x = small_convnet().cuda().eval(), images()
    surgery.convert(model, "batch")
    surgery.recalibrate(model, [x, x[:3]])
    expected = model(x.cuda())
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        report = surgery.fold(model, x)
    assert len(report.done) == 4
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    torch.testing.assert_close(model(x.cuda()), expected, rtol=1e-3, atol=1e-3)


def test_recalibration_leaves_no_trace_in_the_devices_random_state():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).cuda()
    before = torch.cuda.get_rng_state()
    surgery.recalibrate(model, [torch.ones(64, 3)], dropout=True)
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert 0.3 < model[1].running_var.min().item() < 2


def test_torchs_synchronised_norm_where_it_runs():
    model = trained_looking(nn.Sequential(nn.BatchNorm2d(3))).cuda().eval()
    x = torch.randn(2, 3, 4, 4, device="cuda")
    expected = model(x)
    surgery.convert(model, "sync")
    torch.testing.assert_close(model(x), expected)
    assert "already" in surgery.convert(model, "sync").skipped[0].why
    before = state_of(model)
    with pytest.raises(RuntimeError):
        surgery.recalibrate(model, [x, torch.ones(3, device="cuda")])
    assert_same_state(before, state_of(model))
