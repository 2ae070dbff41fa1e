"""Errors that are raised on purpose: each message is a line that says what was wrong and what to do."""


class NormscopeError(Exception):
    """Root of every error raised on purpose; the command line prints it as one line and exits with 2."""


class Interruption(BaseException):
    """Ends what runs, the user's code included. Nobody on the way takes it for a failure of that code."""


class UnitError(NormscopeError):
    """A layer, probe, rule or study does not describe itself completely."""


class UsageError(NormscopeError):
    """A request names something that does not exist or does not fit: an unknown slug, option or combination."""


class DataError(NormscopeError):
    """Data are missing, truncated, empty or not of the form that is read."""


class StoreError(NormscopeError):
    """A file or run folder cannot be written, or does not hold a run."""


class NonFiniteError(NormscopeError):
    """A loss or a statistic became NaN or infinite where a number is needed."""


def shown(value: object) -> str:
    """Return a value as a message names it: a text or number as it is, anything else by its type.

    A tensor or a model would put all that it holds into the message.
    """
    return repr(value) if isinstance(value, str | int | float | None) else f"an object of type {type(value).__name__}"


def one_line(text: str, *, longest: int = 1000) -> str:
    """Return a text as one line for a terminal: line breaks are spaces, and what a terminal would obey is escaped.

    Args:
        text: The text; parts of it may be a user's.
        longest: Characters that are kept; of a longer text the middle is left out.
    """
    line = printable(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest // 2]} ... {line[-longest // 3 :]}"


def printable(text: str) -> str:
    """Return a text with its control characters and lone surrogates as escapes; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)
