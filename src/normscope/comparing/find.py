"""Find questions by code: every question is a file of the folder ``questions``."""

from collections.abc import Mapping, Sequence

from normscope._errors import UsageError
from normscope._unit import discover, near
from normscope.comparing.question import AbstractQuestion


def all_questions(arms: Mapping[str, str] | None = None) -> list[AbstractQuestion]:
    """Return every question, in order.

    Args:
        arms: Words for the arms, by their name in the records.
    """
    from normscope.comparing import questions

    found = [kind(arms) for kind in discover(questions, AbstractQuestion)]
    return sorted(found, key=lambda question: question.NUMBER)


def chosen_questions(
    codes: Sequence[str] | None = None, arms: Mapping[str, str] | None = None
) -> list[AbstractQuestion]:
    """Return questions by their codes; all if None.

    Raises:
        UsageError: There is no such question, or none is named.
    """
    known = {question.CODE: question for question in all_questions(arms)}
    if codes is None:
        return list(known.values())
    if isinstance(codes, str):
        raise UsageError(f"questions are a list of codes, such as ['speed'], not {codes!r}")
    for code in codes:
        if code not in known:
            raise UsageError(f"no question {code!r}: did you mean {near(code, known)}?")
    if not codes:
        raise UsageError(f"name at least one question: {', '.join(known)}")
    return [question for code, question in known.items() if code in codes]
