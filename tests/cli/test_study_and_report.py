"""``normscope study`` and ``normscope report`` as a user types them: words in; text, files and exit codes out."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from normscope.cli import study


def test_study_list_and_show(run):
    listed = json.loads(run("study", "list", "--json").stdout)
    slugs = [row["slug"] for row in listed]
    assert set(study.DEMO) <= set(slugs)
    text = run("study", "list").stdout
    assert all(slug in text for slug in study.DEMO)
    shown = run("study", "show", study.DEMO[0]).stdout
    for heading in ("Claim", "Method", "Prediction", "Threats"):
        assert f"\n{heading}\n" in shown


def test_unknown_names_are_answered_with_near_ones(refuse):
    assert "noisy-batchnorm" in refuse("explain", "noisy-batchnrm")
    assert "noisy-batchnorm" in refuse("study", "run", "noisy-batchnrm")
    assert "noisy-batchnorm" in refuse("study", "show", "noisy-batchnrm")


def test_misuse_is_one_line(refuse, tmp_path):
    assert "--all" in refuse("study", "run")
    assert "--all" in refuse("study", "run", "--all", "noisy-batchnorm")
    assert "preset" in refuse("study", "run", "noisy-batchnorm", "--preset", "slow", "--out", tmp_path)
    assert "holds neither the run of a study" in refuse("report", tmp_path)
    refuse("report", tmp_path / "missing")


def test_bad_data_is_one_line(refuse, tmp_path):
    where = ("--out", tmp_path / "runs", "--seeds", 1)
    assert "missing" in refuse("study", "run", "noisy-batchnorm", "--data", tmp_path / "missing", *where)
    truncated = tmp_path / "truncated.npz"
    np.savez(tmp_path / "whole.npz", x_train=np.zeros((9, 8, 8)), y_train=np.zeros(9, dtype=np.int64))
    truncated.write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    refuse("study", "run", "noisy-batchnorm", "--data", truncated, *where)
    assert "x_test" in refuse("study", "run", "noisy-batchnorm", "--data", tmp_path / "whole.npz", *where)
    images = np.full((40, 8, 8), np.nan)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "nan.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    refuse("study", "run", "noisy-batchnorm", "--data", tmp_path / "nan.npz", *where)
    assert not (tmp_path / "runs").exists()


def test_a_file_where_the_folder_should_be(refuse, tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "below"):
        refuse("study", "run", "noisy-batchnorm", "--seeds", 1, "--out", folder)
    assert (tmp_path / "runs").read_text() == "not a folder"


@pytest.mark.long
def test_one_seed_decides_nothing_of_an_experiment_and_the_report_can_be_written_again(run, refuse, tmp_path):
    out = tmp_path / "runs"
    slug = "bn-backward-three-terms"
    words = ["study", "run", slug, "--seeds", "1", "--workers", "1", "--out", str(out), "--json"]
    done = subprocess.run([sys.executable, "-m", "normscope", *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""  # no progress bar in a pipe
    first = json.loads(done.stdout)
    assert [row["study"] for row in first["verdicts"]] == [slug]
    page = Path(first["report"])
    before = page.read_text(encoding="utf-8")
    assert slug in before
    page.unlink()
    small, text = tmp_path / "evidence.json", tmp_path / "evidence.md"
    again = json.loads(run("report", out, "--json", "--condense", small).stdout)
    assert again["verdicts"] == first["verdicts"]
    assert page.is_file()
    told = json.loads(run("report", small, "--markdown", text, "--json").stdout)
    assert told["verdicts"] == first["verdicts"]
    assert told["report"] == str(small.with_suffix(".html"))
    assert slug in small.with_suffix(".html").read_text(encoding="utf-8")
    elsewhere = tmp_path / "deep" / "page.html"
    assert "page.html" in run("report", small, "--page", elsewhere).stdout
    assert elsewhere.is_file()
    kept = json.loads(small.read_text(encoding="utf-8"))["studies"][0]
    assert (kept["slug"], kept["card"], kept["preset"], kept["data"], kept["seeds"]) == (
        slug,
        1,
        "quick",
        "digits",
        [0],
    )
    assert kept["seconds"] > 0
    assert kept["cores"] >= 1
    assert kept["torch"].startswith("2.")
    assert len(kept["theory"]) == 3
    assert f"normscope study run {slug} --preset quick --seeds 1" in text.read_text(encoding="utf-8")
    joined = tmp_path / "joined.json"
    assert json.loads(run("report", out, "--json", "--condense", joined, "--join", small).stdout)["verdicts"]
    assert json.loads(joined.read_text())["studies"] == json.loads(small.read_text())["studies"]
    assert "give that too" in refuse("report", out, "--join", small)
    run("report", out, "--markdown", tmp_path / "direct.md")
    assert (tmp_path / "direct.md").read_bytes() == text.read_bytes()


def test_a_condensed_file_that_is_none_is_one_line(refuse, tmp_path):
    path = tmp_path / "evidence.json"
    path.write_text('{"format": "normscope evidence", "ver', encoding="utf-8")
    assert "not whole JSON" in refuse("report", path)
    assert "not whole JSON" in refuse("report", path, "--markdown", tmp_path / "evidence.md")
    path.write_text('{"name": "another"}', encoding="utf-8")
    assert "no condensed verdicts" in refuse("report", path)
    path.write_text('{"format": "normscope evidence", "version": 1}', encoding="utf-8")
    assert "has layout 1, this version reads 2: make it anew" in refuse("report", path)
    path.write_text('{"name": "another"}', encoding="utf-8")
    assert "no condensed verdicts" in refuse("report", path, "--markdown", tmp_path / "evidence.md")
    assert [path.name for path in tmp_path.iterdir()] == ["evidence.json"]
