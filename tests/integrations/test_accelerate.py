"""Accelerate needs no callback: a scope is attached to what ``prepare`` returned."""

import pytest
import torch
from torch import nn

import normscope as ns
from kit.traces import differences, fingerprint

pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings(
        "ignore", "error::normscope.probes.ProbeWarning", "error::normscope.probes.WiringWarning"
    ),
]


class Judged(nn.Module):
    """A network that computes its loss itself, so that its call tells the whole batch."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x, y):
        return nn.functional.cross_entropy(self.net(x), y)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("clips", [False, True])
def test_training_is_bit_identical_and_probes_read_its_loss(precision, parts, clips):
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")

    def train(watched):
        torch.manual_seed(0)
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # one a process, of one precision
        accelerate.state.GradientState._reset_state()
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=parts)
        bare = Judged()
        optimizer = torch.optim.AdamW(bare.parameters(), 1e-2)
        model, optimizer = accelerator.prepare(bare, optimizer)
        draw = torch.Generator().manual_seed(1)
        scope = None
        if watched:
            scope = ns.watch(
                model, optimizer, lambda model, batch: model(*batch), probes=["gradient_flow", "descent"], every=1
            )
        losses, norms = [], []
        for _ in range(4 * parts):
            x, y = torch.randn(16, 6, generator=draw), torch.randint(0, 3, (16,), generator=draw)
            with accelerator.accumulate(model):
                loss = model(x, y)
                accelerator.backward(loss)
                losses.append(loss.item() / parts)
                if accelerator.sync_gradients:
                    norms.append(bare.net[4].weight.grad.norm().item())
                    if clips:
                        accelerator.clip_grad_norm_(model.parameters(), 1e-3)
                optimizer.step()
                optimizer.zero_grad()
        if scope is not None:
            scope.detach()
        return fingerprint(state=dict(bare.state_dict()), optimizer=optimizer.state_dict(), losses=losses), (
            scope, losses, norms,
        )  # fmt: skip

    without, _ = train(False)
    left, (scope, losses, norms) = train(True)
    assert differences(without, left) == []
    frame = scope.records()
    read = frame.filter((frame["probe"] == "descent") & (frame["name"] == "loss")).sort("step")["value"].to_list()
    assert read == pytest.approx([sum(losses[at : at + parts]) for at in range(0, 4 * parts, parts)], rel=1e-5)
    at = frame.filter((frame["name"] == "norm") & (frame["site"] == "net.4")).sort("step")["value"].to_list()
    assert len(at) == len(norms) == 4
    for value, weight_norm in zip(at, norms, strict=True):
        assert weight_norm <= value * (1 + 1e-5)  # with the bias's
        assert value < 3 * weight_norm
