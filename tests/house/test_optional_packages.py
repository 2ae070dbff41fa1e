"""A test that skips where a package is missing runs somewhere: a target of the Makefile installs the package."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What these modules come with, where the distribution has another name.
DISTRIBUTIONS = {
    "codespell_lib": "codespell",
    "distributed": "dask",
    "mlflow": "mlflow-skinny",
    "safetensors": "transformers",
}
#: The older name of `lightning`, for whoever has that installed.
ELSEWHERE = {"pytorch_lightning"}


def installed():
    """The distributions that `make test`, `make test-extras` and `make mutants` install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["optional-dependencies"][name] for name in ("dev", "extras", "docs", "mutation")]
    return {re.match(r"[\w-]+", wanted)[0] for wanted in sum(lists, project["dependencies"])}


def skipped_for():
    """The modules that tests skip without, and where."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if called and node.func.attr == "importorskip" and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value.partition(".")[0], f"{file.relative_to(ROOT)}:{node.lineno}"


def test_what_tests_skip_without_is_installed_by_a_target():
    found = dict(skipped_for())
    assert {"obstore", "moto", "ray"} <= found.keys()
    wanted = {module: where for module, where in found.items() if module not in ELSEWHERE | {"kit"}}
    missing = {module: at for module, at in wanted.items() if DISTRIBUTIONS.get(module, module) not in installed()}
    assert not missing
