"""Command lines that a program must answer in a line: of each kind of mistake, drawn from a seed."""

import dataclasses
import random
import shutil
import typing
from collections.abc import Callable
from pathlib import Path

import typer.models

from kit import damaged_files, odd_paths, odd_scripts
from kit.damaged_runs import SMALL, copy_run, damage
from normscope import cli

NUMBERS = [
    "0",
    "-1",
    "-0",
    "1.5",
    "",
    "x",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "1000000000",
    "9" * 30,
    "9" * 5000,
    "٣",
    "0x10",
    " 7 ",
    "+",
    "1_0",
    "\0",
    "1\n2",
    "--",
    "1e999",
    "²",
]
WORDS = [
    "",
    " ",
    ",",
    ",,",
    "-",
    "--",
    "x",
    "é日本語🦆",
    "a\0b",
    "\udcff\udc80",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "x" * 100_000,
    "line\nline",
    "\rover",
    "\t",
    "null",
    "nan",
    "NS",
    "ns1",
    "NS999",
    "*",
    "../..",
    "own,own",
    "a=b",
    "=",
    "%s",
    "{}",
    "[bold]",
    "\u202egnp",
    "🏳️‍🌈",
    "\x00",
    "'",
    '"',
    "; touch stolen",
    "$(touch stolen)",
    "1h1h",
    "0s",
    "1e99h",
    "99999999999h",
    "own",
    "none,none",
    "speed",
    "cpu",
    "cuda:99",
    "meta",
    "mps",
    "quick",
    "digits",
]


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line, and the folder in which it is typed.

    Attributes:
        kind: What kind of mistake it makes.
        what: The mistake in words, for the message of a test.
        words: The words after the program's name.
        prepare: Writes what lies in the folder.
        may_write: Names in the folder below which the command may write.
        limit: Seconds that it may take.
        interrupt: Seconds after which it is interrupted, for what ends in no other way.
        terminal: Whether it prints to a terminal.
        loud: Whether the user's own code prints.
        needs_runs: Whether ``prepare`` copies what `make_runs` makes.
    """

    kind: str
    what: str
    words: tuple[str, ...]
    prepare: Callable[[Path], None] = lambda folder: None
    may_write: tuple[str, ...] = ("out",)
    limit: float = 300.0
    interrupt: float | None = None
    terminal: bool = False
    loud: bool = False
    needs_runs: bool = False


def lines(seed, made):
    """Return at least 600 lines, in an order that depends on the seed.

    Args:
        seed: Of what is drawn.
        made: The folder of `make_files` and, for lines that need runs, `make_runs`.
    """
    chance = random.Random(seed)
    found = [
        *_values(chance, made),
        *_words(made),
        *_paths(chance, made),
        *_runs(chance, made),
        *_data(made),
        *_scripts(made),
        *_studies(made),
        *_checkpoints(),
        *_settings(made),
    ]
    found = [dataclasses.replace(line, terminal=chance.random() < 0.3) for line in found]
    chance.shuffle(found)
    return found


# -- values of options ------------------------------------------------------------------------------------------------


def _leaves(app, words=()):
    for info in app.registered_commands:
        yield (*words, info.name or info.callback.__name__), info.callback
    for group in app.registered_groups:
        yield from _leaves(group.typer_instance, (*words, group.name))


def _options(function):
    """Yield (long name or None for an argument, type) of all that a command takes."""
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if name == "return":
            continue
        kind, *told = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint, None)
        if isinstance(told[0], typer.models.OptionInfo):
            names = [word for word in (told[0].default, *(told[0].param_decls or ())) if isinstance(word, str)]
            yield next((word for word in names if word.startswith("--")), "--" + name.replace("_", "-")), kind
        else:
            yield None, kind


#: Words with which a command would end soon, or be refused, but for the value that is tried.
USUAL = {
    ("demo",): ("--out", "script.py/below"),
    ("compare",): ("script.py:make", *SMALL, "--out", "out"),
    ("check",): ("script.py:make", "--select", "NS103"),
    ("report",): ("scope", "--page", "out/page.html"),
    ("watch",): ("script.py",),
    ("explain",): (),
    ("completion",): (),
    ("study", "show"): (),
    ("study", "run"): ("my_claim.py", "--seeds", "2", "--workers", "1", "--out", "out"),
    ("study", "new"): (),
    ("study", "calibrate"): ("--studies", "20", "--seeds", "2"),
    ("bench", "probes"): ("--case", "nothing-like-it"),
    ("bench", "layers"): ("--only", "nothing-like-it"),
    ("bench", "check"): ("--select", "NS999"),
}


def _with(usual, option, value):
    """Replace an option's value among the usual words, or add it."""
    words = list(usual)
    if option in words:
        at = words.index(option)
        del words[at : at + 2]
    return (*words, option, value)


