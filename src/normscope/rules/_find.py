"""Find rules by code, name or beginning of a code."""

from collections.abc import Iterable
from importlib import import_module

from normscope._errors import UsageError
from normscope._unit import discover, near
from normscope.rules._rule import AbstractRule


def all() -> list[AbstractRule]:
    """Return every rule, in the order of codes."""
    found = discover(import_module(__name__.rpartition(".")[0]), AbstractRule)  # type: ignore[type-abstract]
    return sorted((kind() for kind in found), key=lambda rule: rule.CODE)


def get(code: str) -> AbstractRule:
    """Return a rule by its code or its name.

    Raises:
        UsageError: There is none; the message names the nearest.
    """
    for rule in all():
        if code in (rule.CODE, rule.SLUG):
            return rule
    known = [name for rule in all() for name in (rule.CODE, rule.SLUG)]
    raise UsageError(f"no rule is called {code!r}: did you mean {near(code, known)}?")


def chosen(select: Iterable[str] | None, ignore: Iterable[str] | None = None) -> list[AbstractRule]:
    """Return the rules whose codes begin with one of ``select`` (all if None) and with none of ``ignore``.

    Raises:
        UsageError: A beginning fits no rule.
    """
    rules = all()
    for prefix in [*(select or ()), *(ignore or ())]:
        if not any(rule.CODE.startswith(prefix) or prefix == rule.SLUG for rule in rules):
            raise UsageError(f"{prefix!r} fits no rule: they are {rules[0].CODE} to {rules[-1].CODE}, or NS for all")

    def fits(rule: AbstractRule, prefixes: Iterable[str]) -> bool:
        return any(rule.CODE.startswith(prefix) or prefix == rule.SLUG for prefix in prefixes)

    return [rule for rule in rules if (select is None or fits(rule, select)) and not fits(rule, ignore or ())]
