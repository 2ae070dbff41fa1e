"""Which small faults in a room do its tests catch? A seeded sample of mutants, and the mutants that no test noticed.

    python benchmarks/mutants.py ROOM [--count 40] [--seed 0] [--tests PATH ...] [--root CHECKOUT] [--json OUT]

The faults come from the operators of mutmut, and from one of our own that takes a statement out. mutmut itself would
not reach functions with a decorator or constants of modules and classes; cosmic-ray would start a fresh pytest, torch
and all, for every mutant. So this file applies the operators and runs the tests itself:

1. It copies the checkout, imports what the room's tests import, and collects them, once.
2. It runs them once, in a fork of that process, and notes the processor time of each and the lines that each reaches.
3. For each mutant it forks again, puts the changed code into the functions that are already there, and runs the tests
   that reach the changed line, quick files first, until the first failure. If these would take longer than the budget,
   quick tests and those that reach little else of the room are taken.
4. A mutant that changes more than the body or a default of a function gets a fresh interpreter; with ``--fresh``, so
   does every mutant that no test noticed, as it must where tests start processes of their own.

A line is drawn first and then one of its mutants, so that a call of many arguments counts no more than a comparison.
Texts (docstrings, messages of exceptions), annotations and imports are left alone. ``mutants.toml`` beside this file
lists mutants that no test can or should notice, with the reason; they count as explained.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import gc
import io
import itertools
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import coverage
import libcst as cst
import pytest
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

HERE = Path(__file__).resolve()
EXPLAINED = HERE.with_suffix(".toml")
# Where the tests of a room are, if not all in the folder of its name.
TESTS = {
    "allocator": ["tests/package"],
    "evidence": ["tests/evidence", "tests/rules"],
    "explain": ["tests/package"],
    "ops": ["tests/ops", "tests/layers", "tests/kernels"],
    "modules": ["tests/modules", "tests/probes", "tests/surgery"],
    "studies": ["tests/studies"],
    "usercode": ["tests/package", "tests/cli", "tests/checking"],
    "verdicts": ["tests/package", "tests/cli"],
}
STRINGS = (mutators.operator_string, mutators.operator_dict_arguments)
SPARE = 20.0  # processor seconds that a run of tests may take beyond what it took unchanged


# Mutants


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One changed file: its path below the checkout, the line, the operator, and the text before and after."""

    path: str
    line: int
    operator: str
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The change as a unified diff without context."""
        lines = difflib.unified_diff(self.before.splitlines(), self.after.splitlines(), lineterm="", n=0)
        changed = [line for line in lines if line[:2] not in ("--", "++", "@@")]
        return f"{self.path}:{self.line}\n" + "\n".join(f"    {line[0]} {line[1:].strip()}" for line in changed)

    @property
    def change(self) -> tuple[str, str, str]:
        """(path, removed text, added text), indentation and line numbers left out: how ``mutants.toml`` names it."""
        lines = self.diff.splitlines()[1:]
        removed, added = (" ".join(line[6:] for line in lines if line[4] == sign) for sign in "-+")
        return self.path, removed, added


def without_statement(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Replace a call whose value nobody reads, and a ``raise``, by ``pass``."""
    if isinstance(node, cst.Raise) or (isinstance(node, cst.Expr) and isinstance(node.value, cst.Call)):
        yield cst.Pass()