def _usual_files(made, *names):
    def prepare(folder):
        for name in names or ("script.py", "my_claim.py", "scope"):
            copy_run(made / name, folder / name)

    return prepare


def _values(chance, made):
    for command, function in _leaves(cli.app):
        usual = USUAL.get(command, ())
        for option, kind in _options(function):
            if kind is bool or "Path" in str(kind):
                continue
            text = str(kind)
            pool = NUMBERS if "int" in text or "float" in text else WORDS
            for value in chance.sample(pool, 7 if option else 9):
                words = (*command, *(_with(usual, option, value) if option else (value, *usual)))
                if option in ("--case", "--only") and len(value) < 3:  # much is called so, and would be measured
                    continue
                if command == ("watch",) and option == "--port" and value in ("0",):
                    continue
                yield Line("value", f"{option} {value[:20]!r}", words, _usual_files(made), ("out", "runs"), 300)


#: Lines whose words contradict each other, stand twice, or are too few or too many.
COMMANDS = """\

--
-
-x
--version --version
--version=3
--help=3
-h -h
nothing
study nothing
study run
study run --all --demo
study run --all my_claim.py
study run --demo --all --json
study run my_claim.py my_claim.py --seeds 2 --seeds 3 --workers 1 --out out --out out --json --json
study run my_claim.py --preset quick --preset slow --out out
study run my_claim.py --seeds
study run --seeds 3
study run my_claim.py noisy-batchnorm nothing --out out
study run my_claim.py --no-extend
study run -- --all
study show
study show my_claim.py x
study new
study new a.py b.py
study new my_claim.py
study new a.txt
study new nodir/x.py
study new 1.py
study new .py
study new class.py
study new noisy-batchnorm.py
study calibrate --seeds 2 --seeds 2 --studies 20 --studies 20
study calibrate --seeds 2 --studies 19
study list x
study list --json --json
explain
explain a b
explain --json
explain probe: --json
explain probe:probe:x
explain :
explain ./my_claim.py
explain question:nothing
explain noisy_batchnorm
check
check script.py:make --state-dict x
check script.py:make --config a --no-config
check script.py:make --out x.pt
check script.py:make --fix --out x.txt
check script.py:make --fix --out no/x.pt
check script.py:make --fix --out script.py
check --state-dict x --fix
check script.py:make script.py:make
check script.py
check script.py:
check :make
check script.py::make
check script:make.make
check script.py:nothing
check json:loads
check sys:exit
check os:_exit
check builtins:input
check script.py:__name__
check script.py:torch
check script.py:torch.nn.Linear
check script.py:loss
check script.py:make --select NS103 --ignore NS103
check script.py:make --select NS103 --batches 1000000000
check script.py:make --select NS103 --timeout -1
check script.py:make --select NS103 --timeout nan
check script.py:make --select NS103 --timeout 0
check script.py:make --select NS103 --timeout inf
check script.py:make --select NS103 --timeout 1e300
check script.py:make --select NS103 --json --format sarif
check --explain NS1
check --explain
check --explain NS101 --json --format github
check --explain x y
compare
compare script.py
compare script.py:make script.py:make
compare a=script.py:make a=script.py:make
compare a=script.py:make
compare =script.py:make
compare a= b=
compare script.py:make --arms own
compare script.py:make --arms own,own --out out
compare script.py:make --arms nothing --out out
compare script.py:make --arms , --out out
compare script.py:make --rates 0 --out out
compare script.py:make --rates -1 --out out
compare script.py:make --rates nan --out out
compare script.py:make --rates inf,1 --out out
compare script.py:make --rates 1,1,1 --steps 3 --questions speed --seeds 1 --workers 1 --out out
compare script.py:make --rates , --out out
compare script.py:make --rates 1e-400 --out out
compare script.py:make --steps 1 --out out
compare script.py:make --steps 1000000000000 --out out
compare script.py:make --seeds 1000000000 --steps 3 --out out
compare script.py:make --budget 0 --out out
compare script.py:make --budget 1s --out out
compare script.py:make --budget -3min --out out
compare script.py:make --questions nothing --out out
compare script.py:make --export docx --out out
compare script.py:make --export , --out out
compare --list x
compare --list --json
compare script.py:make --batches 1000000000 --steps 3 --seeds 1 --questions speed --workers 1 --out out
compare script.py:make --workers 1000000000 --steps 3 --seeds 1 --questions speed --out out
demo x
demo --seeds 0
demo --seeds 1000000000
demo --workers 0
example
example x
example --json
probes
probes --json x
layers
layers --jsn
rules x
rules --json --json
report
report a b
report scope --condense c.json
report scope --markdown m.md --page out/p.html
report scope --page p.txt
report scope --questions q.md
report my_claim.py
report . --condense c.json
report scope --study my_claim.py --page out/p.html
report scope --study nothing.py
report scope --page scope/run.json
report scope --page .html
report scope --page scope
watch
watch a b
watch script.py
watch scope --port 99999
watch scope --port -1
watch scope --host nowhere.invalid
watch scope --host 8.8.8.8
watch scope --token short
watch scope --port 1
completion
completion tcsh
completion bash zsh
bench
bench nothing
bench probes --model gpt
bench probes --model mlp --model gpt
bench probes --rounds 1000000000 --case nothing
bench layers --only nothing
bench layers --device cuda
bench layers --device tpu
bench layers --allocator x --allocator default
bench check --select NS999
bench check --select ,
bench layers --compiled --no-compiled --only nothing
study run my_claim.py --seeds 1000000000 --workers 1 --out out
study run my_claim.py --seeds 2 --workers 1000000000 --out out
study run my_claim.py --seeds 2 --device cuda --out out
study run my_claim.py --seeds 2 --workers 1 --out out --executor nothing
study run my_claim.py --seeds 2 --workers 1 --out out --executor :
study run my_claim.py --seeds 2 --workers 1 --out out --executor local:x=1
study run my_claim.py --seeds 2 --workers 1 --out out --executor slurm:nothing=1
study run my_claim.py --seeds 2 --workers 1 --out out --executor ray:=
study run my_claim.py --seeds 2 --workers 1 --out out --executor json:loads
study run my_claim.py --seeds 2 --workers 1 --out out --shard 0/2
study run my_claim.py --seeds 2 --workers 1 --out out --shard 3/2
study run my_claim.py --seeds 2 --workers 1 --out out --shard 1/0
study run my_claim.py --seeds 2 --workers 1 --out out --shard -1/2
study run my_claim.py --seeds 2 --workers 1 --out out --shard 2
study run my_claim.py --seeds 2 --workers 1 --out out --shard 1/1000000000
study run my_claim.py --seeds 2 --workers 1 --out out --shard 1/2 --extend
study run my_claim.py --seeds 2 --workers 1 --out out --shard 1/2/3
study calibrate --studies 20 --seeds 2 --executor nothing
compare script.py:make --executor nothing --out out
compare script.py:make --shard x/y --out out
compare script.py:make --shard 1/2 --budget 1h --out out
study run my_claim.py --seeds 2 --workers 1 --out s3://
study run my_claim.py --seeds 2 --workers 1 --out ftp://host/runs
report s3://
report gopher://host/runs
study run my_claim.py --seeds 2 --device cpu:7 --workers 1 --out out
study run my_claim.py --seeds 2 --workers 1 --out ~/mine
report ~
report ~/nothing
compare script.py:make --out ~no-such-user/x"""


