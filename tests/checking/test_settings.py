"""What a project says of a check in ``pyproject.toml``: found, heeded, overruled by options, refused in one line."""

import json

import pytest
import torch
from check_setups import POISONED

import normscope as ns
from normscope._errors import UsageError
from normscope.checking.settings import Settings, settings_for, settings_in

# NS103 at 1 and at 4, NS108 at 1.
TWO = """
def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, momentum=0.9), nn.ReLU(),
        nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
    )
    for batch in data():
        model(batch[0])
    model[1].running_mean[2] = model[4].running_mean[0] = float("nan")
    return model, loss_fn, data()
"""


@pytest.fixture
def project(tmp_path, write):
    """Write a project's settings, and return a target in a folder below."""

    def project(settings, code=TWO, header="[tool.normscope]"):
        (tmp_path / "pyproject.toml").write_text(f"[project]\nname = 'x'\n{header}\n{settings}\n")
        (tmp_path / "src" / "part").mkdir(parents=True, exist_ok=True)
        return f"{write(code, 'src/part/train.py')}:make"

    return project


def document(run, *words, code=1):
    return json.loads(run("check", *words, "--json", code=code).stdout)


def test_rules_and_level_are_those_of_the_nearest_file(run, project, tmp_path, monkeypatch):
    target = project("select = ['NS103', 'ns108']\nignore = ['non-finite-statistics']\nlevel = 'info'")
    found = document(run, target)
    assert found["rules"] == ["NS108"]
    assert [each["code"] for each in found["findings"]] == ["NS108"]
    assert found["settings"] == str(tmp_path / "pyproject.toml")
    monkeypatch.chdir(tmp_path)
    assert "settings of pyproject.toml" in run("check", target, code=1).stdout
    (tmp_path / "src" / "pyproject.toml").write_text("[tool.other]\nx = 1\n")  # says nothing: the search goes on
    assert document(run, target)["rules"] == ["NS108"]
    (tmp_path / "src" / "pyproject.toml").write_text("[tool.normscope]\nselect = ['NS123']\n")
    assert document(run, target, code=0)["rules"] == ["NS123"]


def test_a_module_has_the_settings_of_the_working_directory(run, project, tmp_path, monkeypatch, write):
    project("select = ['NS108']")
    write(TWO, "src/part/planted_train.py")
    monkeypatch.chdir(tmp_path / "src" / "part")
    assert document(run, "planted_train:make")["rules"] == ["NS108"]
    project("select = ['NS103']")
    torch.save(torch.nn.BatchNorm1d(3).state_dict(), tmp_path / "state.pt")
    assert document(run, "--state-dict", tmp_path / "state.pt", code=0)["rules"] == ["NS103"]


def test_options_win(run, project, tmp_path):
    target = project("select = ['NS103', 'NS108']\nignore = ['NS103']\nlevel = 'error'")
    assert document(run, target, "--select", "NS103")["rules"] == ["NS103"]  # asked for by name, though ignored
    assert document(run, target, "--ignore", "NS108")["rules"] == ["NS103"]
    assert document(run, target, "--level", "info")["rules"] == ["NS108"]
    every = document(run, target, "--no-config", "--select", "NS10")
    assert {"NS101", "NS103", "NS108"} <= set(every["rules"])
    assert every["settings"] is None
    other = tmp_path / "other.toml"
    for text in ("select = ['NS108']", "[tool.normscope]\nselect = ['NS108']"):
        other.write_text(f"{text}\nlevel = 'info'\n")
        found = document(run, target, "--config", other)
        assert (found["rules"], found["settings"]) == (["NS108"], str(other))


@pytest.mark.parametrize(
    ("settings", "left", "ignored"),
    [
        ("ignore = {NS103 = 'planted'}", ["NS108"], {"NS103": "planted"}),
        ("ignore = {NS10 = 'all of them'}", [], {"NS103": "all of them", "NS108": "all of them"}),
        ("ignore = {momentum-convention = 'on purpose'}", ["NS103"], {"NS108": "on purpose"}),
        ("per-path-ignores = {'1' = {NS = 'first'}}", ["NS103"], {"NS108": "first"}),
        ("per-path-ignores = {'[14]' = {NS103 = 'both'}}", ["NS108"], {"NS103": "both"}),
        (
            "[tool.normscope.per-path-ignores]\n'1' = {NS10 = 'first'}\n'4*' = {NS103 = 'second'}",
            [],
            {"NS103": "first", "NS108": "first"},
        ),
        ("per-path-ignores = {'2' = {NS = 'no norm'}}", ["NS103", "NS108"], {}),
    ],
)
def test_a_finding_is_ignored_where_each_of_its_places_has_a_reason(run, project, settings, left, ignored):
    target = project(settings)
    found = document(run, target, "--select", "NS103,NS108", "--level", "info", code=1 if left else 0)
    assert [each["code"] for each in found["findings"]] == left
    assert {each["code"]: each["reason"] for each in found["ignored"]} == ignored
    assert found["rules"] == ["NS103", "NS108"]


def test_marks_in_the_code_and_settings_add_up(run, project):
    code = TWO.replace("    return", "    ns.ignore(model[4], 'NS103', 'marked')\n    return")
    target = project("per-path-ignores = {'1' = {NS103 = 'said'}}", code)
    found = document(run, target, "--select", "NS103", code=0)
    assert [each["reason"] for each in found["ignored"]] == ["said"]


