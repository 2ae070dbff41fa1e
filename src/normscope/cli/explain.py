"""``normscope explain``."""

from typing import Annotated

import typer

from normscope.cli._answers import print_study
from normscope.cli._print import print_unit
from normscope.cli._words import Json


def explain(
    name: Annotated[str, typer.Argument(metavar="SLUG", help="A study, a probe, a layer, a rule or a question.")],
    as_json: Json = False,
) -> None:
    """Print the page of a study, probe, layer, rule, or question of a comparison; of a study its answer first."""
    from normscope.explain import is_study, unit

    found = unit(name)
    (print_study if is_study(found) else print_unit)(found, as_json)
