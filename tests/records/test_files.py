"""A file that a user named is there whole, or as it was before."""

import os

import pytest

from normscope._errors import StoreError
from normscope.records import files
from normscope.records.addresses import save


def test_a_name_that_is_taken_stays_taken_without_hard_links(tmp_path, monkeypatch):
    def none(*_):
        raise OSError("this file system has no hard links")

    monkeypatch.setattr(os, "link", none)
    path = tmp_path / "file"
    assert files.write_text(path, "first", replace=False)
    assert not files.write_text(path, "second", replace=False)
    assert path.read_text() == "first"


@pytest.mark.parametrize(
    ("content", "written"),
    [("é\n\r\n", "é\n\r\n".encode()), (b"\x00\xff", b"\x00\xff"), ("a\udc00b", b"a?b"), ("", b"")],
)
def test_what_is_given_is_there(tmp_path, content, written):
    path = tmp_path / "deep" / "er" / "file"
    assert save(path, content) == path
    assert path.read_bytes() == written
    assert save(str(path), "again") == path
    assert path.read_text() == "again"
    assert os.listdir(path.parent) == ["file"]


def test_it_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        assert save(tmp_path / "file", "x").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


@pytest.mark.parametrize("step", ["fill", "sync", "replace"])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = save(tmp_path / "file", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if step == "replace" else files, step, full)
    with pytest.raises(
        StoreError, match=r"cannot write .*file: No space left on device; make room, or choose another path"
    ) as caught:
        save(path, "new")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_and_a_path_below_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="it is a folder"):
        save(tmp_path, "x")
    with pytest.raises(StoreError, match="choose another path"):
        save(tmp_path / "file" / "below", "x")
    assert os.listdir(tmp_path) == ["file"]
