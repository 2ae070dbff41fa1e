"""Claims of studies on a network of the user's own: ``normscope study run --case`` and ``study list --case``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import UsageError
from normscope.cli._answers import committed_answers
from normscope.cli._print import print_json, print_lines, print_tables
from normscope.cli.compare import compared
from normscope.records.addresses import shown

if TYPE_CHECKING:
    from normscope.comparing import AskedClaim, ClaimedComparison, Comparison


def list_claims(as_json: bool) -> None:
    """Print which studies can be run on a network of the user's own, by which question, and why the others cannot."""
    from normscope import studies

    units = [(unit, unit.ON_A_CASE) for unit in studies.all()]
    if as_json:
        print_json(
            [
                {"slug": unit.CODE} | ({"why_not": on} if isinstance(on, str) else {"on_a_case": on.as_json()})
                for unit, on in units
            ]
        )
        return
    asked = [(unit.CODE, on.question, ",".join(on.arms), on.differs) for unit, on in units if not isinstance(on, str)]
    others = [(unit.CODE, on) for unit, on in units if isinstance(on, str)]
    tables: list[Any] = [(("Study", "Question", "Arms", "How the question differs from the study"), asked)]
    print_tables([*tables, (("Not on a network of your own", "Why"), others)])


def run_claims(slugs: Sequence[str] | None, case: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Ask the claims of studies of a network of the user's own, and print what the answers mean for each claim.

    Args:
        slugs: The studies; None for all whose claims can be asked.
        case: ``FILE:FACTORY``.
        out: Folder; a comparison for each pair of arms lies in a folder of it.
        as_json: Whether a JSON document is printed.
        settings: As ``normscope.compare`` takes them.
    """
    from normscope.comparing import NothingToCompareError, asked_claims

    documents: list[Any] = []
    refused: dict[str, str] = {}
    told = False
    for each in asked_claims(slugs):
        try:
            done, found, page = _compared(each, case, out, as_json, **settings)
        except NothingToCompareError as error:
            refused |= {claim.study.CODE: "; ".join(error.refusals) for claim in each.claims}
            continue
        told = True
        if as_json:
            claims = [_document(claim, found) for claim in done.claims]
            documents.append({"claims": claims, "report": shown(page), "comparison": found.document()})
            continue
        print_lines(*(line for claim in done.claims for line in (*_lines(claim, found), "")))
        print_lines(f"The page with the pictures: {shown(page)}", "")
    why = [f"{slug} cannot be asked of this network: {reason}" for slug, reason in refused.items()]
    if refused and not told:
        raise UsageError(". ".join(why))
    if as_json:
        print_json({"comparisons": documents, "refused": refused})
    else:
        print_lines(*why)


def _compared(
    wanted: "ClaimedComparison", case: str, out: Path, as_json: bool, **settings: Any
) -> "tuple[ClaimedComparison, Comparison, Path]":
    """Compare, beside the network itself where its norms are those of the second arm already."""
    from normscope.comparing import NothingToCompareError

    asked: dict[str, Any] = {"questions": wanted.questions, "rates": wanted.rates}
    try:
        return wanted, *compared(case, out / wanted.name, as_json, arms=list(wanted.arms), **asked, **settings)
    except NothingToCompareError:
        if (other := wanted.beside_itself) is None:
            raise
        return other, *compared(case, out / other.name, as_json, arms=list(other.arms), **asked, **settings)


def _lines(claim: "AskedClaim", found: "Comparison") -> Iterator[str]:
    yield f"{claim.study.CODE}: {claim.study.CLAIM}"
    for said in (*claim.sentences(found), _of_the_study(claim)):
        yield f"    {said}"


def _of_the_study(claim: "AskedClaim") -> str:
    """Return the study's own answer in the evidence of the package, in a sentence."""
    answers, missing = committed_answers()
    known = answers.get(claim.study.CODE)
    if known is None:
        return missing or "The evidence of this version has no answer of the study."
    return f"The study's own answer ({known['here']}): {known['standing']}."


def _document(claim: "AskedClaim", found: "Comparison") -> dict[str, Any]:
    answer = claim.answer(found)
    return {
        "slug": claim.study.CODE,
        "claim": claim.study.CLAIM,
        "asked": claim.asked.as_json(),
        "word": answer.word or None,
        "sentence": answer.sentence,
        "means": claim.means(found) or None,
        "study": committed_answers()[0].get(claim.study.CODE, {}).get("standing"),
    }
