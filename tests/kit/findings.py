"""Check a set-up by one rule."""

from normscope import checking


def finding_of(case, code):
    """Return the only finding of a rule."""
    (finding,) = checking.check(case, [code], gap=False)
    return finding


def is_quiet(case, code):
    return len(checking.check(case, [code], gap=False)) == 0


def repaired(case, code):
    """Repair what a rule finds, whatever the loss says of it, and return what was done, in words."""
    (made,) = checking.fix(case, checking.check(case, [code], gap=False), unsafe=True, measure=False)
    assert made.done
    return made.done
