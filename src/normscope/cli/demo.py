"""``normscope demo``."""

from pathlib import Path

from normscope.cli._words import Data, Json, Out, Seeds, Workers
from normscope.cli.study import run_and_report

#: The studies of the demo.
STUDIES = ("bn-backward-three-terms", "noisy-batchnorm", "ics-gradient-shift", "landscape-smoothness")


def demo(
    out: Out = Path("runs/demo"),
    seeds: Seeds = 10,
    data: Data = "digits",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Answer "what does batch norm do to my gradient?": four studies on real images, and a page of pictures."""
    settings = {"seeds": seeds, "preset": "quick", "data": data, "device": "cpu", "workers": workers}
    run_and_report(STUDIES, **settings, out=out, as_json=as_json)
