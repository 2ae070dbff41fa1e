"""Commands whose folder is an address in a bucket: what they print can be typed again."""

import json
import re
from pathlib import Path

import pytest

from kit.executed import write_own
from normscope._errors import StoreError
from normscope.records import Store
from normscope.records.addresses import place_of
from normscope.records.buckets import Bucket

pytestmark = pytest.mark.extras


def test_a_study_is_run_judged_condensed_and_shown_in_a_bucket(endpoint, tmp_path: Path, monkeypatch, run) -> None:
    monkeypatch.chdir(tmp_path)
    study = str(write_own(tmp_path))
    done = run("study", "run", study, "--seeds", 1, "--workers", 1, "--out", "s3://runs/a")
    assert re.findall(r"The page with the pictures: (\S+)", done.stdout) == ["s3://runs/a/report.html"]
    assert b"<html" in place_of("s3://runs/a").read("report.html")
    run("report", "s3://runs/a", "--study", study, "--condense", "s3://runs/a/all.json")
    assert json.loads(run("report", "s3://runs/a/all.json", "--json").stdout)["report"] == "s3://runs/a/all.html"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.py", "own_study.py"]


@pytest.mark.parametrize("at", [0, 3])
def test_a_run_that_the_bucket_ended_is_taken_up(endpoint, tmp_path: Path, monkeypatch, run, at: int) -> None:
    """The bucket fails at a part, or between a part and its mark; the same command goes on, to the same records."""
    monkeypatch.chdir(tmp_path)
    study = str(write_own(tmp_path))
    words = ("study", "run", study, "--seeds", 2, "--workers", 1, "--out")
    out, write, left = f"s3://runs/broken{at}", Bucket.write, iter(range(100))

    def failing(place: Bucket, name: str, content: bytes, *, replace: bool = True) -> bool:
        if name.startswith(("part-", "cell-")) and next(left) >= at:
            raise StoreError(f"{place} cannot be reached: no answer from nowhere")
        return write(place, name, content, replace=replace)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "write", failing)
        (line,) = [line for line in run(*words, out, code=2).stderr.splitlines() if line.startswith("normscope:")]
    assert "cannot be reached" in line
    assert len(Store.open(f"{out}/own-study").completed()) == at // 2
    assert not place_of(f"{out}/own-study").holds("driver-whole.json")
    run(*words, out)
    run(*words, tmp_path / "local")
    assert Store.open(f"{out}/own-study").frame().equals(Store.open(tmp_path / "local" / "own-study").frame())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "s3://runs/none"], "s3://runs/none holds no run"),
        (["report", "s3://runs/none.json"], "s3://runs/none.json holds no run"),
        (["watch", "s3://runs/a"], "the live page needs a folder of this machine, not s3://runs/a"),
        (["study", "run", "noisy-batchnorm", "--out", "s3://absent/a"], "s3://absent/a: there is no such bucket"),
        (["study", "run", "noisy-batchnorm", "--out", "ftp://x/a"], "ftp:// is no address that can be written"),
        (["compare", "x.py:make", "--out", "s3://"], "s3:// names no bucket"),
    ],
)
def test_a_wrong_address_is_one_line(endpoint, tmp_path: Path, monkeypatch, refuse, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").write_text("def make(): pass\n")
    assert said in refuse(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["x.py"]
