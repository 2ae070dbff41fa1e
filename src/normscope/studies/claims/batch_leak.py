"""Does batch norm let a contrastive loss cheat?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, Quantity, last, presets
from normscope.studies.evidence import Floats
from normscope.studies.lab.arms import recorder, split_of
from normscope.studies.lab.contrastive import Encoder, contrast, probe
from normscope.studies.lab.data import Dataset

#: Of each arm, the norm of its encoder, and whether keys are computed in another order than queries.
ENCODERS = {
    "shared": ("batch", False),
    "shuffled": ("batch", True),
    "layer": ("layer", False),
    "none": ("none", False),
}
#: Share of the run, at its end, over which pretext accuracies are taken.
TAIL = 0.2
IMAGES = "a point is three of the 300 test images"


class BatchLeak(AbstractStudy):
    r"""Batch norm lets a contrastive loss cheat.

    ## Claim
    With batch norm over the sub-batches of several devices the encoders solve the contrastive task in part without the
    images: statistics tell which sub-batch a key was in. Keys that are shuffled over the sub-batches stop it (He et al.
    2019, MoCo, "shuffling BN"; second hand). Layer norm, which looks at one sample, cannot leak.

    ## Method
    The task of the source in small, on the digits: two views of each image (moved by a pixel at most, a fifth of the
    pixels hidden, noise), an encoder of three hidden layers of 64 for the queries, a slow copy for the keys, a
    queue of 512 earlier keys, batches of 64 in sub-batches of 4, 600 steps of Adam. The pretext accuracy is the share
    of queries whose own key is nearest of all 513, over the last fifth of the run. The same keys are also computed in a
    new random order, without any effect on training: the leak is the pretext accuracy with the company that training
    gave them over the one in new company. The headline is the leak with shared sub-batches. Claims of their own: with
    shuffled keys there is none (within a tenth); with layer norm and without a norm there is none (an identity); where
    keys have new company, the encoder that was trained with shuffled keys is better at the task; it has the better
    features, by a linear fit to the labels of the training images, held-out accuracy; layer norm has too.

    ## Prediction
    A leak of two times. Shuffling stops it. What it does to the features is a point or two: the digits are easy for a
    linear map even of random features.

    ## Threats
    Sub-batches of 4 leak more than the 32 of the source, and their noise makes the task harder whatever the order; so
    layer norm may solve more of it for other reasons than the leak. Size and rate were set in a pilot in which there
    was a leak, of less size, with sub-batches of 8 too. Dense encoders on 8x8 images, 30 epochs; features are
    read with the statistics of the whole set that they are read on.
    """

    CODE = "batch-leak"
    CARD = 47
    TOPIC = "statistics"
    EXTENSION = True
    SOURCES = ("He et al. 2019 (arXiv:1911.05722), shuffling BN, second hand",)
    CLAIM = "Batch norm lets a contrastive loss cheat through the statistics of shared sub-batches."
    ON_A_CASE = "no arm shuffles the samples of a contrastive loss"
    ENDPOINT = "Pretext accuracy with keys in the company of training over that in new company, shared sub-batches"
    MARGIN = math.log(1.25)
    MARGIN_REASON = "a fifth of the solved examples being solved by the company alone is a flaw worth a remedy"
    ARMS = {
        "shared": "batch norm, shared sub-batches",
        "shuffled": "batch norm, shuffled keys",
        "layer": "layer norm",
        "none": "no norm",
    }
    NETWORKS = "dense encoders"
    PRESETS = presets(
        quick={
            "width": 64,
            "depth": 3,
            "batch": 64,
            "sub_batch": 4,
            "lr": 0.003,
            "steps": 600,
            "every": 10,
            "train": None,
            "test": None,
        },
        full={"width": 256, "sub_batch": 16, "batch": 256, "steps": 6000, "every": 100},
    )

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Train one encoder, and record pretext accuracies and how well its features can be read."""
        record, settings, split = recorder(cell, "pretext"), cell.settings, split_of(cell, data)
        images = split.x_train if split.x_train.dim() == 4 else split.x_train[:, None, None]
        inputs, steps, every = images[0].numel(), int(settings["steps"]), int(settings["every"])
        norm, shuffle = ENCODERS[cell.arm]
        size = int(settings["sub_batch"])
        encoder = Encoder(inputs, int(settings["width"]), int(settings["depth"]), norm, size, cell.seed).train()

        def read() -> float:
            x, x_test = split.x_train.flatten(1), split.x_test.flatten(1)
            return probe(encoder, x, split.y_train, x_test, split.y_test, classes=data.classes)

        yield record("probe_before", read())
        batch, kept, tail = int(settings["batch"]), [], steps - max(1, round(TAIL * steps))
        recent: list[tuple[float, float]] = []
        run = contrast(
            encoder, images, cell.seed, steps=steps, batch=batch, lr=float(settings["lr"]), shuffle=shuffle,
            compare_from=tail,
        )  # fmt: skip
        for step, loss, solved, moved in run:
            recent.append((loss, solved))
            if step >= tail:
                kept.append((solved, moved))
            if step % every == every - 1 or step == steps - 1:
                yield record("loss", np.mean([one[0] for one in recent]), step)
                yield record("solved", np.mean([one[1] for one in recent]), step)
                recent = []
        yield record("own_company", np.mean([one[0] for one in kept]), steps)
        yield record("new_company", np.mean([one[1] for one in kept]), steps)
        yield record("probe", read(), steps)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the leak; what stops it, and what it does to the task and the features, are claims of their own."""
        yield Contrast(
            LEAK,
            "shared",
            1.0,
            scale="log-ratio",
            labels=("", "no leak"),
            name="leak",
            says="the pretext accuracy is {effect} with keys in the company of training than in new company",
            comparative=("higher", "lower"),
        )
        yield Contrast(
            LEAK,
            "shuffled",
            1.0,
            scale="log-ratio",
            equal_within=math.log(1.1),
            margin_reason="a tenth of the solved examples is as many as chance moves",
            labels=("", "no leak"),
            name="shuffling",
            claim="Shuffled keys stop the leak.",
            says="with shuffled keys the pretext accuracy in the company of training is {effect} that in new company",
        )
        for arm in ("layer", "none"):
            yield Contrast(
                CHANGE,
                arm,
                exact_within=0.01,
                name=f"no leak, {arm}",
                claim="Where no sample sees another, the company of a key changes nothing.",
                says=f"with {self.ARMS[arm]} the company of a key changes no pretext accuracy ({{effect}})",
            )
        yield Contrast(
            NEW,
            "shuffled",
            "shared",
            scale="log-ratio",
            name="task",
            claim="Shuffled keys make the encoder learn more of the task itself.",
            says="with keys in new company the pretext accuracy is {effect} if the encoder learnt with shuffled keys",
            comparative=("higher", "lower"),
        )
        for arm in ("shuffled", "layer"):
            yield Contrast(
                PROBE,
                arm,
                "shared",
                margin=0.01,
                margin_reason=IMAGES,
                name=f"features, {arm}",
                claim="The features are better without the leak.",
                says="the held-out accuracy of a linear fit to the features is {effect} with "
                f"{self.ARMS[arm]} than with shared sub-batches",
                comparative=("higher", "lower"),
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw pretext accuracy and loss over training."""
        return [
            self.curves(
                evidence,
                "solved",
                probe="pretext",
                slug="pretext",
                title="Queries whose own key is nearest of all",
                y_title="Share",
                caption=", ".join(
                    f"{words}: {OWN.text(evidence, arm=arm)} at the end, {NEW.text(evidence, arm=arm)} in new company"
                    for arm, words in self.ARMS.items()
                )
                + ".",
            ),
            self.curves(
                evidence,
                "loss",
                probe="pretext",
                slug="loss",
                title="Contrastive loss",
                y_title="Loss",
                log=False,
                caption="A low loss with shared sub-batches is in part the leak.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the pretext accuracies and the features."""
        before = last("probe_before", "held-out accuracy of the fit before training", probe="pretext")
        return [
            self.grid_table(
                [OWN, NEW, before, PROBE],
                evidence,
                rows={"arm": list(self.ARMS)},
                title="Pretext task and features",
            )
        ]


OWN = last("own_company", "pretext accuracy in the company of training", probe="pretext", logs=True)
NEW = last("new_company", "pretext accuracy in new company", probe="pretext", logs=True)
PROBE = Quantity(
    "held-out accuracy of a linear fit to the features",
    lambda evidence, **where: evidence.last("probe", probe="pretext", **where),
    unit="points",
    held_out=True,
)


def _leak(evidence: Evidence, **where: Any) -> Floats:
    return np.asarray(OWN(evidence, **where) - NEW(evidence, **where))


LEAK = Quantity("pretext accuracy in the company of training over that in new company", _leak, logs=True)
CHANGE = Quantity(
    "change of the pretext accuracy by new company, as a share of it",
    lambda evidence, **where: np.expm1(_leak(evidence, **where)),
)
