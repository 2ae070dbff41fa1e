"""The held-out loss of a transformer at the end of training, of which a run that diverged has a number too."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from normscope.records import Cell, Record
from normscope.studies.evidence import Evidence, Floats
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.transformer import Transformer
from normscope.studies.quantity import Quantity


def chance(cell: Cell, model: Transformer) -> Iterator[Record]:
    """Yield the loss of who takes all classes for equally likely, probe ``chance``, which is the most a run can lose.

    Args:
        cell: Of the model.
        model: Gives the number of classes.
    """
    yield recorder(cell, "chance")("loss", math.log(model.head.out_features))


def _held_out(evidence: Evidence, **where: Any) -> Floats:
    loss, most = evidence.last("test_loss", **where), evidence.last("loss", probe="chance", **where)
    diverged = evidence.last("diverged", **where) == 1
    return np.asarray(np.where(diverged, most, np.minimum(loss, most)), dtype=np.float64)


#: In nats a character; that of chance where a run diverged, or ended worse than chance.
HELD_OUT = Quantity("held-out loss at the end", _held_out, record=("training", "test_loss"), unit="nats", held_out=True)