def test_reasons_hold_for_a_checkpoint_and_for_fixes(run, project, tmp_path, monkeypatch):
    target = project("ignore = {NS103 = 'planted'}", POISONED)
    found = document(run, target, "--select", "NS103", "--unsafe-fixes", code=0)
    assert (found["findings"], found["fixes"]) == ([], [])
    assert [each["reason"] for each in found["ignored"]] == ["planted"]
    norm = torch.nn.BatchNorm1d(3)
    norm.running_mean[0] = torch.nan
    torch.save(norm.state_dict(), tmp_path / "state.pt")
    monkeypatch.chdir(tmp_path)
    found = document(run, "--state-dict", "state.pt", "--select", "NS103", code=0)
    assert [each["reason"] for each in found["ignored"]] == ["planted"]


WRONG = {
    "selct = ['NS1']": "there is no setting 'selct': did you mean select",
    "paths = 3": "there is no setting 'paths': did you mean per-path-ignores",
    "select = 'NS1'": "select must be a list of codes",
    "select = [1]": "select must hold codes or names of rules, not 1",
    "select = ['NS9']": "select: 'NS9' fits no rule",
    "select = ['']": "select must hold codes or names of rules, not ''",
    "select = []": "no rule is left to run",
    "ignore = 3": "ignore must be a list of codes or a table of code and reason",
    "ignore = ['E501']": "ignore: 'E501' fits no rule",
    "ignore = {NS1 = ''}": "ignore: say why NS1 is to be ignored",
    "ignore = {NS1 = 3}": "ignore: say why NS1 is to be ignored",
    "ignore = ['NS']": "no rule is left to run",
    "level = 'warn'": "there is no level 'warn': did you mean warning",
    "level = 2": "there is no level 2: did you mean error or warning or info",
    "per-path-ignores = ['NS1']": "per-path-ignores must be a table of patterns of modules' paths, not a list",
    "per-path-ignores = {'a.*' = 'NS1'}": "per-path-ignores.'a.*' must be a table of code and reason",
    "per-path-ignores = {'a.*' = {E501 = 'why'}}": "per-path-ignores.'a.*': 'E501' fits no rule",
    "per-path-ignores = {'a.*' = {NS1 = true}}": "per-path-ignores.'a.*': say why NS1",
    "select = [": "is no valid TOML",
    "level = 'error'\nlevel = 'info'": "is no valid TOML",
}


@pytest.mark.parametrize("settings", WRONG)
def test_a_mistake_is_one_line_and_nothing_runs(refuse, project, tmp_path, settings):
    target = project(settings, f"open({str(tmp_path / 'ran')!r}, 'w')")
    said = refuse(target)
    assert WRONG[settings] in said
    if "no rule is left" not in said:
        assert f"{tmp_path / 'pyproject.toml'}" in said
    assert not (tmp_path / "ran").exists()


def test_a_table_that_is_none_is_one_line(refuse, project):
    assert "tool.normscope must be a table, not a text" in refuse(project("", header="[tool]\nnormscope = 'x'"))


def test_other_mistakes_with_files_are_one_line(refuse, project, tmp_path):
    target = project("select = ['NS1']")
    assert "exclude each other" in refuse(target, "--config", tmp_path / "x.toml", "--no-config")
    assert "cannot read" in refuse(target, "--config", tmp_path / "missing.toml")
    assert "cannot read" in refuse(target, "--config", tmp_path)
    (tmp_path / "src" / "pyproject.toml").write_text("[tool.other]\n")
    assert "has no table [tool.normscope]" in refuse(target, "--config", tmp_path / "src" / "pyproject.toml")
    (tmp_path / "latin.toml").write_bytes("# caf\xe9\n".encode("latin-1"))
    assert "is no text in UTF-8" in refuse(target, "--config", tmp_path / "latin.toml")
    (tmp_path / "ruff.toml").write_text("line-length = 120\n")
    assert "there is no setting 'line-length'" in refuse(target, "--config", tmp_path / "ruff.toml")


def test_a_file_may_begin_with_a_mark_of_its_encoding(tmp_path):
    (tmp_path / "pyproject.toml").write_bytes(b"\xef\xbb\xbf[tool.normscope]\nlevel = 'info'\n")
    assert settings_for(tmp_path / "no" / "such").level == "info"
    assert settings_in(tmp_path / "pyproject.toml").level == "info"


def test_without_a_file_nothing_is_said(tmp_path):
    assert settings_for(tmp_path) == Settings()
    (tmp_path / "pyproject.toml").write_text("tool = 3\n")
    assert settings_for(tmp_path) == Settings()


def test_selecting_nothing_is_refused(refuse, write):
    target = f"{write(TWO)}:make"
    assert "'' names no rule" in refuse(target, "--select", "")
    assert "', ,' names no rule" in refuse(target, "--ignore", ", ,")
    assert "no rule is left to run" in refuse(target, "--select", "NS105", "--ignore", "NS1")


def test_the_library_reads_no_file(project, monkeypatch, tmp_path, write):
    project("select = ['NS9']")
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(compile(write(TWO).read_text(), "train.py", "exec"), space)
    model, loss_fn, loader = space["make"]()
    assert len(ns.check(model, loss_fn, loader, select=["NS103"])) == 1
    with pytest.raises(UsageError, match="NS9"):
        settings_for(tmp_path)
