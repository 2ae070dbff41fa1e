"""Which place an address or a path means."""

import os
import sys
from pathlib import Path

import pytest

from normscope._errors import StoreError, UsageError
from normscope.records.addresses import place_of, require_folder, save
from normscope.records.places import Folder


def test_a_path_is_a_folder_and_a_tilde_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place_of("~/runs").path == tmp_path / "runs"
    assert place_of(f"file://{tmp_path}/x").path == tmp_path / "x"
    for plain in ("runs", "./a:b", "lr=0.1:/x", "C:/runs", "~nobody-of-that-name/x"):
        assert isinstance(place_of(plain), Folder)
        assert place_of(plain).path == Path(plain)


@pytest.mark.parametrize("address", ["http://x/runs", "https://x/runs", "hdfs://x/y", "ftp://x/y"])
def test_an_address_of_another_kind_makes_no_folder(address: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spelled in (address, Path(address)):
        with pytest.raises(UsageError, match="is no address that can be written: give a folder, or a bucket as s3://"):
            place_of(spelled)
    assert not list(tmp_path.iterdir())


def test_a_bucket_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"pip install 'normscope\[buckets\]'"):
        place_of("s3://bucket/runs")
    with pytest.raises(UsageError, match="s3:// names no bucket"):
        place_of("s3://")


def test_a_folder_with_the_name_of_an_address_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions before made such folders: what lies there can be read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "runs").mkdir(parents=True)
    assert isinstance(place_of(Path("s3://runs")), Folder)


def test_what_needs_a_folder_refuses_an_address() -> None:
    with pytest.raises(UsageError, match=r"names no bucket|needs a folder|pip install"):
        require_folder("s3://bucket/x", "the live page")
    assert require_folder("runs", "the live page") == Path("runs")


def test_save_makes_folders_and_refuses_a_folder(tmp_path: Path) -> None:
    assert save(tmp_path / "a" / "b.txt", "ü").read_text(encoding="utf-8") == "ü"
    with pytest.raises(StoreError, match="it is a folder; name a file in it"):
        save(tmp_path, "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"cannot write {tmp_path}"):
        save(tmp_path / "file" / "x", "x")


def test_files_have_the_permissions_that_the_user_has_set(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(tmp_path / "page.html", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o640
