"""Studies small enough to test the runner, as a script too: ``python -m kit.runner_studies NAME OUT SEEDS WORKERS``."""

import os
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from normscope.records import Record
from normscope.studies import Contrast, last
from normscope.studies.lab import norms
from normscope.studies.lab.models import mlp
from normscope.studies.lab.train import train
from normscope.studies.lab.train_stacked import fit_stacked
from normscope.studies.runs import run
from normscope.studies.study import AbstractStudy


def begin(cells):
    """Log cells that begin together; hold them for as long as the process above lives if enough began before.

    The file ``RUNNER_LOG`` takes their ids; with ``RUNNER_HOLD=4`` cells are held from the fifth on.
    """
    log = os.environ.get("RUNNER_LOG")
    if not log:
        return
    with open(log, "a") as file:
        file.write("".join(f"{cell.id}\n" for cell in cells))
    held = os.environ.get("RUNNER_HOLD")
    if held is not None and Path(log).read_text().split().index(cells[0].id) >= int(held):
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.05)


class Null(AbstractStudy):
    """Two arms that are the same.

    ## Claim
    The second arm trains faster.

    ## Method
    The same network with the same seed.

    ## Prediction
    Nothing to say.

    ## Threats
    None.
    """

    CODE = "null"
    CARD = 1000
    TOPIC = "test"
    SOURCES = ("nowhere",)
    CLAIM = "The second arm trains faster."
    ENDPOINT = "Loss of the first arm over that of the second"
    MARGIN = 0.0
    MARGIN_REASON = "any difference counts"
    PRESETS: ClassVar = {"quick": {"steps": 4, "lrs": [0.1, 1.0]}, "full": {"steps": 8, "lrs": [0.1]}}

    def grid(self, settings):
        for lr in settings["lrs"]:
            for arm in ("first", "second"):
                yield arm, {"lr": lr}

    def stream(self, cell):
        return cell.seed

    def run_cell(self, cell, data, device):
        begin([cell])
        seed = self.stream(cell)
        model = mlp(2, 8, inputs=64, classes=10, norm=norms.noisy_batch(seed), seed=seed)
        return train(
            model,
            data.split(seed, train=200, test=50),
            cell=cell.id,
            seed=seed,
            steps=cell.settings["steps"],
            lr=float(cell.point["lr"]),
            batch_size=32,
            probes=self.probes(),
            every=2,
        )

    def probes(self):
        return ()

    def contrasts(self, evidence):
        yield Contrast(last("loss"), "first", "second", at={"lr": 0.1}, scale="log-ratio", name="loss")


class Twins(Null):
    """Two arms that differ in their random numbers only.

    ## Claim
    The second arm trains faster.

    ## Method
    The same network with other seeds.

    ## Prediction
    Never holds.

    ## Threats
    None.
    """

    CODE = "twins"
    MARGIN = float(np.log(1.2))

    def stream(self, cell):
        return cell.seed + (1000 if cell.arm == "second" else 0)


class Broken(Null):
    """A study whose cells fail.

    ## Claim
    None.

    ## Method
    None.

    ## Prediction
    None.

    ## Threats
    None.
    """

    CODE = "broken"

    def run_cell(self, cell, data, device):
        if cell.seed == 2:
            raise ZeroDivisionError("planted")
        return super().run_cell(cell, data, device)


class Unseeded(Null):
    """A study that forgets to name its random numbers: it draws from the global generator.

    ## Claim
    None.

    ## Method
    None.

    ## Prediction
    None.

    ## Threats
    None.
    """

    CODE = "unseeded"

    def run_cell(self, cell, data, device):
        import torch

        yield Record(cell.id, 0, "training", "", "loss", 1.0 + float(torch.rand(())))


class Together(Null):
    """A study that trains the seeds of its first arm at once.

    ## Claim
    None.

    ## Method
    None.

    ## Prediction
    None.

    ## Threats
    None.
    """

    CODE = "together"

    def together(self, cell):
        return cell.arm == "first"

    def run_cells(self, cells, data, device):
        begin(cells)
        models = [mlp(2, 9, inputs=64, classes=10, norm=norms.batch(), seed=cell.seed) for cell in cells]
        splits = [data.split(cell.seed, train=200, test=50) for cell in cells]
        options = {"steps": cells[0].settings["steps"], "lr": float(cells[0].point["lr"]), "batch_size": 30}
        return zip(cells, fit_stacked(models, splits, cells, **options), strict=True)


STUDIES = {study.CODE: study for study in (Null, Twins, Broken, Unseeded, Together)}

if __name__ == "__main__":
    name, out, seeds, workers = sys.argv[1:]
    # The class must come from an importable module, for workers to find it again.
    from kit import runner_studies

    run(runner_studies.STUDIES[name](), out=out, seeds=int(seeds), workers=int(workers))
