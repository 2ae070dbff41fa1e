"""Find studies by slug."""

from normscope._errors import UsageError
from normscope._unit import discover, near
from normscope.studies._study import AbstractStudy


def all() -> list[AbstractStudy]:
    """Return every study, in the order of its card."""
    from normscope import studies

    found = discover(studies, AbstractStudy)  # type: ignore[type-abstract]
    return sorted((kind() for kind in found), key=lambda study: study.CARD)


def get(slug: str) -> AbstractStudy:
    """Return a study by its slug.

    Raises:
        UsageError: No study has it; the message names the nearest.
    """
    found = {study.CODE: study for study in all()}
    if slug in found:
        return found[slug]
    raise UsageError(f"no study is called {slug!r}: did you mean {near(slug, found)}?")