def _words(made):
    for text in COMMANDS.split("\n"):
        words = tuple(text.split())
        serves = words[:2] == ("watch", "scope")
        yield Line(
            "words",
            text,
            words,
            _usual_files(made),
            ("out", "home/mine", "runs", "a.py", "class.py", ".html"),
            300,
            interrupt=3.0 if serves else None,
        )


# -- paths ------------------------------------------------------------------------------------------------------------

#: Commands with a place for a path; ``@`` stands for it.
PLACES = """\
report @
report @ --page out/page.html
report scope --page @
report study --study @ --page out/p.html
report study --study my_claim.py --condense @ --page out/p.html
report study --study my_claim.py --markdown @ --page out/p.html
report condensed.json --questions @ --page out/p.html
report condensed.json --markdown @ --page out/p.html
check @:make --select NS103
check --state-dict @
check script.py:make --select NS103 --config @
check script.py:make --select NS105 --unsafe-fixes --out @
compare @:make --out out
compare script.py:make {SMALL} --out @
study run @ --out out
study run my_claim.py --seeds 2 --workers 1 --out @
study run my_claim.py --seeds 2 --workers 1 --out out --data @
study new @
study show @
explain @
watch @
demo --seeds 0 --out @
bench check --select NS103 --out @
"""
_SUFFIXES = {
    "study run @": ".py",
    "--study @": ".py",
    "study new @": ".py",
    "--page @": ".html",
    "--data @": ".npz",
    "check @:": ".py",
    "compare @:": ".py",
    "--unsafe-fixes --out @": ".pt",
}


