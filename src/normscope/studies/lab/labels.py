"""Labels that are wrong on purpose."""

from dataclasses import replace

import torch

from normscope.studies.lab.data import Split
from normscope.studies.lab.streams import generator


def with_wrong_labels(split: Split, share: float, seed: int) -> Split:
    """Replace a share of the training labels by random ones, the same for all arms of a seed.

    Args:
        split: The data; validation and test labels stay.
        share: Share of the training labels, in [0, 1]. Some of the random ones are right by chance.
        seed: Seed of the replicate.
    """
    stream = generator(seed, "labels")
    labels = split.y_train.clone()
    count = round(share * len(labels))
    chosen = torch.randperm(len(labels), generator=stream)[:count]
    labels[chosen] = torch.randint(int(labels.max()) + 1, (count,), generator=stream).to(labels)
    return replace(split, y_train=labels)


def in_double(split: Split) -> Split:
    """Return the split with inputs in float64."""
    return replace(split, x_train=split.x_train.double(), x_val=split.x_val.double(), x_test=split.x_test.double())
