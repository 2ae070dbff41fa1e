"""Files that a user names: what can be no path, what is no file, and what is too large is said and not waited for."""

import os

import pytest

from normscope._errors import DataError, UsageError
from normscope.records.reading import ordinary, reached, text_of_file


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert reached("~/runs/mine") == tmp_path / "runs" / "mine"
    assert reached("runs/~") == reached("./runs/~")
    with pytest.raises(UsageError, match="there is no such user"):
        reached("~nobody-of-that-name/runs")


@pytest.mark.parametrize("name", ["", "a\0b", "runs/\ud800", "n" * 300, "loop", "loop/below"])
def test_what_can_be_no_path_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    with pytest.raises(UsageError) as caught:
        reached(name)
    assert "\n" not in str(caught.value)


def test_what_does_not_exist_yet_is_a_path(tmp_path):
    (tmp_path / "file").touch()
    os.symlink("gone", tmp_path / "dangling")
    for name in ("new", "new/below", "file/below", "dangling", "lr=[1]", "a*b", "\udcff"):
        assert reached(tmp_path / name) == tmp_path / name


def test_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "gone", tmp_path / "a\0b"):
        with pytest.raises(DataError, match="cannot read"):
            ordinary(path)
        with pytest.raises(DataError, match="cannot read"):
            text_of_file(path)


def test_a_text_is_read_to_its_bound(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert text_of_file(path) == "abc"
    assert text_of_file(path, largest=6) == "abc"
    with pytest.raises(DataError, match="larger than"):
        text_of_file(path, largest=5)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # without a block on the disk
    with pytest.raises(DataError, match="larger than 200 MB"):
        text_of_file(path)
