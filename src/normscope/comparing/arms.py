"""The arms of a comparison: each a function that makes a training set-up anew, and what is done to its model."""

import hashlib
import inspect
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from normscope._errors import UsageError, shown
from normscope._unit import near
from normscope.checking.target import case_made_by, open_factory
from normscope.evidence import Case, case_arm
from normscope.modules.rng import seed_streams
from normscope.surgery import ARMS, ArmReport
from normscope.usercode import imports_from, users_code

#: How the arms of surgery are called in a sentence.
WORDS: Mapping[str, str] = {
    "own": "with its norms",
    "none": "without norms",
    "rescaled": "without norms but rescaled",
    "batch": "with batch norm",
    "layer": "with layer norm",
    "group": "with group norm",
    "rms": "with RMS norm",
    "dyt": "with dynamic tanh",
    "noisy": "with noise behind batch norm",
    "population": "with batch norm of the population",
    "frozen": "with frozen batch norm",
    "fixed-affine": "with gains and shifts that do not learn",
}
#: Arms that stand beside the others for one question, and that probes would tell nothing more of.
ASIDE = ("population", "fixed-affine")

Change = Callable[[Any], Any]


class Factory:
    """A function that makes a training set-up anew at each call.

    Args:
        source: The function, or ``FILE_OR_MODULE:FACTORY``.

    Attributes:
        words: What it is called in messages and in the configuration of a run.
    """

    def __init__(self, source: str | Callable[..., Any]) -> None:
        self._source = source
        self.words = source if isinstance(source, str) else getattr(source, "__qualname__", type(source).__name__)
        self._function: Callable[..., Any] | None = None if isinstance(source, str) else source
        self._folder = self._folder_now()
        self._file = Path(str(source).rpartition(":")[0]).resolve() if self.is_in_file else None
        self._digest = ""  # of the file that was loaded first, by which a worker knows it

    @property
    def is_in_file(self) -> bool:
        """Whether the function is given as one in a file, which is executed anew for every comparison."""
        return isinstance(self._source, str) and Path(self._source.rpartition(":")[0]).is_file()

    def load(self) -> Callable[..., Any]:
        """Return the function, imported at the first call.

        Raises:
            UsageError: As of ``open_factory``; or, in a worker, the file is not there or is not that of the run.
        """
        if self._function is None:
            assert isinstance(self._source, str)
            if self._digest and self._file is not None:
                self._source = self._found_by_worker(self._file)
            elif self._file is not None and self._file.is_file():
                self._digest = _digest_of(self._file)
            self._folder = self._folder_now()  # what is imported may change the working directory
            self._function = open_factory(self._source)
        return self._function

    def make(self, seed: int) -> Case:
        """Call the function under a seed: all random streams are set by it, and it is given if it is wanted.

        Raises:
            UsageError: As of ``load`` and ``case_made_by``.
        """
        function, threads = self.load(), torch.get_num_threads()
        seed_streams(seed)
        with imports_from(self._folder):
            made = case_made_by(function, self.words.rpartition(":")[2], seed)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # the last bits of sums depend on it
        return made

    def text(self) -> str:
        """Return the source text that the function stands in; empty if it is not at hand."""
        function: Any = self.load()
        try:
            return Path(inspect.getsourcefile(inspect.unwrap(function)) or "").read_text(encoding="utf-8")
        except (OSError, TypeError, ValueError):
            return ""

    def _folder_now(self) -> Path:
        if isinstance(self._source, str) and self.is_in_file:
            return Path(self._source.rpartition(":")[0]).resolve().parent
        return Path.cwd()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was loaded: a worker loads the file itself, if it is the file of the run."""
        return {**vars(self), "_function": None if isinstance(self._source, str) else self._function}

    def _found_by_worker(self, there: Path) -> str:
        """Return the words with the path of the file in this worker: the same, or relative to the working directory.

        Args:
            there: The path in the process that sends the work.

        Raises:
            UsageError: There is no such file, or another.
        """
        given, _, name = str(self._source).rpartition(":")
        file = next((path for path in (there, Path(given)) if path.is_file()), None)
        host = platform.node()
        if file is None:
            raise UsageError(
                f"a worker on {host} has no file {given}: its folder must be shared with the workers, or shipped "
                "(`ray job submit --working-dir .`)"
            )
        if _digest_of(file) != self._digest:
            raise UsageError(
                f"a worker on {host} reads another {given} than the run began with: the file was changed, or an old "
                "copy lies there"
            )
        return f"{file}:{name}"


def _digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Arm:
    """An arm of a comparison.

    Attributes:
        name: Its name in the records.
        words: What it is called in a sentence: ``"without norms"``.
        factory: Makes the set-up.
        surgery: What is done to its model, a name of ``surgery.ARMS``; ``"own"`` for nothing.
        change: A function of the user's that changes the set-up, or its model, in place.
    """

    name: str
    words: str
    factory: Factory
    surgery: str = "own"
    change: Change | None = field(default=None)

    def as_given(self) -> "Arm":
        """Return the arm without surgery, with the change of the user's alone."""
        return replace(self, surgery="own")

    def as_json(self) -> dict[str, Any]:
        """Return the arm as the configuration of a comparison names it."""
        return {"name": self.name, "words": self.words, "does": self.surgery, "made_by": self.factory.words}

    def make(self, seed: int, *, trial: bool = False) -> tuple[Case, ArmReport]:
        """Make the set-up of a seed, with its model changed.

        Args:
            seed: The seed.
            trial: Whether one training step is tried and undone.

        Raises:
            UsageError: The factory or the change raises, or the arm cannot be made.
        """
        case = self.factory.make(seed)
        if self.change is not None:
            case = _changed(case, self.change, self.name)
        return case, case_arm(case, self.surgery, seed=seed, trial=trial)


