"""Other tools beside the probes: what each costs and leaves behind is seen, on made tools and on real tools."""

import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from normscope.bench import probes as bench, probes_page
from normscope.bench._peers import installed, measure_peer  # white box: tools that are made


def build():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 10))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(8, 6).cumsum(0)).square().mean().backward()
    optimizer.step()


def clean(model):
    return lambda: None


def drifting(model):
    return lambda: model(torch.ones(8, 6))  # one more forward pass: running statistics move


def hooking(model):
    model[0].register_forward_hook(lambda *_: None)
    return lambda: None


def thawing(model):
    model[2].bias.requires_grad_(False)
    return lambda: None


def slow(model):
    def after():
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    return after


@pytest.mark.parametrize(
    ("tool", "trace"),
    [
        (clean, "none"),
        (drifting, "training differs"),
        (hooking, "hooks remain"),
        (thawing, "training differs, requires_grad changed"),
    ],
)
def test_what_a_tool_leaves_behind_is_named(tool, trace):
    @contextmanager
    def attach(model):
        yield tool(model)

    found = measure_peer("made", attach, "tiny", build, step, rounds=3)
    assert found.trace == trace
    assert 0 < found.low <= found.ratio <= found.high


def test_what_a_tool_takes_is_measured():
    @contextmanager
    def attach(model):
        yield slow(model)

    assert measure_peer("made", attach, "tiny", build, step, rounds=5).ratio > 3  # a plain step takes well below 10 ms


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_tools_that_are_installed_have_a_row():
    if not installed():
        pytest.skip("neither neural-observatory nor torchinstruments is installed")
    model = {"tiny": bench.Model(build, (8, 6), "x")}
    result = bench.measure(rounds=1, models=model, only="not due")
    assert result["peers_here"] == []  # a part is asked for
    found = [measure_peer(tool, attach, "tiny", build, step, rounds=2) for tool, attach in installed().items()]
    assert all(peer.ratio > 0 for peer in found)
    result["peers_here"] = [{name: getattr(peer, name) for name in peer.__slots__} for peer in found]
    page = probes_page.markdown(result)
    assert all(f"| {peer.tool} | tiny |" in page for peer in found)
    assert len(probes_page.terminal(result)) == 3
