"""What data are to studies: arrays with labels, from which every seed draws its own parts."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normscope._errors import DataError
from normscope.studies.lab.streams import stream


@dataclass(frozen=True, slots=True)
class Split:
    """What one replicate trains and is evaluated on, standardised with the mean and spread of its training part.

    Attributes:
        x_train: Inputs (N, C, H, W) or (N, F).
        y_train: Labels (N,), int64.
        x_val: Held out for choosing learning rates; disjoint from the other two.
        y_val: Its labels.
        x_test: Held out for everything else.
        y_test: Its labels.
    """

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor

    def to(self, device: str) -> "Split":
        """Return the split on a device."""
        return Split(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images or vectors with labels, before any split by seed.

    Attributes:
        name: What a user calls it: a name of ``NAMES`` or a path.
        x_train: Inputs (N, C, H, W), uint8 or float32, or (N, F).
        y_train: Labels (N,), int64, from 0.
        x_test: Inputs to test on; None if the split is made by seed from the training arrays.
        y_test: Their labels.
        by_pixel: Whether each input feature has a mean and spread of its own (digits) or each channel (images).
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    by_pixel: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x_train.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes: the largest label plus one."""
        labels = [self.y_train] if self.y_test is None else [self.y_train, self.y_test]
        return int(max(part.max() for part in labels)) + 1

    def fingerprint(self) -> str:
        """Return a hash of the content: the same data under another path have the same."""
        digest = hashlib.sha256()
        for part in (self.x_train, self.y_train, self.x_test, self.y_test):
            if part is not None:
                digest.update(f"{part.dtype}{part.shape}".encode())
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()[:16]

    def split(
        self, seed: int, *, train: int | None = None, test: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Split:
        """Draw one replicate's training, validation and test part.

        Without test arrays of its own (digits) three quarters are for training and the rest for validation and test,
        one third to two. Otherwise the validation part is drawn from the training arrays, 10 % of them at most.

        Args:
            seed: Seed of the replicate.
            train: Number of training examples at most; None for all.
            test: Number of test examples at most; None for all.
            dtype: Type of the inputs.
        """
        source = np.random.default_rng(stream(seed, "split"))
        order = source.permutation(len(self.x_train))
        if self.x_test is None or self.y_test is None:
            cut = len(order) * 3 // 4
            held = order[cut:]
            val, rest = held[: len(held) // 3], held[len(held) // 3 :]
            x_test, y_test = self.x_train[rest[:test]], self.y_train[rest[:test]]
            chosen = order[:cut][:train]
        else:
            picked = source.permutation(len(self.x_test))[:test]
            x_test, y_test = self.x_test[picked], self.y_test[picked]
            room = max(1, min(len(order) // 10, test or len(order)))
            val, chosen = order[:room], order[room:][:train]
        if min(len(chosen), len(val), len(y_test)) == 0:
            raise DataError(f"{self.name}: too few examples to train, validate and test on ({len(order)} in all)")
        x = _numbers(self.x_train[chosen])
        axes = (0,) if self.by_pixel or x.ndim == 2 else (0, *range(2, x.ndim))
        mean, spread = x.mean(axes, keepdims=True), x.std(axes, keepdims=True) + 1e-2

        def inputs(part: np.ndarray) -> Tensor:
            return torch.from_numpy((part - mean) / spread).to(dtype)

        def labels(part: np.ndarray) -> Tensor:
            return torch.from_numpy(part.astype(np.int64))

        return Split(
            inputs(x),
            labels(self.y_train[chosen]),
            inputs(_numbers(self.x_train[val])),
            labels(self.y_train[val]),
            inputs(_numbers(x_test)),
            labels(y_test),
        )


def _numbers(images: np.ndarray) -> np.ndarray:
    """Return uint8 images as floats in [0, 1], floats as they are."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images.astype(np.float32)
