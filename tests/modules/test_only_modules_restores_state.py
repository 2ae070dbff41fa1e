"""Only the room `modules` puts back what models, optimizers and random streams were.

Everywhere else it is done through `Snapshot`, `traceless`, `transaction`, `Values`, `RngState`, `in_mode`: a second
restore, written by hand, has always forgotten something. What counts as a restore by hand:

- a random stream is set to a state, or forked (`torch.random.fork_rng` forgets streams that it is not told of);
- the attributes of an object are replaced as a whole (`vars(x).clear()`, `vars(x).update(...)`);
- where a block is left (in `finally`, in `except`, after the `yield` of a context manager), a tensor is written to or a
  mode, a gradient, a class, a parameter or a buffer is assigned.
"""

import ast
from pathlib import Path

import pytest

import normscope

SOURCE = Path(normscope.__file__).parent
STREAMS = {"set_rng_state", "set_rng_state_all", "setstate", "set_state", "fork_rng"}
STATE = {"data", "grad", "training", "requires_grad", "__class__", "running_mean", "running_var"}
TABLES = {"_parameters", "_buffers"}


def restores(code):
    """Return (line, what) of every restore by hand in a piece of code."""
    tree = ast.parse(code)
    found = [(node.lineno, what) for node in ast.walk(tree) if (what := anywhere(node))]
    for statement in (part for region in regions(tree) for part in region):
        found += [(node.lineno, what) for node in ast.walk(statement) if (what := on_leaving(node))]
    return sorted(set(found))


def anywhere(node):
    """Say which restore a node is wherever it stands."""
    if not isinstance(node, ast.Call):
        return ""
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in STREAMS:
        return f"sets a random stream: {name}"
    if isinstance(node.func, ast.Attribute) and name in ("clear", "update") and is_attributes(node.func.value):
        return "replaces the attributes of an object"
    return ""


def on_leaving(node):
    """Say which restore a node is where a block is left."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name == "load_state_dict" or (name.endswith("_") and not name.startswith("_") and not name.endswith("__")):
            return f"writes to a tensor: {name}"
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    for target in (part for whole in targets for part in ast.walk(whole)):
        if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store) and target.attr in STATE:
            return f"assigns {target.attr}"
        if isinstance(target, ast.Subscript) and isinstance(target.ctx, ast.Store):
            table = target.value
            if is_attributes(table) or (isinstance(table, ast.Attribute) and table.attr in TABLES):
                return "assigns an attribute, a parameter or a buffer"
    return ""


def is_attributes(node):
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "vars"
    return called or (isinstance(node, ast.Attribute) and node.attr == "__dict__")


def regions(tree):
    """Yield lists of statements that run when a block is left."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            yield node.finalbody
            yield from (handler.body for handler in node.handlers)
        if isinstance(node, ast.FunctionDef) and any("contextmanager" in ast.dump(d) for d in node.decorator_list):
            yield from after_yield(node)


def after_yield(node):
    for body in (body for part in ast.walk(node) for name in ("body", "orelse") if (body := getattr(part, name, None))):
        if isinstance(body, list):
            for index, statement in enumerate(body):
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Yield):
                    yield body[index + 1 :]


def test_no_other_room_restores_state():
    files = [path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).parts[0] != "modules"]
    assert len(files) > 200
    found = [f"{path.relative_to(SOURCE)}:{line} {what}" for path in files for line, what in restores(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "planted",
    [
        "torch.set_rng_state(before)",
        "generator.set_state(before)",
        "random.setstate(before)",
        "setstate(before)",
        "with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)",
        "from torch.random import fork_rng\nwith fork_rng():\n    run()",
        "vars(module).clear()",
        "module.__dict__.update(kept)",
        "try:\n    run()\nfinally:\n    for t, kept in values:\n        t.copy_(kept)",
        "try:\n    run()\nfinally:\n    module.training = mode",
        "try:\n    run()\nexcept Exception:\n    model.load_state_dict(before)\n    raise",
        "try:\n    run()\nfinally:\n    module._buffers['running_mean'] = before",
        "try:\n    run()\nfinally:\n    vars(module)['forward'] = before",
        "@contextmanager\ndef kept(p):\n    yield\n    p.data = before",
        "@contextlib.contextmanager\ndef kept(p):\n    with no_grad():\n        yield\n        p.requires_grad_(True)",
    ],
)
def test_a_planted_restore_is_seen(planted):
    assert len(restores(planted)) == 1


@pytest.mark.parametrize(
    "harmless",
    [
        "try:\n    run()\nfinally:\n    snapshot.restore()",
        "try:\n    run()\nfinally:\n    handles.clear()\n    self.batch = before",
        "with torch.no_grad():\n    weight.copy_(scaled)",
        "module.training = False",
        "@contextmanager\ndef quiet(p):\n    with warnings.catch_warnings():\n        yield",
    ],
)
def test_what_is_no_restore_is_let_be(harmless):
    assert restores(harmless) == []


def test_the_room_itself_would_be_seen():
    """The search finds the restores where they are allowed: it does not pass because it sees nothing."""
    assert sum(len(restores(path.read_text())) for path in (SOURCE / "modules").glob("*.py")) >= 5
