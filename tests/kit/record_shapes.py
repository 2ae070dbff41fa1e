"""What a study records, without the numbers: names, sites and steps of a real run, kept so that tests need no training.

``PYTHONPATH=tests python -m kit.record_shapes SLUG`` runs one seed of a study's quick preset and keeps its shape;
``--runs FOLDER`` takes the runs of a folder instead of a new one.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from normscope import studies

FOLDER = Path(__file__).parents[1] / "studies" / "data"
#: Columns that every record has; the others are those of points.
COLUMNS = ("arm", "seed", "step", "probe", "site", "name", "value", "unit", "cell")


def command(slug):
    """The command that keeps the shape of a study's records."""
    return f"PYTHONPATH=src:tests python -m kit.record_shapes {slug}"


def shape_of(run):
    """Return the shape of a run's records as plain JSON values.

    Returns:
        ``settings`` of the run; ``typical``, the median value of each ``probe:name``; ``layouts``, each a list of
        [probe, name, sites, steps]; and ``cells``, each [arm, point, number of its layout].
    """
    frame = run.store.frame()
    keys = [column for column in frame.columns if column not in COLUMNS]
    layouts, found = [], {}
    for arm, point in run.study.grid(run.store.config["settings"]):
        cell = frame.filter(pl.col("arm") == arm, *(pl.col(key) == point[key] for key in keys if key in point))
        longest = cell.group_by("seed").len().sort("len", "seed", descending=[True, False])["seed"][0]
        found[arm, json.dumps(point)] = _layout(cell.filter(pl.col("seed") == longest))
    cells = []
    for (arm, point), (layout, diverged) in found.items():
        if diverged:  # what it would have recorded to its end: what another cell did, of its point or else of its arm
            whole = {key: other for key, (other, stopped) in found.items() if not stopped}
            same_point = [other for (_, at), other in whole.items() if at == point]
            same_arm = [other for (name, _), other in whole.items() if name == arm]
            layout = (same_arm + same_point + [layout])[0]
        if layout not in layouts:
            layouts.append(layout)
        cells.append([arm, json.loads(point), layouts.index(layout)])
    finite = frame.filter(pl.col("value").is_finite())
    medians = finite.group_by("probe", "name").agg(pl.col("value").median()).sort("probe", "name")
    typical = {f"{probe}:{name}": float(f"{value:.3g}") for probe, name, value in medians.rows()}
    return {"settings": run.store.config["settings"], "typical": typical, "layouts": layouts, "cells": cells}


def _layout(cell):
    """Return [probe, name, sites, steps] of what a cell of one seed recorded, and whether it diverged."""
    steps = {}
    for (probe, name, site), rows in cell.group_by(["probe", "name", "site"], maintain_order=True):
        steps.setdefault((probe, name, _ranges(sorted(rows["step"].to_list()))), []).append(site)
    diverged = cell.filter(pl.col("name") == "diverged")["value"].sum() > 0
    return [
        [probe, name, sorted(sites), json.loads(at)] for (probe, name, at), sites in sorted(steps.items())
    ], diverged


def _ranges(steps):
    """Return steps as JSON: [first, last, stride] of each run of steps of one stride."""
    runs = []
    for step in steps:
        if runs and (len(runs[-1]) == 1 or step - runs[-1][-1] == runs[-1][1] - runs[-1][0]):
            runs[-1].append(step)
        else:
            runs.append([step])
    return json.dumps([[run[0], run[-1], run[1] - run[0] if len(run) > 1 else 1] for run in runs])


def steps_of(ranges):
    """Return the steps (n,) that ``_ranges`` wrote."""
    return np.concatenate([np.arange(first, last + 1, max(stride, 1)) for first, last, stride in ranges])


def read(slug):
    """Return the shape of a study's records.

    Raises:
        AssertionError: None is kept; the message has the command that makes it.
    """
    path = FOLDER / f"{slug}.json"
    assert path.is_file(), f"the shape of the records of {slug} is not kept: run `{command(slug)}`"
    return json.loads(path.read_text())


def write(run):
    """Keep the shape of a run's records."""
    FOLDER.mkdir(exist_ok=True)
    shape = shape_of(run)
    lines = ",\n".join(f'"{key}": {json.dumps(shape[key], separators=(",", ":"))}' for key in shape)
    path = FOLDER / f"{run.study.CODE}.json"
    path.write_text(f"{{\n{lines}\n}}\n")
    return path


def main():
    """Keep the shapes of studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slugs", nargs="*", help="studies; all if left out")
    parser.add_argument("--runs", help="folder of runs")
    given = parser.parse_args()
    slugs = given.slugs or [study.CODE for study in studies.all()]
    with tempfile.TemporaryDirectory() as folder:
        for slug in slugs:
            if not given.runs:
                studies.run(slug, out=folder, seeds=1)
            print(write(studies.load(Path(given.runs or folder) / slug)[0]))


if __name__ == "__main__":
    main()
