"""Does the mean that layer norm takes out matter? RMS norm leaves it in."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normscope.plots import Figure, Table, by_depth
from normscope.records import Cell, Outcome, Record
from normscope.studies import Arm, Best, Contrast, Evidence, Quantity, last, presets
from normscope.studies.case_question import CaseQuestion
from normscope.studies.lab import token_norms
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.evaluate import population_statistics
from normscope.studies.lab.stream_mean import centred_inputs, mean_shares, without_centring
from normscope.studies.transformer_training import AbstractTransformerTraining

if TYPE_CHECKING:
    from normscope.studies.evidence import Floats
    from normscope.studies.lab.data import Split
    from normscope.studies.lab.transformer import Transformer

#: Relative difference of outputs that is rounding in double precision.
ROUNDING = 1e-9


class RmsnormEqualsLayernorm(AbstractTransformerTraining):
    r"""The mean that layer norm takes out does not matter: RMS norm trains a transformer as well.

    ## Claim
    Re-centring invariance in layer norm is dispensable; RMS norm, which only divides by the root mean square, reaches
    comparable quality (Zhang & Sennrich 2019, abstract).

    ## Method
    Pre-norm transformers of 4 blocks as models of the next character, with layer norm and with RMS norm (no shift),
    trained by Adam at three learning rates; the same weights and batches in both arms. The headline is the held-out
    loss at the end, each arm at its own best rate by the validation loss: alike within one per cent. Also tried: each
    rate of the grid. Claims of their own: the mean over features holds the share of the stream that chance gives, one
    over the width, within a factor of two, before and after training, averaged over all norms' inputs; taking the mean
    out of the inputs of a trained RMS network's norms changes its held-out loss by less than one per cent. An identity:
    a pre-norm network of layer norms is one of RMS norms and shifts whose weights are centred, since only norms read
    the stream; outputs of the trained network, in double precision.

    ## Prediction
    Alike. The share of the mean begins at 1/width. Under layer norm no gradient reaches the stream's mean, so its share
    falls as the rest of the stream grows; under RMS norm the network may use it. The identity says that layer norm can
    represent nothing that RMS norm with a shift cannot.

    ## Threats
    Short runs of small networks: a difference that takes long to show is not seen. RMS norm lacks the shift too, and
    the comparison is of the two layers as they are used. Speed, the reason for which RMS norm is used, is not measured.
    """

    CODE = "rmsnorm-equals-layernorm"
    CARD = 36
    TOPIC = "transformers"
    SOURCES = ("Zhang & Sennrich 2019 (arXiv:1910.07467), abstract",)
    CLAIM = "RMS norm trains a transformer as well as layer norm: taking out the mean does not matter."
    ON_A_CASE = CaseQuestion("speed", ("rms", "layer"), in_favour=(Outcome.HOLDS, Outcome.NO_EFFECT))
    ENDPOINT = "Held-out loss with RMS norm over layer norm, own best learning rates"
    MARGIN = 0.01
    MARGIN_REASON = "one per cent of the loss is less than another learning rate of the grid makes of it"
    EXTENSION = True
    ARMS = {"layer": Arm("layer norm", token_norms.layer()), "rms": Arm("RMS norm", token_norms.rms())}
    POINTS = {"lr": "lrs"}
    CONDITIONS = {"when": "{}"}
    PRESETS = presets(
        quick={
            "network": {"width": 32, "blocks": 4, "heads": 4, "init": "xavier"},
            "context": 32,
            "batch": 8,
            "steps": 200,
            "warmup": 20,
            "lrs": [0.003, 0.01, 0.03],
            "train": None,
            "test": 128,
        },
        full={
            "network": {"width": 128, "blocks": 8, "heads": 4, "init": "xavier"},
            "context": 128,
            "batch": 32,
            "steps": 3000,
            "warmup": 100,
            "lrs": [0.0003, 0.001, 0.003, 0.01],
            "test": None,
        },
    )

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Record the share of the mean in the stream at the start."""
        yield from self._shares(cell, model, split, 0)

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Record the share at the end, the loss of a stream without its mean, and the identity."""
        step, record = int(cell.settings["steps"]), recorder(cell, "stream")
        yield from self._shares(cell, model, split, step)
        transformer: Any = model
        with population_statistics(model, split.x_train), torch.no_grad():
            if cell.arm == "rms":
                with centred_inputs(transformer):
                    yield record("centred_loss", cross_entropy(model(split.x_test), split.y_test), step)
            else:
                yield record("identity_error", identity_error(transformer, split), step)

    def _shares(self, cell: Cell, model: Any, split: "Split", step: int) -> Iterator[Record]:
        record = recorder(cell, "stream")
        for site, share in mean_shares(model, split.x_test[:64]).items():
            yield record("mean_share", share, step, site)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the loss at own best rates and at every rate; the share of the mean, its use, and the identity."""
        for lr in (Best("lr"), *evidence.settings["lrs"]):
            yield Contrast(
                LOSS,
                "rms",
                "layer",
                at={"lr": lr},
                scale="log-ratio",
                equal_within=self.MARGIN,
                name="own best" if isinstance(lr, Best) else f"rate {lr:g}",
                says="the held-out loss is {effect} with RMS norm than with layer norm",
                comparative=("higher", "lower"),
            )
        chance = 1 / int(evidence.settings["network"]["width"])
        for when, step in (("before training", 0), ("after training", int(evidence.settings["steps"]))):
            for arm in self.ARMS:
                yield Contrast(
                    share_at(step),
                    arm,
                    chance,
                    at={"lr": Best("lr")},
                    conditions={"when": when},
                    scale="log-ratio",
                    equal_within=math.log(2),
                    margin_reason="twice chance is still a small part of the stream",
                    labels=("", "chance, 1/width"),
                    name=f"share {when}, {arm}",
                    claim="The mean over features holds the share of the stream that chance gives, one over the width.",
                    says=f"the mean holds {{effect}} of the stream than chance gives with {self.ARMS[arm]}",
                    comparative=("more", "less"),
                )
        yield Contrast(
            CENTRED,
            "rms",
            at={"lr": Best("lr")},
            scale="log-ratio",
            equal_within=self.MARGIN,
            name="centred",
            claim="A trained RMS network makes no use of the mean over features of its stream.",
            says="the held-out loss is {effect} where the mean is taken out of the trained RMS network's stream",
            comparative=("higher", "lower"),
        )
        yield Contrast(
            last("identity_error", "difference of the outputs", probe="stream"),
            "layer",
            at={"lr": Best("lr")},
            exact_within=ROUNDING,
            name="identity",
            claim="A pre-norm network of layer norms is a network of RMS norms and shifts with centred weights.",
            says="its outputs are those of the RMS network ({effect})",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss at each arm's best rate, and the share of the mean by depth at the end."""
        best = {arm: Best("lr").of(evidence, arm=arm) for arm in self.ARMS}
        shared = best["layer"]
        return [
            self.curves(evidence, "loss", at={"lr": shared}, slug="loss"),
            by_depth(
                evidence.select(probe="stream", name="mean_share", lr=shared),
                y="mean_share",
                steps=[0, int(evidence.settings["steps"])],
                slug="mean-share",
                title="Share of the stream that its mean over features holds",
                y_title="Share of the mean square at each norm's input",
                arms=list(self.ARMS),
                labels={name: str(arm) for name, arm in self.ARMS.items()},
                caption=f"Chance: {1 / int(evidence.settings['network']['width']):.3g}.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate held-out losses and shares at every rate."""
        step = int(evidence.settings["steps"])
        return [
            self.grid_table(
                [LOSS, share_at(0), share_at(step)],
                evidence,
                rows={"arm": list(self.ARMS), "lr": evidence.settings["lrs"]},
                title="Held-out loss, and the share of the mean before and after training",
            )
        ]


def identity_error(model: "Transformer", split: "Split") -> float:
    """Return by how much a network of layer norms differs from its twin of RMS norms, relative to its outputs."""
    double = copy.deepcopy(model).double().eval()
    x = split.x_test[:16]
    if x.is_floating_point():
        x = x.double()
    with torch.no_grad():
        expected, found = double(x), without_centring(double)(x)
    return float((found - expected).abs().max() / expected.abs().max())


def _centred_over_whole(evidence: Evidence, **where: Any) -> "Floats":
    centred = evidence.last("centred_loss", probe="stream", **where)
    return np.log(centred) - np.log(evidence.last("test_loss", **where))


def share_at(step: int) -> Quantity:
    """Return the mean share of the stream's mean over the norms' inputs at a step, 0 or the end."""

    def read(evidence: Evidence, **where: Any) -> "Floats":
        frame = evidence.select(probe="stream", name="mean_share", **where).filter(pl.col("step") == step)
        return np.log(evidence.per_seed(frame))

    words = "share of the mean " + ("after training" if step else "before training")
    return Quantity(words, read, logs=True, record=("stream", "mean_share"))


LOSS = replace(last("test_loss", "held-out loss", logs=True), held_out=True)
CENTRED = Quantity("held-out loss without the mean over that with it", _centred_over_whole, logs=True)