_WITH_OPERATOR = (cst.BinaryOperation, cst.UnaryOperation, cst.BooleanOperation, cst.ComparisonTarget, cst.AugAssign)
# mutmut offers these two every node; only nodes of these kinds have what they change.
_NARROWER = {
    mutators.operator_swap_op: _WITH_OPERATOR,
    mutators.operator_keywords: (cst.Is, cst.IsNot, cst.In, cst.NotIn, cst.Break, cst.Continue),
}
OPERATORS: list[tuple[Any, Callable[[Any], Iterable[cst.CSTNode]]]] = [
    *[
        (_NARROWER.get(operator, kind), operator)
        for kind, operator in mutators.mutation_operators
        if operator not in STRINGS
    ],
    ((cst.Raise, cst.Expr), without_statement),
]


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str, cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom | cst.FormattedString):
            return False
        if isinstance(node, cst.If) and "TYPE_CHECKING" in cst.Module([]).code_for_node(node.test):
            return False
        if isinstance(node, cst.Assign) and _of_types(node):
            return False
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                place: CodeRange | None = self.get_metadata(PositionProvider, node, None)
                if place is not None:
                    self.found += [(place.start.line, operator.__name__, node, new) for new in operator(node)]
        return not isinstance(node, cst.Raise)


def _of_types(node: cst.Assign) -> bool:
    """Whether an assignment names a type (``Norm = Callable[[int], Module]``) or lists the public names."""
    target = node.targets[0].target
    if not isinstance(target, cst.Name):
        return False
    camel = target.value[0].isupper() and not target.value.isupper()
    return target.value == "__all__" or ((camel or len(target.value) == 1) and not isinstance(node.value, cst.Name))


def mutants_of(path: Path, root: Path) -> Iterator[tuple[int, Callable[[], Mutant | None]]]:
    """Yield (line, make the mutant) for every mutant of a file; None is made of a change that does not compile."""
    text = path.read_text()
    wrapper = MetadataWrapper(cst.parse_module(text))
    visitor = _Visitor()
    wrapper.visit(visitor)
    relative = str(path.relative_to(root))
    before = ast.dump(ast.parse(text))

    def make(line: int, name: str, old: cst.CSTNode, new: cst.CSTNode) -> Mutant | None:
        changed = wrapper.module.deep_replace(old, new)
        try:
            after = changed.code
            same = ast.dump(ast.parse(after)) == before
        except (SyntaxError, AttributeError):
            return None
        return None if same else Mutant(relative, line, name.removeprefix("operator_"), text, after)

    for found in visitor.found:
        yield found[0], lambda found=found: make(*found)


def sample(room: Path, root: Path, count: int, seed: int) -> list[Mutant]:
    """Draw lines of a room, and of each line one mutant.

    Args:
        room: The folder or file of the room.
        root: The checkout.
        count: How many mutants.
        seed: The same seed draws the same mutants of the same code.
    """
    files = sorted(room.rglob("*.py")) if room.is_dir() else [room]
    lines: dict[tuple[str, int], list[Callable[[], Mutant | None]]] = {}
    for path in files:
        for line, make in mutants_of(path, root):
            lines.setdefault((str(path), line), []).append(make)
    draw = random.Random(seed)
    drawn: list[Mutant] = []
    for place in draw.sample(sorted(lines), len(lines)):
        made = (make() for make in draw.sample(lines[place], len(lines[place])))
        drawn += itertools.islice(filter(None, made), 1)
        if len(drawn) == count:
            break
    return drawn


# Putting a mutant into a process that has imported the module already


