"""A layer with a process group of its own is copied and saved as any other."""

import copy
import io
import pickle

import pytest
import torch
from torch import distributed

from normscope import layers
from normscope._errors import UsageError


@pytest.fixture
def group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield distributed.new_group([0])
    distributed.destroy_process_group()


def test_copies_share_it_and_files_have_its_ranks(group):
    layer = layers.BatchNorm1d(3, statistics="sync", process_group=group)
    x = torch.randn(5, 3)
    right = layer(x)
    twin = copy.deepcopy(layer)
    assert twin.process_group is group
    assert torch.equal(twin(x), right)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for loaded in (pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert loaded.process_group is None  # those of all processes, which it was
        assert torch.equal(loaded(x), right)


def test_a_part_of_the_processes_is_not_taken_for_all_of_them(group):
    layer = layers.BatchNorm1d(3, statistics="sync", process_group=group)
    layer._group.ranks = (0, 2)
    loaded = pickle.loads(pickle.dumps(layer))
    with pytest.raises(UsageError, match=r"ranks \[0, 2\]"):
        loaded(torch.randn(5, 3))
    loaded.eval()(torch.randn(5, 3))
    loaded.process_group = group
    loaded.train()(torch.randn(5, 3))


def test_without_processes_a_loaded_layer_is_by_itself(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    saved = pickle.dumps(layers.BatchNorm1d(3, statistics="sync", process_group=distributed.new_group([0])))
    distributed.destroy_process_group()
    assert pickle.loads(saved)(torch.randn(5, 3)).shape == (5, 3)
