"""What a release is made of agrees: the version, wherever it stands, and the workflows with the commands they call."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import normscope

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_one_everywhere():
    latest = re.search(r"^## \[(\d[^]]*)\] - (\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.MULTILINE)
    citation = yaml.safe_load(read("CITATION.cff"))
    assert PROJECT["project"]["version"] == normscope.__version__ == latest[1] == citation["version"]
    assert citation["date-released"] == latest[2]
    own, _, embedded = PROJECT["project"]["license"].partition(" AND ")  # a citation file has no word for "and"
    assert citation["license"] == own
    assert embedded == "PSF-2.0"
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in read("src/normscope/studies/data/text-LICENSE.txt").upper()


def test_workflows_call_commands_of_the_makefile():
    targets = set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))
    called = {
        target
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        for step in job["steps"]
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))
    }
    assert called <= targets
    assert {"lint", "test", "test-extras", "docs", "dist"} <= called


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_no_more_than_it_needs_and_ends(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 180, name
        # Only a job that publishes may say who it is; it runs no code of the repository, and never for a pull request.
        if "permissions" in job:
            assert name == "publish"
            assert "event_name" in job["if"]
            assert not any(step.get("uses", "").startswith("actions/checkout") for step in job["steps"])
        assert set(job.get("needs", [])) <= set(workflow["jobs"]) or job["needs"] in workflow["jobs"], name


def test_wheels_are_tried_with_their_kernels_on_the_first_and_a_later_python():
    settings = PROJECT["tool"]["cibuildwheel"]
    script = settings["test-command"].removeprefix("python {project}/")
    assert "why_not()" in read(script)
    pythons = {pattern.partition("-")[0] for pattern in settings["build"]}
    assert min(pythons) == "cp" + PROJECT["project"]["requires-python"].removeprefix(">=").replace(".", "")
    assert len(pythons) > 1
