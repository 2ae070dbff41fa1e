"""Answers of studies in the evidence that is shipped with the package."""

from typing import Any

from normscope.cli._print import print_json, print_page


def committed_answers() -> tuple[dict[str, dict[str, str]], str]:
    """Return what each study answers by its slug, and a line that says why there is nothing; one of both is empty.

    Returns:
        Of a study: ``standing`` (its word over all conditions), ``effect`` in natural units, ``answer`` in sentences,
        ``here`` (the networks and data), ``measured`` and ``margin`` (the smallest effect that matters, or the largest
        error of an identity, with its reason).
    """
    from normscope._errors import StoreError
    from normscope.explain import committed
    from normscope.records import answer, standing
    from normscope.report import amount_of, margin_of

    try:
        evidence = committed()
    except StoreError:
        return {}, "There is no evidence of this version yet: `normscope study run SLUG` makes some."
    return {
        study.slug: {
            "standing": standing(study.verdict),
            "effect": amount_of(study.verdict),
            "answer": answer(study.verdict),
            "here": study.verdict.here,
            "measured": study.verdict.endpoint,
            "margin": margin_of(study.verdict),
        }
        for study in evidence.studies
    }, ""


def print_study(study: Any, as_json: bool) -> None:
    """Print a study: what it answers, then code, title, page and sources.

    Args:
        study: The study; one of the user's own has no answer in the evidence of the package.
        as_json: Whether a JSON document is printed.
    """
    from normscope.explain import question_of
    from normscope.records.answers import capital

    answers, missing = committed_answers()
    found, question = answers.get(study.CODE), question_of(study.CODE)
    if as_json:
        own = {"code": study.CODE, "title": study.title(), "sources": study.SOURCES, "page": study.page()}
        asked = {"why_not": on} if isinstance(on := study.ON_A_CASE, str) else {"on_a_case": on.as_json()}
        print_json(own | asked | (found or {}) | ({"question": question} if question else {}))
        return
    if found is not None:
        head = f"{study.CLAIM} {capital(found['standing'])}."
        first = f"{head}\n\n{found['answer']}\n\nMeasured: {found['measured']}. Margin: {found['margin']}."
    else:
        first = missing or f"The evidence of this version has none: `normscope study run {study.CODE}` makes it."
    if question:
        first += f"\n\nThe networks of the atlas are asked the same: `normscope explain {question}`."
    print_page((study.CODE, study.title(), "", "Answer", "------", f"{first}\n\n{_on_a_case(study)}"), study)


def _on_a_case(study: Any) -> str:
    """Return how the claim is asked of a network of the user's own, or why it cannot be."""
    if isinstance(study.ON_A_CASE, str):
        return f"A network of your own cannot be asked this claim: {study.ON_A_CASE}."
    return f"Your own network: `normscope study run {study.CODE} --case train.py:make_case`."


def print_question(question: Any, as_json: bool) -> None:
    """Print a question of a comparison: what the networks of the atlas answer, then code, title, page and sources.

    Args:
        question: The question.
        as_json: Whether a JSON document is printed.
    """
    from normscope import atlas

    row = atlas.committed().row(question.CODE)
    if as_json:
        own = {"code": question.CODE, "title": question.title(), "sources": question.SOURCES, "page": question.page()}
        print_json(own | ({"atlas": row.answer} if row else {}))
        return
    said = f"{row.answer}\n\n`normscope atlas` shows all questions." if row else "No network was asked yet."
    print_page((question.CODE, question.title(), "", "Atlas", "-----", said), question)
