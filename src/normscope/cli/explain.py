"""``normscope explain``."""

from typing import TYPE_CHECKING, Annotated

import typer

from normscope.cli._answers import committed_answers, print_question, print_study
from normscope.cli._print import print_json, print_lines, print_unit
from normscope.cli._words import Json

if TYPE_CHECKING:
    from normscope.explain import Fitting


def explain(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME", help="A study, a probe, a layer, a rule or a question; or plain words, such as: vanishing."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Print the page of a study, probe, layer, rule, or question of a comparison.

    Of a study its answer comes first, of a question the answer of the networks of the atlas.

    For plain words, all of these that fit are listed, the best first.
    """
    from normscope.explain import UnknownNameError, fitting, is_question, is_study, unit

    name = " ".join(words)
    try:
        found = unit(name)
    except UnknownNameError:
        if not (fits := fitting(name)):
            raise
        _print_fitting(fits, as_json)
        return
    show = print_study if is_study(found) else print_question if is_question(found) else print_unit
    show(found, as_json)


def _print_fitting(fits: "list[Fitting]", as_json: bool) -> None:
    """Print a line for each unit that fits: of a study its answer in the evidence of the package before its claim."""
    from normscope.records.answers import capital
    from normscope.report import terminal

    answers, _ = committed_answers()
    standings = {each.name: answers[each.unit.CODE]["standing"] for each in fits if each.unit.CODE in answers}
    if as_json:
        print_json(
            [
                {"code": each.unit.CODE, "name": each.name, "kind": each.kind, "title": each.unit.title()}
                | ({"standing": standings[each.name]} if each.name in standings else {})
                for each in fits
            ]
        )
        return
    width = max(len(each.name) for each in fits)
    for each in fits:
        title = each.unit.CLAIM if each.kind == "study" else each.unit.title()
        says = f"{capital(standings[each.name])}: {title}" if each.name in standings else title
        print_lines(f"{each.name:<{width}}  {each.kind:<8}  {terminal(says)}")
    print_lines("", "`normscope explain NAME` has the page of each.")