def _parts(code: types.CodeType) -> tuple[Any, ...]:
    """Return all that a code object is, its lines and the code objects inside it left out."""
    constants = tuple(("code",) if isinstance(c, types.CodeType) else (type(c), repr(c)) for c in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, constants


def _inside(code: types.CodeType) -> list[types.CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _changed(old: types.CodeType, new: types.CodeType) -> list[tuple[types.CodeType, types.CodeType]] | None:
    """Return (old, new) of the outermost functions that differ; None if anything outside functions does."""
    function = bool(old.co_flags & 0x02)  # CO_NEWLOCALS: neither a module nor the body of a class
    if function:
        return [(old, new)] if not _alike(old, new) else []
    if _parts(old) != _parts(new):
        return None
    pairs = []
    for inner in map(_changed, _inside(old), _inside(new)):
        if inner is None:
            return None
        pairs += inner
    return pairs


def _alike(old: types.CodeType, new: types.CodeType) -> bool:
    return _parts(old) == _parts(new) and all(map(_alike, _inside(old), _inside(new)))


def _defaults(mutant: Mutant) -> dict[str, tuple[list[Any], list[Any]]] | None:
    """Return the syntax of positional and keyword defaults, by qualified name of each function where they changed.

    None if anything else changed, or a function of that name is there twice.
    """

    def strip(text: str) -> tuple[str, dict[str, tuple[list[Any], list[Any]]] | None]:
        tree = ast.parse(text)
        defaults: dict[str, tuple[list[Any], list[Any]]] = {}
        twice = False

        def walk(node: ast.AST, prefix: str) -> None:
            nonlocal twice
            for child in ast.iter_child_nodes(node):
                name = prefix
                if isinstance(child, ast.ClassDef):
                    name = f"{prefix}{child.name}."
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    twice |= f"{prefix}{child.name}" in defaults
                    defaults[f"{prefix}{child.name}"] = (child.args.defaults, child.args.kw_defaults)
                    child.args.defaults, child.args.kw_defaults = [], []
                    continue  # a function inside a function: its defaults are code of the outer one
                walk(child, name)

        walk(tree, "")
        return ast.dump(tree), None if twice else defaults

    (old_rest, old), (new_rest, new) = strip(mutant.before), strip(mutant.after)
    if old_rest != new_rest or old is None or new is None:
        return None
    return {name: new[name] for name in old if list(map(_dump, old[name])) != list(map(_dump, new[name]))}


def _dump(nodes: list[Any]) -> list[str]:
    return [ast.dump(node) if node else "" for node in nodes]


def put_in(mutant: Mutant, root: Path) -> bool:
    """Give the functions of this process the code of a mutant; False if that would not be all of the change."""
    file = str(root / mutant.path)
    if not any(getattr(module, "__file__", None) == file for module in list(sys.modules.values())):
        return True  # not imported yet: the changed file is on the disk
    live = [f for f in gc.get_objects() if type(f) is types.FunctionType and f.__code__.co_filename == file]
    pairs = _changed(*(compile(text, file, "exec") for text in (mutant.before, mutant.after)))
    if not pairs:
        return _put_defaults(mutant, live)
    for old, new in pairs:
        found = [f for f in live if f.__code__ == old]
        if not found or old.co_freevars != new.co_freevars:
            return False
        for function in found:
            function.__code__ = new
    return True


def _put_defaults(mutant: Mutant, live: list[types.FunctionType]) -> bool:
    changed = _defaults(mutant)
    if not changed:
        return False
    for name, (positional, keyword) in changed.items():
        found = [f for f in live if f.__code__.co_qualname == name]
        if len(found) != 1:
            return False
        (function,) = found

        def value(node: ast.expr, scope: dict[str, Any] = function.__globals__) -> Any:
            return eval(compile(ast.Expression(node), "<default>", "eval"), scope)

        try:
            function.__defaults__ = tuple(map(value, positional)) or None
            names = [argument.arg for argument in _arguments(mutant, name).kwonlyargs]
            pairs = {n: value(node) for n, node in zip(names, keyword, strict=True) if node}
        except NameError:
            return False  # a name of the class around it
        function.__kwdefaults__ = pairs or None
    return True


def _arguments(mutant: Mutant, name: str) -> ast.arguments:
    node: Any = ast.parse(mutant.after)
    for part in name.split("."):
        node = next(child for child in ast.walk(node) if getattr(child, "name", "") == part)
    return node.args


# Running tests


@dataclasses.dataclass
class Outcome:
    """What became of a mutant: caught, timeout, survived, or unreached (no test of the room runs its line)."""

    mutant: Mutant
    word: str
    by: str = ""
    why: str = ""


class Server:
    """A pytest plugin: runs the collected tests again and again, each time in a fork.

    Args:
        work: Called with this server once the tests are collected.
    """

    def __init__(self, work: Callable[["Server"], None], room: Path) -> None:
        self.work = work
        self.failed: list[str] = []
        self.cover = coverage.Coverage(
            data_file=None, include=[f"{room}/*" if room.is_dir() else str(room)], config_file=False, messages=False
        )
        self.at_import: dict[str, list[int]] = {}

    def lines(self) -> dict[str, list[int]]:
        """Return the lines reached since the last call, by file."""
        self.cover.stop()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing of the room was reached
            data = self.cover.get_data()
        lines = {file: sorted(data.lines(file) or ()) for file in data.measured_files()}
        self.cover.erase()
        return lines

    def pytest_sessionstart(self) -> None:
        """Note from here on what is reached while the tests are imported."""
        self.cover.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Take the place of pytest's loop."""
        if session.testsfailed:
            raise session.Interrupted("the tests of the room are not even collected")
        self.session = session
        self.items = {item.nodeid: item for item in session.items}
        self.at_import = self.lines()
        self.work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note which test failed."""
        if report.failed:
            self.failed.append(report.nodeid)

    def run(self, names: Sequence[str], after_each: Callable[[str], None] | None = None) -> None:
        """Run tests in this process, until the first failure unless ``after_each`` is given."""
        items = [self.items[name] for name in names]
        for number, item in enumerate(items):
            following = items[number + 1] if number + 1 < len(items) else None
            self.session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if after_each:
                after_each(item.nodeid)
            elif self.failed:
                return


def in_fork(body: Callable[[], Any], seconds: float, wall: float) -> Any:
    """Run a function in a fork and return its value, read back as JSON; "timeout" if the fork ends or takes longer.

    Args:
        body: Returns what JSON can hold.
        seconds: Processor time allowed.
        wall: Time by the clock allowed: a deadlock uses no processor.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 5))
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        try:
            answer: Any = {"answer": body()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as out:
            json.dump(answer, out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as incoming:
        ready, _, _ = select.select([incoming], [], [], wall)
        text = incoming.read() if ready else ""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not text:
        return "timeout"
    answer = json.loads(text)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["answer"]


def processor() -> float:
    """Return the processor seconds of this process and of those that it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(server: Server) -> dict[str, Any]:
    """Run all tests once: their processor seconds, the lines of the room that each reaches, and those that fail."""
    seconds: dict[str, float] = {}
    reached: dict[str, dict[str, list[int]]] = {}
    began = [processor()]

    def after_each(name: str) -> None:
        reached[name] = server.lines()
        seconds[name] = processor() - began[0]
        began[0] = processor()
        server.cover.start()

    server.cover.start()
    server.run(list(server.items), after_each)
    return {"seconds": seconds, "reached": reached, "failed": server.failed}


def in_order(names: Sequence[str], seconds: dict[str, float]) -> list[str]:
    """Put tests in the order to run them: quick files first, and each file's tests together, as fixtures want it."""
    files: dict[str, float] = {}
    for name in names:
        files[name.partition("::")[0]] = files.get(name.partition("::")[0], 0) + seconds[name]
    place = {name: number for number, name in enumerate(seconds)}
    return sorted(names, key=lambda name: (files[name.partition("::")[0]], name.partition("::")[0], place[name]))


@contextlib.contextmanager
def on_disk(mutant: Mutant, root: Path, number: int) -> Iterator[None]:
    """Write the changed file, with a time that no compiled copy of it has; put the file back afterwards."""
    file = root / mutant.path
    times = file.stat()
    file.write_text(mutant.after)
    os.utime(file, (times.st_atime, times.st_mtime + 1000 + number))
    try:
        yield
    finally:
        file.write_text(mutant.before)
        os.utime(file, (times.st_atime, times.st_mtime))


def afresh(root: Path, names: Sequence[str], seconds: float) -> str:
    """Run tests in a fresh interpreter; return the first that failed, "timeout", or ""."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *names]
    wall = 120 + 20 * seconds
    try:
        done = subprocess.run(
            command,
            cwd=root,
            capture_output=True,
            text=True,
            timeout=wall,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 20, int(seconds) + 25)),
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return "timeout"
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return told[0].split(" - ")[0].partition(" ")[2] if told else "not even collected"


class Hunt:
    """The mutants of one room, and what became of each.

    Args:
        root: Copy of the checkout, in which files are changed.
        mutants: The mutants.
        budget: Processor seconds of tests that one mutant may cost; tests beyond it are not run.
        explained: Reasons by ``Mutant.change``.
        fresh: Whether a mutant that no test noticed is tried again in a fresh interpreter.
    """

    def __init__(
        self, root: Path, mutants: list[Mutant], budget: float, explained: dict[tuple[str, ...], str], fresh: bool
    ) -> None:
        self.root, self.mutants, self.budget, self.explained, self.fresh = root, mutants, budget, explained, fresh
        self.outcomes: list[Outcome] = []
        self.turn: dict[str, float] = {}

    def __call__(self, server: Server) -> None:
        """Judge every mutant by the collected tests."""
        began = time.monotonic()
        unchanged = in_fork(lambda: measure(server), seconds=7200, wall=14400)
        if unchanged == "timeout":
            raise SystemExit("the tests of the unchanged room do not come to an end")
        seconds, reached, failed = unchanged["seconds"], unchanged["reached"], set(unchanged["failed"])
        spent = f"{sum(seconds.values()):.0f} s of processor, {time.monotonic() - began:.0f} s by clock"
        say(f"{len(seconds)} tests, {spent}")
        for name in sorted(failed):
            say(f"left out, it fails on the unchanged room: {name}")
        # A quick test first, and of two as quick that which reaches less of the room: it says more of what it reaches.
        self.turn = {name: seconds[name] * (1 + len(reached[name])) for name in seconds}
        for number, mutant in enumerate(self.mutants):
            file = str(self.root / mutant.path)
            names = [name for name in seconds if name not in failed]
            of_file = [name for name in names if file in reached[name]]
            of_line = [name for name in of_file if mutant.line in reached[name][file]]
            beside: list[str] = []
            if not of_line and mutant.line in server.at_import.get(file, ()):
                # It runs at import, so any test may notice it; those that reach other lines of the file go first.
                of_line, beside = of_file, [name for name in names if name not in set(of_file)]
            outcome = self.judge(server, number, mutant, of_line, beside, seconds)
            outcome.why = self.explained.get(mutant.change, "")
            self.outcomes.append(outcome)
            mark = "explained" if outcome.why and outcome.word in ("survived", "unreached") else outcome.word
            place = f"{mutant.path}:{mutant.line} {mutant.operator}"
            say(f"{number + 1:3}/{len(self.mutants)} {mark:9} {place} {outcome.by}")

    def affordable(self, names: Sequence[str], seconds: dict[str, float]) -> list[str]:
        """Return the tests that the budget allows together, those whose turn comes first; one at least."""
        chosen, spent = [], 0.0
        for name in sorted(names, key=self.turn.__getitem__):
            if not chosen or spent + seconds[name] <= self.budget:
                chosen.append(name)
                spent += seconds[name]
        return chosen

    def judge(
        self,
        server: Server,
        number: int,
        mutant: Mutant,
        names: Sequence[str],
        beside: Sequence[str],
        seconds: dict[str, float],
    ) -> Outcome:
        """Run the tests that reach a mutant's line, and of those beside them as many as the same budget allows."""
        chosen = self.affordable(names, seconds) + self.affordable(beside, seconds)
        spent = sum(map(seconds.__getitem__, chosen))
        chosen = in_order(chosen, seconds)
        limit = SPARE + 3 * spent

        def body() -> str:
            if not put_in(mutant, self.root):
                return "afresh"
            server.failed.clear()
            server.run(chosen)
            return server.failed[0] if server.failed else ""

        with on_disk(mutant, self.root, number):
            by = in_fork(body, limit, 60 + 20 * limit) if chosen else ""
            if by == "afresh" or (by == "" and self.fresh):
                by = afresh(self.root, chosen or list(seconds), limit)
        if by == "":
            return Outcome(mutant, "survived" if chosen else "unreached")
        return Outcome(mutant, "timeout" if by == "timeout" else "caught", by)


def say(text: str) -> None:
    """Print to the terminal, past what pytest captures."""
    print(text, file=sys.__stderr__, flush=True)


def copied(checkout: Path, to: Path) -> Path:
    """Copy what the suite needs of a checkout."""
    skip = shutil.ignore_patterns("__pycache__", ".*_cache", ".venv", ".git", "runs", "build", "dist", ".hypothesis")
    shutil.copytree(checkout, to, ignore=skip)
    return to


def report(room: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """Print the survivors and the share caught; return the figures."""
    survivors = [o for o in outcomes if o.word in ("survived", "unreached")]
    explained = [o for o in survivors if o.why]
    for outcome in survivors:
        print(f"\n{outcome.word}{': ' + outcome.why if outcome.why else ''}\n{outcome.mutant.diff}")
    good = len(outcomes) - len(survivors) + len(explained)
    figures = {
        "room": room,
        "mutants": len(outcomes),
        "caught": len(outcomes) - len(survivors),
        "explained": len(explained),
        "share": round(good / max(len(outcomes), 1), 3),
        "survivors": [o.mutant.change for o in survivors if not o.why],
    }
    print(
        f"\n{room}: {good} of {len(outcomes)} caught or explained ({100 * figures['share']:.0f} %), "
        f"{len(explained)} of them explained"
    )
    return figures


def main(words: Sequence[str] | None = None) -> int:
    """Judge a room's tests by mutants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("room", help="folder or file under src/normscope, such as stats or studies/lab")
    parser.add_argument("--count", type=int, default=40, help="how many mutants (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="draws the same mutants of the same code (default 0)")
    parser.add_argument("--tests", nargs="+", help="test files or folders (default: tests/ROOM)")
    parser.add_argument("--budget", type=float, default=60, help="processor seconds of tests a mutant (default 60)")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="the checkout (default: this one)")
    parser.add_argument("--fresh", action="store_true", help="try survivors again in a fresh interpreter")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    asked = parser.parse_args(words)
    listed = tomllib.loads(EXPLAINED.read_text())["explained"] if EXPLAINED.exists() else []
    explained = {(e["file"], e["before"], e["after"]): e["why"] for e in listed}
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        root = copied(asked.root.resolve(), Path(scratch).resolve() / "checkout")
        room = root / "src/normscope" / asked.room
        if not room.exists():
            room = room.with_suffix(".py")
        mutants = sample(room, root, asked.count, asked.seed)
        if asked.list:
            print("\n".join(mutant.diff for mutant in mutants))
            return 0
        top = asked.room.partition("/")[0]
        tests = asked.tests or [path for path in TESTS.get(top, [f"tests/{top}"]) if (root / path).exists()]
        if not tests:
            parser.error(f"no tests/{top}: say where its tests are, by --tests")
        os.chdir(root)
        os.environ |= {
            "PYTHONPATH": str(root / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTEST_DEBUG_TEMPROOT": scratch,
            "TMPDIR": scratch,
        }
        tempfile.tempdir = scratch
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(root / "src"))
        hunt = Hunt(root, mutants, asked.budget, explained, asked.fresh)
        arguments = ["-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            pytest.main(arguments, plugins=[Server(hunt, room)])
        if not hunt.outcomes:
            print(printed.getvalue())
            return 1
        figures = report(asked.room, hunt.outcomes)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
