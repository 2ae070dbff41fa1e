"""Find what is to be verified in a user's file: ``FILE.py`` or ``FILE.py:FUNCTION``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from normscope._errors import UsageError, shown
from normscope._unit import near
from normscope.records.reading import reached
from normscope.usercode import imports_from, load_file, users_code
from normscope.verifying.calls import is_array

_WANTED = ("forward", "backward", "inputs")


class Formula(NamedTuple):
    """A forward function, a gradient formula, and the inputs at which it is tried."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    inputs: tuple[Any, ...]


@contextmanager
def opened(words: str) -> Iterator[Formula]:
    """Execute a file and yield the formula in it; its folder is searched for imports meanwhile.

    Args:
        words: ``note.py``, a file with ``forward``, ``backward`` and ``inputs``; or ``note.py:make``, a function in it
            that returns these three. The inputs are a tuple, or a function that returns them.

    Raises:
        UsageError: There is no such file or function, or it gives something else.
    """
    source, name = _split(words)
    file = reached(source)
    if file.is_dir():
        raise UsageError(f"{source} is a folder: give a Python file in it")
    if not file.exists():
        raise UsageError(f"there is no file {source}: `normscope verify --example > note.py` writes one")
    with imports_from(file.resolve().parent):
        module = load_file(file)
        known = vars(module)
        if name:
            if name not in known:
                functions = [key for key, value in known.items() if callable(value)]
                raise UsageError(f"{source} has no function {name!r}: did you mean {near(name, functions)}?")
            if not callable(known[name]):
                raise UsageError(f"{words} is {shown(known[name])}: it must be a function")
            with users_code(f"{name}()", file):
                made = known[name]()
            if not isinstance(made, tuple | list) or len(made) != len(_WANTED):
                raise UsageError(f"{name}() must return three things: forward, backward and the inputs")
            forward, backward, inputs = made
        else:
            for wanted in _WANTED:
                if wanted not in known:
                    raise UsageError(
                        f"{source} has no {wanted!r}: it must have forward, backward and inputs; or name a function in "
                        f"it that returns these three, as in {source}:make"
                    )
            forward, backward, inputs = (known[wanted] for wanted in _WANTED)
        if callable(inputs):
            with users_code("inputs()", file):
                inputs = inputs()
        if is_array(inputs):
            inputs = (inputs,)
        if not isinstance(inputs, tuple | list):
            raise UsageError(
                f"inputs is {shown(inputs)}: it must be a tuple of the arguments of forward, or return one"
            )
        yield Formula(forward, backward, tuple(inputs))


def _split(words: str) -> tuple[str, str]:
    """Return the file and the function that words name; the function is empty where none is named."""
    source, colon, name = words.rpartition(":")
    if colon and source and name.isidentifier() and not Path(words).is_file():
        return source, name
    return words, ""
