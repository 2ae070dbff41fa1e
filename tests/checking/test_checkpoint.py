"""State dicts in files: what is written is read again, bit for bit, and nothing is written half."""

import os

import pytest
import torch

from normscope._errors import DataError, StoreError, UsageError
from normscope.checking import checkpoint

SUFFIXES = [".pt", ".pth", ".bin", ".ckpt", ".safetensors"]


def values():
    whole = torch.arange(12.0).view(3, 4)
    return {
        "weight": whole,
        "row": whole[1],
        "transposed": whole.T,
        "half": torch.tensor([1.5, -0.25]).bfloat16(),
        "count": torch.tensor(7),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_again(tmp_path, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors.torch")
    path = tmp_path / f"state{suffix}"
    checkpoint.writable(path)
    checkpoint.write(values(), path)
    found = checkpoint.read(path)
    assert found.keys() == values().keys()
    for key, value in values().items():
        assert found[key].dtype is value.dtype
        assert torch.equal(torch.nan_to_num(found[key]), torch.nan_to_num(value))
    assert found["row"].untyped_storage().nbytes() == 16  # a view is written alone, without what it looks into
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_format_is_told_by_the_first_bytes(tmp_path):
    pytest.importorskip("safetensors.torch")
    checkpoint.write(values(), tmp_path / "a.safetensors")
    renamed = (tmp_path / "a.safetensors").rename(tmp_path / "a.pt")
    assert checkpoint.read(renamed).keys() == values().keys()


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    for error in (OSError("no space left"), RuntimeError("PytorchStreamWriter failed")):
        with pytest.raises(StoreError, match=f"cannot write .*state.pt: .*{error}"):
            checkpoint.write(values(), tmp_path / "state.pt")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_appears_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch, suffix):
    """A checkpoint is renamed after its bytes are synced: after a power cut the name never stands for half of it."""
    if suffix == ".safetensors":
        pytest.importorskip("safetensors.torch")
    path, calls = tmp_path / f"state{suffix}", []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), rename(*paths)))
    checkpoint.write(values(), path)
    assert calls[: calls.index("rename")] == ["sync"]
    assert checkpoint.read(path).keys() == values().keys()


@pytest.mark.parametrize(
    ("name", "words"), [("x.onnx", "must end in"), ("no/x.pt", "no folder"), ("there.pt", "already")]
)
def test_a_name_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path, name, words):
    (tmp_path / "there.pt").touch()
    with pytest.raises(UsageError, match=words):
        checkpoint.writable(tmp_path / name)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(DataError, match="a list, not a state dict"):
        checkpoint.read(tmp_path / "list.pt")
