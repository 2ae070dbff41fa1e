"""How large is the gradient of a transformer's last block at the start, by depth and by the norm's placement?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from normscope._errors import UsageError
from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.stats import slope_per_seed
from normscope.studies import AbstractStudy, Contrast, Evidence, Quantity, presets
from normscope.studies.case_question import BUILT_OTHERWISE
from normscope.studies.figures import theory_table
from normscope.studies.lab import token_norms
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.last_gradients import last_gradients
from normscope.studies.lab.streams import generator
from normscope.studies.lab.text import Text
from normscope.studies.lab.transformer import Transformer, transformer

if TYPE_CHECKING:
    from normscope.studies.evidence import Floats
    from normscope.studies.lab.data import Dataset

#: Set-ups by name: what differs from the first, which is that of the theory.
SETUPS: dict[str, dict[str, Any]] = {
    "theory": {},
    "shallow": {"depths": "shallow"},
    "batch": {"name": "batch"},
    "true labels": {"labels": "true"},
    "usual": {"labels": "true", "heads": 4, "hidden": 4, "activation": "gelu", "uniform": False},
    "gpt2": {"labels": "true", "heads": 4, "hidden": 4, "activation": "gelu", "uniform": False, "init": "gpt2"},
    "no final norm": {"final_norm": False},
}
WORDS = {
    "theory": "the set-up of the theory",
    "shallow": "fewer blocks",
    "batch": "the gradient of a batch's mean loss",
    "true labels": "the labels of the text",
    "usual": "attention, activation and labels as usual",
    "gpt2": "the initial weights of GPT-2",
    "no final norm": "no norm in front of the head",
}
#: The power of the depth in theory.
POST, PRE = 0.0, -0.5
WITHIN = 0.1


class PreLnPostLnGradients(AbstractStudy):
    r"""At the start, gradients near the output do not depend on depth in post-norm and fall as 1/sqrt(L) in pre-norm.

    ## Claim
    At initialization the expected gradients near the output layer of a post-norm transformer are large, whatever its
    depth L; those of a pre-norm transformer are smaller by a factor $\sqrt{L}$ and well behaved (Xiong et al. 2020).

    ## Method
    Transformers of 8, 16, 32 and 64 blocks at the start of training, on windows of 32 characters. The endpoint is the
    norm of the gradient of the last block's second feed-forward matrix, for the loss at one position, averaged over all
    positions; in the last block the loss at a position reaches that matrix through this position alone, so the norm is
    a product of two vectors' norms. The power of the depth is the slope of its logarithm on that of L. The set-up is
    that of the theory: queries and keys of 0, so that attention averages; a rectifier; a hidden layer as wide as the
    stream; Glorot's weights; embeddings of variance 1; labels drawn at random; a norm in front of the head in pre-norm.
    The headline is by how much the power is higher in post-norm; claims of their own are the two powers of theory,
    within 0.1, and that the gradient is larger in post-norm at the largest depth. Also tried: 1 to 8 blocks; the
    gradient of the batch's mean loss; the labels of the text; four heads with random queries and keys, a hidden layer
    of four times the width, GELU and the labels of the text ("usual"); the same with GPT-2's initial weights; pre-norm
    without its last norm.

    ## Prediction
    0 in post-norm and -1/2 in pre-norm, whose stream has a variance that grows as $a + cL$: the norm in front of the
    head divides the gradient by its square root. So with few blocks the power is smaller in size, about -0.35 for 1 to
    8 with embeddings of variance 1. GPT-2 divides the last weights of each branch by $\sqrt{2L}$, and the variance does
    not grow: 0 in pre-norm too. Without the last norm nothing divides, and the power is 0 or above.

    ## Threats
    The theory is for wide streams: the set-up has 128 features, and at 64 the slopes scatter by 0.2 from seed to seed.
    The gradient of a batch's mean loss adds up the positions, whose values become alike with depth under averaging
    attention, which adds to its power. Nothing is trained here: whether the gradients make a warm-up necessary is in
    post-ln-needs-warmup.
    """

    CODE = "pre-ln-post-ln-gradients"
    CARD = 34
    TOPIC = "transformers"
    SOURCES = ("Xiong et al. 2020 (arXiv:2002.04745), abstract",)
    CLAIM = (
        "At the start, gradients near the output fall with depth in pre-norm transformers and not in post-norm ones."
    )
    ON_A_CASE = BUILT_OTHERWISE
    ENDPOINT = "Power of the depth in the last block's gradient norm, post-norm minus pre-norm, set-up of the theory"
    MARGIN = 0.25
    MARGIN_REASON = "half of the difference of the two powers in theory"
    EXTENSION = True
    DATA = "text"
    NETWORKS = "transformers before training"
    ARMS = {"post": "post-norm", "pre": "pre-norm"}
    CONDITIONS = {"blocks": "{:g} blocks"}
    VARIES = {"setup": "set-up"}
    PRESETS = presets(
        quick={
            "width": 128,
            "depths": [8, 16, 32, 64],
            "shallow": [1, 2, 4, 8],
            "context": 32,
            "windows": 4,
            "setups": list(SETUPS),
        },
        full={"width": 512, "depths": [8, 16, 32, 64, 128], "windows": 16, "context": 128},
    )

    def takes(self, data: "Dataset") -> None:
        """Take a text alone: of an image only one position has a loss."""
        if not isinstance(data, Text):
            raise UsageError(f"{self.CODE} measures the loss at each position of a text: leave --data out")

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both placements at every depth of every set-up; what is read of a batch needs no network of its own."""
        for setup in settings["setups"]:
            if setup == "batch":
                continue
            for blocks in settings["shallow" if setup == "shallow" else "depths"]:
                for arm in self.ARMS:
                    yield arm, {"setup": setup, "blocks": blocks}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Take the gradient of one random network; all cells of a seed see the same windows."""
        assert isinstance(data, Text)  # takes() has seen to it
        settings, setup = cell.settings, SETUPS[str(cell.point["setup"])]
        split = data.split(cell.seed, train=settings["windows"], context=settings["context"]).to(device)
        model = _network(cell, data, setup).to(device)
        labels = split.y_train
        if setup.get("labels") != "true":
            source = generator(cell.seed, "labels")
            labels = torch.randint(data.classes, labels.shape, generator=source).to(device)
        record = recorder(cell, "gradient")
        yield from (record(name, value) for name, value in last_gradients(model, split.x_train, labels).items())

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the difference of the powers in every set-up, then each power against theory, and the sizes."""
        setups = evidence.settings["setups"]
        for setup in setups:
            yield Contrast(
                power(setup),
                "post",
                "pre",
                conditions={"setup": WORDS[setup]},
                name=setup,
                says="the power of the depth in the gradient norm is {effect} in post-norm than in pre-norm",
                comparative=("higher", "lower"),
            )
        for arm, expected in (("post", POST), ("pre", PRE)):
            for setup in setups:
                yield Contrast(
                    power(setup),
                    arm,
                    expected,
                    conditions={"setup": WORDS[setup]},
                    equal_within=WITHIN,
                    margin_reason="a fifth of the power of pre-norm in theory",
                    labels=("", "theory"),
                    name=f"{arm}, {setup}",
                    claim=f"The gradient norm goes as the depth to the power {expected:g} in {self.ARMS[arm]}.",
                    says=f"the power is {{effect}} the {expected:g} of theory in {self.ARMS[arm]}",
                    comparative=("above", "below"),
                )
        deepest = evidence.settings["depths"][-1]
        for setup in setups:
            if setup not in ("batch", "shallow"):
                yield Contrast(
                    _size(setup),
                    "post",
                    "pre",
                    at={"blocks": deepest},
                    conditions={"setup": WORDS[setup]},
                    scale="log-ratio",
                    margin=math.log(1.5),
                    margin_reason="theory has a factor of the square root of the depth, which is more than five",
                    name=f"size, {setup}",
                    claim="At the start the gradient near the output is larger in post-norm.",
                    says="the gradient norm at a position is {effect} in post-norm than in pre-norm",
                    comparative=("larger", "smaller"),
                )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the gradient norm by depth in the set-up of the theory and with the initial weights of GPT-2."""
        shown = [setup for setup in ("theory", "gpt2") if setup in evidence.settings["setups"]]
        return [
            self.curves(
                evidence,
                "position",
                probe="gradient",
                at={"setup": setup},
                x="blocks",
                slug=f"by-depth-{setup}",
                title=f"Gradient of the last block by depth, {WORDS[setup]}",
                x_title="Blocks",
                y_title="Gradient norm at a position",
                log=True,
                log_x=True,
                caption="Power of the depth: "
                + ", ".join(
                    f"{power(setup).typical(power(setup)(evidence, arm=arm))} in {words}"
                    for arm, words in self.ARMS.items()
                )
                + ".",
            )
            for setup in shown
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the powers of every set-up, and of the stream's variance, against theory."""
        setups = evidence.settings["setups"]
        rows = tuple(
            (
                words,
                *(power(setup).typical(power(setup)(evidence, arm=arm)) for arm in self.ARMS),
                *(power(setup, "stream").typical(power(setup, "stream")(evidence, arm=arm)) for arm in self.ARMS),
            )
            for setup, words in WORDS.items()
            if setup in setups
        )
        heads = [f"{what}, {words}" for what in ("Gradient", "Variance of the stream") for words in self.ARMS.values()]
        return [
            Table("Power of the depth", ("Set-up", *heads), rows, f"Means over {len(evidence.seeds)} seeds."),
            theory_table([("power of the depth, pre-norm", power("theory")(evidence, arm="pre"), PRE)]),
        ]