def _paths(chance, made):
    for place in PLACES.replace("{SMALL}", " ".join(SMALL)).splitlines():
        suffix = next((each for part, each in _SUFFIXES.items() if part in place), "")
        for name in chance.sample(odd_paths.NAMES, 8):
            if _writes(place) and name in odd_paths.OUTSIDE:
                continue
            yield _path_line(made, place, name, None, chance.choice(["", suffix]))
        for thing in chance.sample(sorted(odd_paths.THINGS), 9):
            yield _path_line(made, place, thing, odd_paths.THINGS[thing], suffix)
        if not _writes(place):  # an administrator who runs this could lose the device
            yield _path_line(made, place, "/dev/null", None, "")
        yield _path_line(made, place, "script.py/below", None, suffix)


def _writes(place):
    """Return whether a command writes to the path that it is given at a place."""
    return any(f"{word} @" in place for word in ("--page", "--condense", "--markdown", "--questions", "--out", "new"))


def _path_line(made, place, name, make, suffix):
    path = name + suffix
    needed = [run for run in ("study", "condensed.json") if f"report {run}" in place]

    def prepare(folder):
        _usual_files(made, "script.py", "my_claim.py", "scope", *needed)(folder)
        if make is not None:
            make(folder / path)

    words = tuple(word.replace("@", path) for word in place.split())
    interrupt = 4.0 if place == "watch @" else None
    allowed = ("out", "scope/report.html") if not _writes(place) else ("out", path, path.split("/")[0] or path, "home")
    if place == "report @":
        allowed = ("out", *(path.rstrip("/") + end for end in ("/report.html", "-report.html")), f"{path}/report.html")
    return Line(
        "path", f"{place}: {path[:40]!r}", words, prepare, allowed, 300, interrupt=interrupt, needs_runs=bool(needed)
    )


# -- runs -------------------------------------------------------------------------------------------------------------


def _runs(chance, made):
    uses = {
        "study": [
            "report study --study my_claim.py --page out/p.html",
            "report study --page out/p.html",
            "study run my_claim.py --seeds 2 --workers 1 --out study",
            "watch study/my-claim",
        ],
        "comparison": [
            "report comparison --page out/p.html",
            "report comparison --page out/p.html --json",
            f"compare script.py:make {' '.join(SMALL)} --out comparison",
        ],
        "scope": ["report scope --page out/p.html", "report scope --json --page out/p.html", "watch scope"],
        "condensed.json": [
            "report condensed.json --page out/p.html",
            "report condensed.json --markdown out.md --page out/p.html",
        ],
    }
    for kind, number in (("study", 45), ("comparison", 45), ("scope", 40), ("condensed.json", 40)):
        for _ in range(number):
            words = tuple(chance.choice(uses[kind]).split())
            own = random.Random(chance.getrandbits(32))
            yield _run_line(made, kind, words, own)


