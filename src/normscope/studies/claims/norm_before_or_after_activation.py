"""Batch norm before the activation, or after it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from normscope.plots import Figure, Table
from normscope.probes import Conditioning
from normscope.records import Cell
from normscope.studies import AbstractTraining, Arm, Best, Contrast, Evidence, accuracy, presets
from normscope.studies.claims.conditioning import CONDITION
from normscope.studies.figures import by_rate_figure
from normscope.studies.lab import norms
from normscope.studies.lab.arms import batch_norm

FIXED = batch_norm(learn_gain=False, learn_shift=False)


class NormBeforeOrAfterActivation(AbstractTraining):
    r"""Batch norm is better after the activation than before it.

    ## Claim
    Batch norm can be put after the activation, where gamma and beta may become unnecessary, and that order is better
    (comment under "How does the batch normalization layer work?"). Ioffe & Szegedy 2015, section 3.2, put it before:
    Wu + b is more nearly normal than u. A benchmark of CaffeNet at 128 pixels found .474 before and .499 after (second
    hand).

    ## Method
    Dense networks of three hidden layers of 100 with batch norm before or after each rectifier, with gamma and beta
    learnt or left out, same initial weights, each arm at every learning rate of a grid. Primary endpoint: test accuracy
    after less before, each at its own best learning rate by validation loss; supported above half a percentage point,
    refuted below it. Parts: the same at one learning rate; whether gamma and beta matter in either place (two one-sided
    tests, half a point); and the condition number of the layers' inputs at 95 % of the energy.

    ## Prediction
    A small difference that depends on the network; after the activation gamma and beta do not matter; the inputs of
    the following layers are far better conditioned after, because the mean that a rectifier leaves is taken out.

    ## Threats
    With three layers and easy data half a point is near the noise of ten seeds. The last layer sees normalized inputs
    only in the arm after, which changes the learning rate that suits it.
    """

    CODE = "norm-before-or-after-activation"
    CARD = 28
    TOPIC = "placement"
    SOURCES = (
        "Q&A on the layer, comment on the order",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), sections 3.2 and 5",
        "CaffeNet benchmark of ducha-aiki (second hand)",
    )
    CLAIM = "Batch norm after the activation gives a better network than batch norm before it."
    ENDPOINT = "Test accuracy with the norm after less before the activation, each at its own best learning rate"
    MARGIN = 0.005
    ARMS = {
        "before": Arm("before the activation", norms.batch()),
        "after": Arm("after the activation", norms.after_relu(norms.batch())),
        "before, no affine": Arm("before the activation without gamma and beta", FIXED),
        "after, no affine": Arm("after the activation without gamma and beta", norms.after_relu(FIXED)),
    }
    POINTS = {"lr": "lrs"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batch": 64,
            "lrs": [0.03, 0.1, 0.3, 1.0],
            "same": 0.1,
            "steps": 250,
            "every": 250,
            "train": None,
            "test": None,
        },
        full={
            "network": {"name": "vgg-a"},
            "batch": 128,
            "lrs": [0.01, 0.03, 0.1, 0.3],
            "steps": 15000,
            "every": 1000,
        },
    )

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return no activation of the block's own where the norm brings it."""
        return {"activation": "linear" if cell.arm.startswith("after") else "relu"}

    def options(self, cell: Cell) -> dict[str, Any]:
        """Watch the inputs of the layers at one learning rate."""
        if cell.point["lr"] != cell.settings["same"]:
            return {}
        return {"probes": [Conditioning()], "every": int(cell.settings["every"])}

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield accuracy at own best learning rates; the same rate, affine and conditioning are parts."""
        own = {"lr": Best("lr")}
        for at in (own, {"lr": evidence.settings["same"]}):
            yield Contrast(accuracy(), "after", "before", at=at)
        for where in ("before", "after"):
            claim = f"Gamma and beta do not matter {self.ARMS[where]}."
            yield Contrast(accuracy(), where, f"{where}, no affine", at=own, equal_within=0.005, claim=claim)
        yield Contrast(
            CONDITION,
            "before",
            "after",
            scale="log-ratio",
            margin=math.log(2),
            claim="After the activation the layers' inputs are better conditioned.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw accuracy by learning rate, and the loss at the same one."""
        same = {"lr": evidence.settings["same"]}
        return [by_rate_figure(evidence, self.wording.arms), self.curves(evidence, "loss", at=same, slug="loss")]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end at every learning rate."""
        rows, columns = {"arm": list(self.ARMS)}, {"lr": evidence.settings["lrs"]}
        caption = f"Means over {len(evidence.seeds)} seeds; 0 where a run diverged."
        return [self.grid_table(accuracy(), evidence, rows=rows, columns=columns, caption=caption)]
