"""Small runs of every kind that an executor may be given, and their records in a form that compares exactly."""

import os
import sys
from pathlib import Path

import polars as pl

import normscope as ns
from kit import runner_studies
from normscope import studies
from normscope.records import Store
from normscope.studies import calibrate

#: A user's own study in a file, with a module beside it: workers can import neither.
OWN = '''
"""A study in a file."""

import torch

from beside import shift
from normscope.records import Record
from normscope.studies import AbstractStudy, Contrast, last


class Own(AbstractStudy):
    """Two arms that differ by chance.

    ## Claim
    The second arm is larger.

    ## Method
    Random numbers.

    ## Prediction
    None.

    ## Threats
    None.
    """

    CODE = "own-study"
    TOPIC = "test"
    SOURCES = ("nowhere",)
    CLAIM = "The second arm is larger."
    ENDPOINT = "Mean of the second arm less that of the first"
    MARGIN = 0.1
    MARGIN_REASON = "any"
    PRESETS = {"quick": {"points": [1, 2]}}

    def grid(self, settings):
        for point in settings["points"]:
            for arm in ("first", "second"):
                yield arm, {"point": point}

    def run_cell(self, cell, data, device):
        # BODY
        drawn = torch.randn(50, generator=torch.Generator().manual_seed(cell.seed + shift(cell.arm)))
        for step, value in enumerate(drawn.cumsum(0).tolist()):
            yield Record(cell.id, step, "training", "", "loss", value)

    def contrasts(self, evidence):
        yield Contrast(last("loss"), "second", "first", at={"point": 1}, scale="difference", name="loss")
'''
BESIDE = "def shift(arm):\n    return 1000 if arm == 'second' else 0\n"

FACTORY = """
from kit import set_ups


def make_case():
    return set_ups.make_case()
"""

COMPARISON = {"seeds": 1, "steps": 6, "questions": ["speed"]}


def write_own(folder, body="pass"):
    """Write the study, with a line of the caller's in its ``run_cell``; return its file."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "beside.py").write_text(BESIDE)
    (folder / "own_study.py").write_text(OWN.replace("# BODY", body))
    return folder / "own_study.py"


def write_factory(folder):
    (folder / "train.py").write_text(FACTORY)
    return f"{folder / 'train.py'}:make_case"


def paths():
    """``PYTHONPATH`` with which another process finds the package and the kit as this process does."""
    return os.pathsep.join(dict.fromkeys(filter(None, [str(Path(__file__).parents[1]), *sys.path])))


def records(out, slug=""):
    """All records of a run, but for the times."""
    frame = Store.open(Path(out) / slug).frame()
    return frame.filter(pl.col("probe") != "cost")


def run_everything(folder, out, executor, workers=2, *, few=False):
    """Run a study, a study that trains seeds at once, a study in a file, a comparison and a calibration.

    Args:
        folder: Of the user's files; the same for all executors.
        out: Of the runs.
        executor: The executor.
        workers: Tasks at a time.
        few: Whether only the study in a file and the comparison are run, where each cell is a process of its own.

    Returns:
        The records of each.
    """
    options = {"seeds": 2, "workers": workers, "executor": executor}
    studies.from_file(folder / "own_study.py").run(out=out, **options)
    made = f"{folder / 'train.py'}:make_case"
    ns.compare(made, out=out / "compared", workers=workers, executor=executor, **COMPARISON)
    if few:
        return {slug: records(out, slug) for slug in ("own-study", "compared")}
    runner_studies.Null().run(out=out, **options)
    runner_studies.Together().run(out=out, **options)
    rates = list(calibrate(studies=20, seeds=3, rules=["beyond a margin"], executor=executor))
    found = {slug: records(out, slug) for slug in ("own-study", "compared", "null", "together")}
    return found | {"rates": pl.DataFrame(rates)}