def _run_line(made, kind, words, own):
    start = own.getstate()
    said = []

    def prepare(folder):
        _usual_files(made, "script.py", "my_claim.py", kind)(folder)
        own.setstate(start)
        if kind == "condensed.json":
            text = (folder / kind).read_text(encoding="utf-8")
            change = damaged_files.broken_json if own.random() < 0.4 else damaged_files.changed_json
            what, changed = change(text, own)
            (folder / kind).write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        else:
            what = damage(folder / kind / ("my-claim" if kind == "study" else ""), own)
        said.append(what)

    class Told(str):
        """The words of a line, and behind them what was damaged, once that is known."""

        def __str__(self):
            return f"{kind}: {' '.join(said)}"

    served = words[0] == "watch"
    allowed = ("out", "out.md", "runs") + ((kind,) if words[0] in ("study", "compare") else ())
    return Line("run", Told(), words, prepare, allowed, 300, interrupt=4.0 if served else None, needs_runs=True)


# -- files of the user's ----------------------------------------------------------------------------------------------


def _data(made):
    words = ("study", "run", "my_claim.py", "--seeds", "2", "--workers", "1", "--out", "out", "--data")
    for kind, makers, path in (("npz", damaged_files.NPZ, "data.npz"), ("idx", damaged_files.IDX, "data")):
        for what, make in makers.items():

            def prepare(folder, make=make, path=path):
                _usual_files(made, "my_claim.py")(folder)
                make(folder / path)

            yield Line("data", f"{kind}: {what}", (*words, path), prepare)


def _scripts(made):
    commands = [
        "check script.py:make --select NS103",
        f"compare script.py:make {' '.join(SMALL)} --out out",
        "check script.py:make --select NS103 --json",
    ]
    for what, text in odd_scripts.AT_IMPORT.items():
        for command in (
            *commands[:2],
            "study run script.py --seeds 2 --workers 1 --out out",
            "report out --study script.py",
        ):
            yield _script_line(what, text + odd_scripts.SETUP + "\nmake = case\n", command)
    for what, text in odd_scripts.FACTORIES.items():
        for command in commands:
            yield _script_line(what, odd_scripts.SETUP + "\n" + text + "\n", command)


def _script_line(what, text, command):
    def prepare(folder):
        (folder / "script.py").write_bytes(text.encode("utf-8", "surrogateescape"))

    loud = any(word in what for word in ("print", "dies", "warns", "fork", "argv", "closes", "async"))
    may_write = ("out", "runs", "script.py") if "removes" in what else ("out", "runs")
    return Line("script", f"{what}: {command}", tuple(command.split()), prepare, may_write, loud=loud)


def _studies(made):
    claim = (made / "my_claim.py").read_text(encoding="utf-8")
    for what, changes in odd_scripts.STUDIES.items():
        text = claim
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in text, (what, old)
            text = text.replace(old, new, 1)
        for command in ("study run my_claim.py --seeds 2 --workers 1 --out out", "explain my_claim.py"):

            def prepare(folder, text=text):
                (folder / "my_claim.py").write_text(text, encoding="utf-8")

            yield Line("study", f"{what}: {command}", tuple(command.split()), prepare)


def _checkpoints():
    for what, make in damaged_files.CHECKPOINTS.items():
        name = "model.safetensors" if what.endswith(".safetensors") else "model.pt"

        def prepare(folder, make=make, name=name):
            make(folder / name)

        yield Line("checkpoint", what, ("check", "--state-dict", name), prepare)


def _settings(made):
    for what, text in damaged_files.SETTINGS.items():
        for name in ("pyproject.toml", "own.toml"):

            def prepare(folder, text=text, name=name):
                _usual_files(made, "script.py")(folder)
                wrapped = text if "tool" in text or name == "own.toml" else f"[tool.normscope]\n{text}"
                (folder / name).write_text(wrapped, encoding="utf-8")

            config = () if name == "pyproject.toml" else ("--config", name)
            words = ("check", "script.py:make", "--select", "NS103", *config)
            yield Line("settings", f"{what} in {name}", words, prepare)


def empty(folder):
    """Remove a folder, whatever its permissions are."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)
