"""Find rules by code, name or beginning of a code."""

from collections.abc import Iterable
from importlib import import_module

from normscope._errors import UsageError, shown
from normscope._unit import discover, near
from normscope.rules._rule import AbstractRule


def all() -> list[AbstractRule]:
    """Return every rule, in the order of codes."""
    found = discover(import_module(__name__.rpartition(".")[0]), AbstractRule)  # type: ignore[type-abstract]
    return sorted((kind() for kind in found), key=lambda rule: rule.CODE)


def get(code: str) -> AbstractRule:
    """Return a rule by its code, in capitals or not, or its name.

    Raises:
        UsageError: There is none; the message names the nearest.
    """
    for rule in all():
        if code.upper() == rule.CODE or code == rule.SLUG:
            return rule
    known = [name for rule in all() for name in (rule.CODE, rule.SLUG)]
    raise UsageError(f"no rule is called {code!r}: did you mean {near(code, known)}?")


def chosen(select: Iterable[str] | None, ignore: Iterable[str] | None = None) -> list[AbstractRule]:
    """Return the rules whose codes begin with one of ``select`` (all if None) and with none of ``ignore``.

    Codes may be in capitals or not; a rule may be called by its name.

    Raises:
        UsageError: A beginning fits no rule.
    """
    rules = all()

    def fits(rule: AbstractRule, prefix: str) -> bool:
        return rule.CODE.startswith(prefix.upper()) or prefix == rule.SLUG

    for prefix in [*(select or ()), *(ignore or ())]:
        if not isinstance(prefix, str):
            raise UsageError(f"rules are given by codes or names, such as [{rules[0].CODE!r}], not {shown(prefix)}")
        if not any(fits(rule, prefix) for rule in rules):
            raise UsageError(f"{prefix!r} fits no rule: they are {rules[0].CODE} to {rules[-1].CODE}, or NS for all")
    return [
        rule
        for rule in rules
        if (select is None or any(fits(rule, prefix) for prefix in select))
        and not any(fits(rule, prefix) for prefix in ignore or ())
    ]
