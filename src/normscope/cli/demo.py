"""``normscope demo``."""

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli._print import print_json, print_lines
from normscope.cli._progress import interruptible, lines_of_progress, progress_bar
from normscope.cli._words import MOST_SEEDS, Json, Out, Workers
from normscope.records.addresses import shown

#: The training script of the demo, which `normscope example` prints, and the study that stands beside it: algebra.
EXAMPLE = "normscope.examples.digits_cnn:make_case"
STUDY = "bn-backward-three-terms"
STEPS = 200
RATES = (1.0, 5.0, 25.0, 125.0)


def demo(
    out: Out = Path("runs/demo"),
    seeds: Annotated[
        int, typer.Option(min=1, max=MOST_SEEDS, help="Seeds an arm: the replicates behind every interval.")
    ] = 6,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Answer "what does batch norm do?" on a small convolutional network: with its norms and without, in sentences.

    The network is that of `normscope example`, on real images. Beside it stands the algebra of the backward pass.
    """
    from normscope import comparing, verdicts
    from normscope.records.answers import headline

    advice = "run the same command again to go on where it stopped"
    with interruptible(advice), progress_bar(as_json) as bars:
        progress = bars or (None if as_json else lines_of_progress())
        found = comparing.compare(
            EXAMPLE, seeds=seeds, steps=STEPS, rates=RATES, out=out / "comparison", workers=workers, progress=progress
        )
        (judged,), _ = verdicts.run([STUDY], out=out / "studies", seeds=seeds, workers=workers, progress=progress)
    page = found.report(out / "report.html", beside=[verdicts.section_of(judged)])
    if as_json:
        print_json({"report": shown(page)} | found.document() | {"beside": judged.verdict})
        return
    algebra = ["And the algebra of batch norm's backward pass:", f"    {judged.verdict.claim}"]
    lines = [*str(found).splitlines(), "", *algebra, f"    {headline(judged.verdict)}", ""]
    closing = "Your own network:  normscope example > train.py, then  normscope compare train.py:make_case"
    print_lines(*lines, f"The page with the pictures: {shown(page)}", closing)