def arms_of(
    sources: Mapping[str, Factory], wanted: Sequence[str] | Mapping[str, str | Change] | None
) -> tuple[Arm, ...]:
    """Return the arms that a user names.

    Args:
        sources: One factory, under the name ``""``, whose arms are made by surgery; or several, by the name of the arm.
        wanted: Names of ``surgery.ARMS``; or by the name of the arm such a name, or a function that changes the
            set-up in place. None for the network as it is and without its norms.

    Raises:
        UsageError: No such arm, or fewer than two.
    """
    if "" in sources and len(sources) > 1:
        raise UsageError("several factories are arms: name each of them")
    if "" not in sources:
        if wanted is not None:
            raise UsageError("several factories are arms themselves: leave --arms out")
        found = [Arm(name, f"in {name}", factory) for name, factory in sources.items()]
    else:
        wanted = ("own", "none") if wanted is None else wanted
        if isinstance(wanted, str):
            raise UsageError(f"arms are a list of names, such as ['own', 'none'], not {wanted!r}")
        named = wanted if isinstance(wanted, Mapping) else {name: name for name in wanted}
        found = [_arm(name, what, sources[""]) for name, what in named.items()]
    if len(found) < 2:
        raise UsageError("a comparison takes at least two arms, such as own,none")
    return tuple(found)


def _arm(name: str, what: str | Change, factory: Factory) -> Arm:
    if isinstance(what, str):
        if what not in ARMS:
            raise UsageError(f"no arm {what!r}: did you mean {near(what, list(ARMS))}?")
        return Arm(name, WORDS[what] if name == what else f"in the arm {name}", factory, what)
    if not callable(what):
        raise UsageError(
            f"arm {name!r} is {shown(what)}: give a name of surgery.ARMS, or a function that changes a model"
        )
    return Arm(name, f"in the arm {name}", factory, "own", what)


def _changed(case: Case, change: Change, name: str) -> Case:
    """Have a function of the user's change the set-up, or the model where its argument is not called ``case``."""
    try:
        takes_case = next(iter(inspect.signature(change).parameters), "") == "case"
    except (TypeError, ValueError):
        takes_case = False
    with users_code(f"the change of arm {name!r}"):
        given = change(case if takes_case else case.model)
    if isinstance(given, Case):
        return given
    if isinstance(given, Module) and given is not case.model:
        raise UsageError(
            f"the change of arm {name!r} returns another model, which the optimizer does not hold: change the model in "
            "place, or give a factory for the arm"
        )
    return case
