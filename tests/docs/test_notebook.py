"""The example notebook runs as it stands, and shows what a scope saw."""

import ast
import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "watch.ipynb"


def shown(source, names):
    """Run a cell, and return the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_the_notebook_is_valid_and_holds_no_output():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_every_cell_runs_and_the_scope_shows_what_stands_out():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names = {"__name__": "notebook"}
    results = [shown("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    (html,) = [result._repr_html_() for result in results if type(result).__name__ == "Scope"]
    assert "Scope on Sequential" in html
    assert "Gradients grow 1." in html
    assert "theory says for a network with batch norm and ReLU" in html
    page = results[-1]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
