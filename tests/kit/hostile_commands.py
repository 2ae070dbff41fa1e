"""Command lines that a program must answer in a line: of each kind of mistake, drawn from a seed."""

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import typer.models

from kit import damaged_files, odd_paths, odd_scripts, odd_studies
from kit.command_tree import FUNCTIONS, long_name, options
from kit.damaged_runs import SMALL, copy_run, damage
from kit.odd_words import COMMANDS, NUMBERS, WORDS


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


#: Words with which a command would end soon, or be refused, but for the value that is tried.
USUAL = {
    ("demo",): ("--out", "script.py/below"),
    ("compare",): ("script.py:make", *SMALL, "--out", "out"),
    ("check",): ("script.py:make", "--select", "NS103"),
    ("report",): ("scope", "--page", "out/page.html"),
    ("verify",): ("script.py",),
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
    for command, function in FUNCTIONS.items():
        usual = USUAL.get(command, ())
        for name, kind, told in options(function):
            option = long_name(name, told) if isinstance(told, typer.models.OptionInfo) else None  # None of an argument
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
verify @
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
    for what, changes in odd_studies.STUDIES.items():
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
