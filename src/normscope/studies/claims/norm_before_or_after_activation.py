"""Batch norm before the activation, or after it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from normscope.plots import Figure, Table
from normscope.probes import Conditioning
from normscope.records import Cell
from normscope.studies import AbstractTraining, Arm, Best, Contrast, Evidence, accuracy, presets
from normscope.studies.case_question import BUILT_OTHERWISE
from normscope.studies.claims.conditioning import CONDITION
from normscope.studies.figures import by_rate_figure
from normscope.studies.lab import norms
from normscope.studies.lab.arms import batch_norm

HIGHER = ("higher", "lower")
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
    learnt or left out, same initial weights, each arm at every learning rate of a grid. The headline is test accuracy
    after less before, each at its own best learning rate by validation loss; also tried at one learning rate for both.
    Two claims of their own: gamma and beta do not matter, in either place (two one-sided tests, half a point); and the
    layers' inputs are better conditioned after the activation (condition number at 95 % of the energy).

    ## Prediction
    A small difference whose sign depends on the network and the data; after the activation gamma and beta do not
    matter; the inputs of the following layers are far better conditioned after, because the mean that a rectifier
    leaves is taken out.

    ## Threats
    The sign of the difference depends on the data: on the digits the norm is better before by a fraction of a point, on
    two draws of MNIST it was better after, by .9 and 1.2 points. The benchmark of the claim has convolutions and a
    thousand classes. With three layers and easy data half a point is near the noise of ten seeds. The last layer sees
    normalized inputs only in the arm after, which changes the learning rate that suits it.
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
    ON_A_CASE = BUILT_OTHERWISE
    ENDPOINT = "Test accuracy with the norm after less before the activation, each at its own best learning rate"
    MARGIN = 0.005
    MARGIN_REASON = "half a point, a fifth of what the source's benchmark found, is one or two of 300 test images"
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
        """Yield accuracy at own best learning rates and at the same rate; then gamma and beta, and conditioning."""
        own = {"lr": Best("lr")}
        for name, at in {"own best rates": own, "same rate": {"lr": evidence.settings["same"]}}.items():
            yield Contrast(
                accuracy(),
                "after",
                "before",
                at=at,
                name=name,
                says="test accuracy is {effect} with the norm after the activation",
                comparative=HIGHER,
            )
        for where in ("after", "before"):
            yield Contrast(
                accuracy(),
                where,
                f"{where}, no affine",
                at=own,
                conditions={"place of the norm": str(self.ARMS[where])},
                labels=("with gamma and beta", "without"),
                equal_within=self.MARGIN,
                claim="Gamma and beta do not matter to test accuracy.",
                name=f"affine, {where}",
                says="test accuracy is {effect} with gamma and beta",
                comparative=HIGHER,
            )
        yield Contrast(
            CONDITION,
            "before",
            "after",
            scale="log-ratio",
            margin=math.log(2),
            margin_reason="half the condition number lets gradient descent take half the steps, by theory",
            claim="After the activation the layers' inputs are better conditioned.",
            name="conditioning",
            says="the condition number of the layers' inputs is {effect} with the norm after the activation",
            comparative=("smaller", "larger"),
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
