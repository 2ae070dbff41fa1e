"""``normscope explain``."""

from typing import Annotated

import typer

from normscope.cli._print import print_unit
from normscope.cli._words import Json


def explain(
    name: Annotated[str, typer.Argument(metavar="SLUG", help="A study, a probe, a layer or a rule.")],
    as_json: Json = False,
) -> None:
    """Explain a study, a probe, a layer or a rule: its page."""
    from normscope.explain import unit

    print_unit(unit(name), as_json)
