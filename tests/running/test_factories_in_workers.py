"""A factory in a file is found by a worker at the same path or in its working directory, and is the file of the run."""

import pickle
from pathlib import Path

import pytest

from kit.executed import FACTORY
from normscope._errors import UsageError
from normscope.comparing.arms import Factory


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """Load a factory by a relative path, and return it as it travels to a worker, and the file."""
    (tmp_path / "here" / "below").mkdir(parents=True)
    file = tmp_path / "here" / "below" / "train.py"
    file.write_text(FACTORY)
    monkeypatch.chdir(tmp_path / "here")
    factory = Factory("below/train.py:make_case")
    factory.load()
    return pickle.dumps(factory), file


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Be in the working directory of a worker on another machine."""
    (tmp_path / "there" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path / "there" / "below" / "train.py"


def test_the_same_path_is_enough(sent, there):
    assert pickle.loads(sent[0]).make(0).model is not None
    assert not there.exists()


def test_a_copy_in_the_working_directory_is_taken_where_the_path_is_not_there(sent, there):
    data, file = sent
    file.rename(there)
    assert pickle.loads(data).make(0).model is not None


def test_a_file_that_is_not_there_says_that_its_folder_must_be_shared_or_shipped(sent, there):
    data, file = sent
    file.unlink()
    with pytest.raises(UsageError, match=r"has no file below/train\.py: its folder must be shared .* --working-dir \."):
        pickle.loads(data).load()


@pytest.mark.parametrize("where", ["here", "there"])
def test_another_text_is_not_executed(sent, there, where, tmp_path):
    data, file = sent
    if where == "there":
        file.unlink()
    {"here": file, "there": there}[where].write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n{FACTORY}")
    with pytest.raises(UsageError, match=r"reads another below/train\.py than the run began with"):
        pickle.loads(data).load()
    assert not Path(tmp_path / "executed").exists()
