"""Empty batches and batches of infinities and NaN: a probe goes on after them, and does not warn."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import normscope as ns
from normscope import probes

CHEAP = [probe.CODE for probe in probes.all() if probe.STREAMING or probe.BY_DEFAULT]
OTHERS = ["conditioning", "gradient_noise", "statistics_gap", "statistics_noise", "loss", "scale_invariance"]
HOSTILE = 1  # the step


class Images(nn.Sequential):
    SHAPE = (3, 6, 6)

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3, 1, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )


class Vectors(nn.Sequential):
    SHAPE = (6,)

    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def loss_of(model, batch):
    return cross_entropy(model(batch[0]), batch[1]) if len(batch[0]) else model(batch[0]).sum()


def read(code, net, hostile):
    """Return the steps read, and what was not, with a hostile batch at the second of four steps."""
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.Scope(model, loss_of, optimizer, probes=[code], every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(4):
            x = torch.randn(0 if step == HOSTILE and hostile == "empty" else 12, *model.SHAPE)
            if step == HOSTILE and hostile != "empty":
                x[0] = float(hostile)
            model.train(step != HOSTILE)  # torch refuses an empty batch in train mode
            batch = x, torch.randint(4, (len(x),))
            with scope.step(batch):
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                if step != HOSTILE:
                    optimizer.step()
    return set(scope.records()["step"]), scope.not_read


@pytest.mark.parametrize("hostile", ["empty", "inf", "nan"])
@pytest.mark.parametrize("net", [Images, Vectors])
@pytest.mark.parametrize("code", sorted({*CHEAP, *OTHERS}))
def test_a_hostile_batch_neither_warns_nor_switches_a_probe_off(code, net, hostile):
    steps, missing = read(code, net, hostile)
    if code in missing:  # there is no batch norm in it, or no tokens
        assert net is Vectors or code == "residual_stream"
        assert "switched off" not in missing[code]
    else:
        assert steps >= {0, 2, 3}


def test_lapack_says_nothing_of_an_empty_batch(capfd):
    read("conditioning", Vectors, "empty")
    assert "illegal value" not in "".join(capfd.readouterr())


def test_a_last_batch_too_small_to_cut_leaves_the_noise_of_the_others():
    torch.manual_seed(0)
    model = Vectors()
    scope = ns.Scope(model, loss_of, probes=["gradient_noise"], every=1)
    for size in (8, 1, 8):
        batch = torch.randn(size, 6), torch.randint(4, (size,))
        with scope.step(batch):
            loss_of(model, batch).backward()
    assert set(scope.records()["step"]) == {0, 2}
