"""The stream of a transformer block by block: its variance, how far each block turns it, what a block is worth."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from normscope.records import Cell, Record
from normscope.studies.evidence import Evidence, Floats
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.train import loss_fn
from normscope.studies.lab.transformer import Transformer
from normscope.studies.quantity import Quantity

PROBE = "stream"


def stream_by_block(cell: Cell, model: Transformer, x: Tensor, step: int) -> Iterator[Record]:
    """Yield what each block does to the stream, probe ``stream``, one site a block.

    ``variance`` of the features of a position behind the block, and ``angle`` in degrees between what the block is
    given and what it gives, both means over positions and samples. An angle of 0 is the identity, up to a factor.

    Args:
        cell: Of the model.
        model: Left as it was.
        x: Inputs.
        step: Steps of training so far.
    """
    record = recorder(cell, PROBE)
    with torch.no_grad():
        h = model.stream(x)
        for index, block in enumerate(model.blocks):
            out = block(h)
            turned = cosine_similarity(h, out, dim=-1).double().clamp(-1, 1).arccos()
            yield record("variance", out.var(-1, correction=0).mean(), step, f"blocks.{index}")
            yield record("angle", math.degrees(float(turned.mean())), step, f"blocks.{index}")
            h = out


def worth_of_blocks(cell: Cell, model: Transformer, batch: tuple[Tensor, Tensor], step: int) -> Iterator[Record]:
    """Yield by how much the loss of a batch rises if a block is taken out, ``worth`` in nats, one site a block.

    Args:
        cell: Of the model.
        model: Left as it was.
        batch: Inputs and labels.
        step: Steps of training so far.
    """
    record = recorder(cell, PROBE)
    with torch.no_grad():
        whole = float(loss_fn(model, batch))
        for index, block in enumerate(model.blocks):
            model.blocks[index] = nn.Identity()
            try:
                loss = float(loss_fn(model, batch))
            finally:
                model.blocks[index] = block
            yield record("worth", loss - whole, step, f"blocks.{index}")


def blocks_of(evidence: Evidence) -> list[int]:
    """Return the numbers of the blocks, from 1."""
    return list(range(1, int(evidence.settings["network"]["blocks"]) + 1))


def _of(evidence: Evidence, name: str, block: int | None, part: str, where: Mapping[str, Any]) -> pl.DataFrame:
    """Return the records of a name, of one block, of the first or last third of the blocks, or of all."""
    blocks = blocks_of(evidence)
    third = max(1, len(blocks) // 3)
    kept = [block] if block else {"first": blocks[:third], "last": blocks[-third:]}.get(part, blocks)
    found = evidence.select(probe=PROBE, name=name, **where)
    return found.filter(pl.col("site").is_in([f"blocks.{index - 1}" for index in kept]))


def _angle(evidence: Evidence, part: str = "", block: int | None = None, **where: Any) -> Floats:
    return evidence.mean_log(_of(evidence, "angle", block, part, where))


def _worth(evidence: Evidence, part: str = "", block: int | None = None, **where: Any) -> Floats:
    return evidence.per_seed(_of(evidence, "worth", block, part, where))


def _variance(evidence: Evidence, block: int, **where: Any) -> Floats:
    return evidence.mean_log(_of(evidence, "variance", block, "", where))


def _ends(evidence: Evidence, half: str, where: Mapping[str, Any]) -> tuple[Floats, Floats, int]:
    """Return the log variance at both ends of a half of the blocks, and the number of blocks between."""
    blocks = blocks_of(evidence)
    middle = blocks[(len(blocks) - 1) // 2]
    first, last = (blocks[0], middle) if half == "first" else (middle, blocks[-1])
    return _variance(evidence, first, **where), _variance(evidence, last, **where), last - first


def _rate(evidence: Evidence, half: str, **where: Any) -> Floats:
    low, high, count = _ends(evidence, half, where)
    return np.asarray((high - low) / count)


def _rise(evidence: Evidence, half: str, **where: Any) -> Floats:
    low, high, count = _ends(evidence, half, where)
    with np.errstate(invalid="ignore", divide="ignore"):  # a variance that falls has no logarithm of its rise
        return np.asarray(np.log((np.exp(high) - np.exp(low)) / count))


#: Geometric mean over blocks, of a ``block`` or a ``part``: the ``"first"`` or ``"last"`` third.
ANGLE = Quantity("angle by which a block turns the stream", _angle, logs=True)
#: Mean over blocks, of a ``block`` or a ``part``.
WORTH = Quantity("rise of the loss without a block", _worth, unit="nats")
#: Behind a ``block``, counted from 1.
VARIANCE = Quantity("variance of the stream", _variance, logs=True)
#: Over a ``half`` of the blocks, ``"first"`` or ``"last"``: geometric mean of the factors of its blocks.
RATE = Quantity("factor of the variance per block", _rate, logs=True)
#: As ``RATE``: the mean of what its blocks add.
RISE = Quantity("rise of the variance per block", _rise, logs=True)
