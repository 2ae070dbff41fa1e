"""A freeze that survives ``.train()``, copies and pickles."""

import copy
import pickle

import pytest
import torch
from torch import nn

from kit.small_convnets import assert_same_state, images, small_convnet, state_of, trained_looking
from normscope import layers, surgery
from normscope._errors import UsageError


def step(model):
    model.train()
    model(images()).square().sum().backward()


def statistics(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "tracked" in k}


def test_torch_unfreezes_at_train():
    """The customary freeze, ``norm.eval()``, lasts until the next epoch's ``train()``."""
    model = small_convnet()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    before = statistics(model)
    step(model)
    assert any(not torch.equal(before[k], v) for k, v in statistics(model).items())


@pytest.mark.parametrize("through", ["itself", "deepcopy", "pickle"])
@pytest.mark.parametrize("ours", [False, True])
def test_frozen_norm_uses_and_keeps_its_statistics_in_training(through, ours):
    model = small_convnet()
    if ours:
        surgery.convert(model, "batch")
    surgery.freeze(model)
    model = {"itself": lambda m: m, "deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}[
        through
    ](model)
    before = statistics(model)
    step(model)
    assert all(torch.equal(before[k], v) for k, v in statistics(model).items())
    x = images()
    norm = model[1]
    expected = nn.functional.batch_norm(x := model[0](x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x), expected)
    assert model.training
    assert not norm.training


def test_a_copy_is_frozen_by_itself():
    model = small_convnet()
    surgery.freeze(model)
    other = copy.deepcopy(model)
    surgery.unfreeze(model)
    model.train()
    other.train()
    assert model[1].training
    assert not other[1].training


def test_class_and_state_dict_are_unchanged():
    model, plain = small_convnet(), small_convnet()
    report = surgery.freeze(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert "frozen" in repr(model[1])
    assert "frozen" not in repr(plain[1])
    assert len(report.done) == 4


def test_affine_on_request_and_back():
    model = small_convnet()
    model[1].bias.requires_grad_(False)
    surgery.freeze(model, affine=True)
    step(model)
    assert all(p.grad is None for p in model[1].parameters())
    assert model[0].weight.grad is not None
    report = surgery.unfreeze(model)
    assert model[1].weight.requires_grad
    assert not model[1].bias.requires_grad
    assert model[1].training
    assert len(report.done) == 4
    assert not surgery.is_frozen(model[1])
    assert "frozen" not in repr(model)


def test_affine_may_be_frozen_later():
    model = small_convnet()
    surgery.freeze(model)
    surgery.freeze(model, affine=True)
    assert not model[1].weight.requires_grad
    surgery.unfreeze(model)
    assert model[1].weight.requires_grad


def test_round_trip_restores_everything():
    model = small_convnet()
    before = state_of(model)
    surgery.freeze(model, affine=True)
    surgery.unfreeze(model)
    assert_same_state(before, state_of(model))


def test_thawed_mode_is_the_last_asked():
    model = small_convnet().train()
    surgery.freeze(model)
    model.eval()
    surgery.unfreeze(model)
    assert not model[1].training


def test_other_operations_do_not_touch_what_a_freeze_remembers():
    model = small_convnet().train()
    surgery.freeze(model, affine=True)

    def call(m, batch):
        m.eval()
        m(batch)

    surgery.convert(model, "batch", example=images())
    surgery.recalibrate(model, [images()], call, frozen=True)
    surgery.fold(surgery.strip(copy.deepcopy(model), "batch", example=images()).model, images())
    surgery.unfreeze(model)
    assert model[1].training
    assert model[1].weight.requires_grad


def test_only_and_skips():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2), nn.BatchNorm1d(2, track_running_stats=False))
    report = surgery.freeze(model)
    assert [c.path for c in report] == ["0"]
    assert "initial" in report["0"].detail
    assert [s.path for s in report.skipped] == ["1", "2"]
    model = small_convnet()
    surgery.freeze(model, only=["3.*"])
    assert [surgery.is_frozen(m) for m in (model[1], model[3].bn1, model[3].bn2, model[7])] == [0, 1, 1, 0]
    with pytest.raises(UsageError, match="named 'nope'"):
        surgery.freeze(model, only="nope")


def test_a_norm_is_a_model_and_subclasses_freeze():
    class Mine(nn.BatchNorm1d):
        pass

    for norm in (
        trained_looking(Mine(3)),
        trained_looking(layers.BatchNorm1d(3)),
        trained_looking(nn.SyncBatchNorm(3)),
    ):
        surgery.freeze(norm)
        norm.train()
        before = norm.running_mean.clone()
        norm(torch.randn(4, 3))
        assert torch.equal(before, norm.running_mean)


def test_frozen_models_compile_and_trace():
    model = small_convnet()
    surgery.freeze(model)
    model.train()
    model[8].p = 0.0
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), model(images()))
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(images()), model(images()))
    exported = torch.export.export(model, (images(),)).module()
    torch.testing.assert_close(exported(images()), model(images()))