def power(setup: str, name: str = "") -> Quantity:
    """Return the slope of the logarithm of a record on that of the number of blocks.

    Args:
        setup: A name of ``SETUPS``.
        name: Of the record; the gradient that the set-up asks for if left out.
    """
    name = name or SETUPS[setup].get("name", "position")
    network = "theory" if setup == "batch" else setup

    def read(evidence: Evidence, *, arm: str) -> "Floats":
        depths = evidence.settings["shallow" if setup == "shallow" else "depths"]
        values = [evidence.last(name, probe="gradient", arm=arm, setup=network, blocks=blocks) for blocks in depths]
        logs = np.log(np.array(values).T)
        known = np.isfinite(logs).all(1)
        slopes = np.full(len(logs), np.nan)
        if known.any():
            slopes[known] = slope_per_seed(np.log(depths), logs[known])
        return slopes

    return Quantity("power of the depth in the gradient norm" if name != "stream" else "power of the depth", read)


def _size(setup: str) -> Quantity:
    return Quantity(
        "gradient norm of the last block at a position",
        lambda evidence, **where: np.log(evidence.last("position", probe="gradient", setup=setup, **where)),
        logs=True,
        record=("gradient", "position"),
    )


def _network(cell: Cell, data: Text, setup: Mapping[str, Any]) -> Transformer:
    """Return the network of a cell at its initial weights."""
    settings = cell.settings
    width, placement = int(settings["width"]), cell.arm
    model = transformer(
        data,
        token_norms.layer(),
        seed=cell.seed,
        context=settings["context"],
        width=width,
        blocks=int(cell.point["blocks"]),
        heads=setup.get("heads", 1),
        hidden=width * int(setup.get("hidden", 1)),
        placement=placement,
        final_norm=setup.get("final_norm") if placement == "pre" else None,
        activation=setup.get("activation", "relu"),
        init=setup.get("init", "xavier"),
    )
    if setup.get("uniform", True):
        with torch.no_grad():
            for block in model.blocks:
                for part in ("query", "key"):
                    block.get_parameter(f"attention.{part}.weight").zero_()
    return model
