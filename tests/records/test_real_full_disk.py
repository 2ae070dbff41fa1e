"""A real disk of 5 MB that fills up: training goes on, one line says so, and nothing that was complete is lost."""

import re
from pathlib import Path

import pytest

from kit.full_disk import on_a_full_disk, possible

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not possible(), reason="no process may mount a disk of its own here"),
]


def test_a_scope_trains_on_and_has_all_records_once_there_is_room(tmp_path: Path) -> None:
    done = on_a_full_disk("scope", tmp_path)
    assert done.returncode == 0, done.stderr
    warned, steps = done.stdout.splitlines()
    assert re.match(r"warned 1 .*No space left on device; make room.*training goes on", warned)
    assert steps == "steps 1005 1005"


@pytest.mark.parametrize("kind", ["study", "compare"])
def test_a_run_says_a_line_and_goes_on_where_it_stopped(tmp_path: Path, kind: str) -> None:
    done = on_a_full_disk(kind, tmp_path)
    assert done.returncode == 0, done.stderr
    refused, complete, equal = done.stdout.splitlines()
    assert re.match(r"refused cannot write .*: No space left on device; make room, or choose another path$", refused)
    assert int(complete.split()[1]) > 0
    assert re.match(r"equal True \d\d+", equal)
