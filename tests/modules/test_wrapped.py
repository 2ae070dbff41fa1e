"""What wraps a model is taken off, and nothing else."""

import pytest
import torch
from torch import nn

from normscope.modules.wrapped import calls_eagerly, eagerly, is_compiled, rank_of_many, unwrap


def test_the_model_inside_compilation_and_replication_is_found():
    model = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(model, backend="eager")
    for wrapped in (model, compiled, nn.DataParallel(model), nn.DataParallel(compiled)):
        assert unwrap(wrapped) is model
    assert [is_compiled(one) for one in (model, compiled)] == [False, True]


def test_each_way_of_compiling_is_seen_and_whether_it_takes_in_the_hooks_of_the_model():
    wrapped = torch.compile(nn.Linear(2, 2), backend="eager")
    inside, by_method, by_forward = nn.Sequential(wrapped), nn.Linear(2, 2), nn.Linear(2, 2)
    by_method.compile(backend="eager")
    by_forward.forward = torch.compile(by_forward.forward, backend="eager")
    assert all(map(is_compiled, (wrapped, inside, by_method, by_forward)))
    assert [calls_eagerly(model) for model in (wrapped, inside, by_method, by_forward)] == [True, True, False, True]


@pytest.mark.parametrize("asked", [True, False])
def test_a_compiled_model_runs_as_it_is_written_on_request(asked):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    model = nn.Linear(2, 2)
    compiled, x = torch.compile(model, backend=backend), torch.randn(3, 2)
    with eagerly(asked):
        assert torch.equal(compiled(x), model(x))
    assert len(graphs) == (0 if asked else 1)
    compiled(x)
    assert len(graphs) == 1


def test_a_process_alone_has_no_rank():
    assert rank_of_many() is None
