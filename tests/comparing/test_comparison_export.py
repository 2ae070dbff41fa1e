"""The export of a comparison: files by kind, whole or not at all, with every contrast and every figure."""

import csv
import dataclasses
import os
import re
import shutil
import subprocess

import pytest

from kit import compared_pages, planted_pages
from normscope._errors import StoreError, UsageError
from normscope.comparing.export import KINDS, export


def write(folder, kinds=KINDS, page=None):
    page = planted_pages.page() if page is None else page
    return export(folder, kinds, page, planted_pages.answers(), planted_pages.records())


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "deep" / "folder"
    return folder, write(folder)


def test_every_kind_writes_its_files_and_their_paths_are_returned(written):
    folder, paths = written
    slugs = {each.slug for each in compared_pages.figures()}
    figures = {f"{code}-{slug}" for code in ("smoothness", "speed") for slug in slugs}
    tables = {"answers.csv", "contrasts.csv", "records.csv", "answers.tex"}
    expected = {f"{name}.{kind}" for name in figures for kind in ("pdf", "svg")} | tables
    assert sorted(path.name for path in paths) == sorted(os.listdir(folder)) == sorted(expected)


def test_figures_are_what_their_suffix_says_on_a_white_ground(written):
    folder, _ = written
    for path in folder.glob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF-")
    for path in folder.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<svg")
        assert 'fill="#ffffff"' in text[:600]


def test_a_name_of_a_figure_is_one_that_every_file_system_takes_and_no_figure_is_lost(tmp_path):
    first, second = compared_pages.figures()
    hostile = [
        dataclasses.replace(first, slug="../../x y/\\:é*"),
        dataclasses.replace(first, slug="same", title="One"),
        dataclasses.replace(second, slug="same", title="Two"),
        dataclasses.replace(second, slug="same", title="Two"),
        dataclasses.replace(second, slug="speed-own"),
    ]
    answer = planted_pages.shown()[3]
    page = planted_pages.page(shown=(dataclasses.replace(answer, figures=tuple(hostile)),))
    names = [path.name for path in write(tmp_path / "in", ["svg"], page)]
    assert names == ["speed-x-y.svg", "speed-one.svg", "speed-two.svg", "speed-two--2.svg", "speed-own.svg"]
    assert os.listdir(tmp_path) == ["in"]


def test_every_contrast_is_a_row_with_effect_interval_word_and_premises(written):
    found = rows(written[0] / "contrasts.csv")
    verdicts = compared_pages.verdicts()
    expected = [(code, each) for code, head in verdicts.items() for each in (head, *head.parts)]
    assert len(found) == len(expected) == 8
    for row, (code, verdict) in zip(found, expected, strict=True):
        assert row["question"] == code
        assert (row["decides"] == "true") is (verdict is verdicts[code] or verdict == verdicts[code])
        numbers = [float(row[name]) for name in ("effect", "low", "high", "level")]
        effect = verdict.effect
        assert numbers == [effect.point, effect.low, effect.high, effect.level]
        assert row["word"] == verdict.outcome.value
        assert row["amount"] == verdict.amount
        for premise in verdict.premises:
            assert f"{'met' if premise.met else 'not met'}: {premise.words}" in row["premises"]
        for condition in verdict.conditions:
            assert f"{condition.name}: {condition.value}" in row["conditions"]


def test_answers_and_records_are_the_frames(written):
    assert rows(written[0] / "answers.csv") == [{"question": "speed", "word": "holds", "effect": "0.172"}]
    assert [row["value"] for row in rows(written[0] / "records.csv")] == ["1.5", "inf"]


def test_the_latex_table_has_a_row_a_question(written):
    lines = (written[0] / "answers.tex").read_text(encoding="ascii").splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert body[0] == r"Question & Effect & Interval & Word \\"
    assert [line.split(" & ")[3] for line in body[1:]] == [
        rf"{each.outcome.value} \\" for each in compared_pages.verdicts().values()
    ]
    assert r"17.2 \% lower & 15 to 19 & holds \\" in body[4]
    assert r"\textendash{} & \textendash{} & not measurable" in body[3]  # a number that says nothing is left out


def test_the_latex_table_is_no_wider_than_a_line(written):
    """In the standard classes a column has 6 pt on either side, and a line 345 pt."""
    text = (written[0] / "answers.tex").read_text(encoding="ascii")
    widths = re.findall(r"p\{(0\.\d+)\\linewidth\}", text)
    assert len(widths) == 4  # a column of another kind is as wide as its longest word
    assert sum(map(float, widths)) * 345 + 8 * 6 <= 345


def test_with_too_few_seeds_no_word_is_exported(tmp_path):
    write(tmp_path, ["csv", "latex"], planted_pages.page(described=True))
    found = rows(tmp_path / "contrasts.csv")
    assert {row["word"] for row in found} == {""}
    assert {row["low"] for row in found} == {"-inf"}
    assert r"17.2 \% lower & \textendash{} & described \\" in (tmp_path / "answers.tex").read_text(encoding="ascii")


def test_one_kind_may_be_a_word(tmp_path):
    assert [path.name for path in write(tmp_path, "latex")] == ["answers.tex"]
    assert [path.name for path in write(tmp_path, ["latex", "latex"])] == ["answers.tex"]


@pytest.mark.parametrize("kinds", [["csv", "docx"], "png", [], ["PDF"]])
def test_an_unknown_kind_names_the_known_and_writes_nothing(tmp_path, kinds):
    with pytest.raises(UsageError) as caught:
        write(tmp_path / "out", kinds)
    assert all(kind in str(caught.value) for kind in KINDS)
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "answers.tex").write_text("old")

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="No space left"):
        write(tmp_path, ["latex"])
    assert (tmp_path / "answers.tex").read_text() == "old"
    assert os.listdir(tmp_path) == ["answers.tex"]


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        write(tmp_path / "file", ["csv"])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_table_is_set_by_latex_on_a_page_and_within_its_width(written, tmp_path):
    packages = r"\documentclass{article}\usepackage{booktabs}"
    table = (written[0] / "answers.tex").as_posix()
    (tmp_path / "page.tex").write_text(
        rf"{packages}\begin{{document}}\input{{{table}}}\end{{document}}", encoding="utf-8"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stdout[-2000:]
    assert "Overfull" not in made.stdout
    assert "(1 page" in made.stdout
