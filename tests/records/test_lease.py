"""Of two processes that would compute the same cells the second is refused, and a crash leaves nobody locked out."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from normscope._errors import StoreError
from normscope.records import driven, files, lease
from normscope.records.places import Folder


def planted(folder: Path, share: str = "whole", **changes: object) -> Path:
    """Leave the file of a process that is at work, as another process would."""
    told = {
        "host": socket.gethostname(),
        "pid": os.getppid(),
        "process_began": files.process_began(os.getppid()),
        "since": time.time(),
        "renewed": time.time(),
        "token": "x",
    }
    path = folder / f"driver-{share}.json"
    path.write_text(json.dumps(told | changes))
    return path


def test_the_file_lies_there_while_the_block_lasts(tmp_path: Path) -> None:
    with driven(Folder(tmp_path)):
        assert [path.name for path in tmp_path.iterdir()] == ["driver-whole.json"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), driven(Folder(tmp_path)):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("there", "wanted", "refused"),
    [
        ("whole", None, True),
        ("whole", (1, 3), True),
        ("1-of-3", None, True),
        ("1-of-3", (1, 3), True),
        ("1-of-3", (2, 3), False),
        ("1-of-3", (2, 4), True),
        ("11-of-13", (1, 13), False),
    ],
)
def test_shares_that_overlap_are_refused(tmp_path: Path, there: str, wanted, refused: bool) -> None:
    path = planted(tmp_path, there)
    if refused:
        words = f"being written by process {os.getppid()} of this machine since"
        with pytest.raises(StoreError, match=words), driven(Folder(tmp_path), wanted):
            raise AssertionError("both are at work")
    else:
        with driven(Folder(tmp_path), wanted):
            assert len(list(tmp_path.iterdir())) == 2
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_process_that_was_killed_makes_way_at_once(tmp_path: Path) -> None:
    """Also while its parent has not asked for it, and where its number was given to another process since."""
    gone = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    gone.start()
    while files.alive(gone.pid or 0):
        time.sleep(0.01)
    planted(tmp_path, pid=gone.pid, process_began="")
    with driven(Folder(tmp_path)):
        pass
    planted(tmp_path, process_began="another time")
    with driven(Folder(tmp_path)):
        pass
    gone.join()


def test_a_process_of_another_machine_makes_way_when_it_renews_no_more(tmp_path: Path) -> None:
    planted(tmp_path, host="elsewhere", pid=1, renewed=time.time() - lease.STALE + 30)
    with (
        pytest.raises(StoreError, match=r"process 1 on elsewhere .* its claim ends in (29|30) s"),
        driven(Folder(tmp_path)),
    ):
        raise AssertionError
    planted(tmp_path, host="elsewhere", pid=1, renewed=time.time() - lease.STALE - 1)
    with driven(Folder(tmp_path)):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x"}', '{"pid": 1, "renewed": "later"}', "[" * 50_000])
def test_a_damaged_file_locks_nobody_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "driver-whole.json").write_text(text)
    with driven(Folder(tmp_path)):
        pass
    assert not list(tmp_path.iterdir())


def test_the_file_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.01)
    with driven(Folder(tmp_path)):
        first = (tmp_path / "driver-whole.json").read_text()
        until = time.monotonic() + 60
        while (tmp_path / "driver-whole.json").read_text() == first:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_file_that_another_took_over_is_left_to_it(tmp_path: Path) -> None:
    with driven(Folder(tmp_path)):
        path = planted(tmp_path)
    assert path.exists()


def at_work(folder: Path, started, release) -> None:
    with driven(Folder(folder)):
        started.set()
        release.wait(60)


def test_of_processes_that_begin_at_once_one_works(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, release = context.Event(), context.Event()
    first = context.Process(target=at_work, args=(tmp_path, started, release))
    first.start()
    assert started.wait(60)
    with pytest.raises(StoreError, match=f"process {first.pid} of this machine"), driven(Folder(tmp_path)):
        raise AssertionError
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    with driven(Folder(tmp_path)):
        pass
