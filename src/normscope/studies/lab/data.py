"""Data sets: the digits, downloads with checksums, and any folder of idx files or npz file of the user's."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from normscope._errors import DataError, UsageError
from normscope.records.reading import reached
from normscope.studies.lab._idx import read_folder
from normscope.studies.lab._npz import read_npz
from normscope.studies.lab.streams import stream

NAMES = ("digits", "fashion-mnist", "cifar10")

_FASHION_ADDRESS = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
_CIFAR_ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_MOST_CLASSES = 100_000  # a network has an output for each
_LARGEST_NUMBER = 1e15  # the squares of larger inputs are infinite in single precision, and so is their spread


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


@functools.lru_cache(maxsize=2)
def load(source: str) -> Dataset:
    """Load data by name or path.

    Args:
        source: ``"digits"`` (scikit-learn's, always there), ``"fashion-mnist"`` or ``"cifar10"`` (downloaded once, with
            their checksums), or a path: a folder of idx files named as MNIST's, gzipped or not, or an ``.npz`` file of
            ``x_train``, ``y_train``, ``x_test`` and ``y_test``, images as uint8 or float, channels first or last.

    Raises:
        DataError: The path does not exist, or what lies there is truncated, incomplete, empty, not finite, too large or
            of another form.
        UsageError: ``source`` is empty, or can be no path.
    """
    if not source:
        raise UsageError(f"no data named: use one of {', '.join(NAMES)} or a path")
    if source in NAMES:
        named: Mapping[str, Callable[[], Dataset]] = {
            "digits": _digits,
            "fashion-mnist": _fashion_mnist,
            "cifar10": _cifar10,
        }
        return named[source]()
    path = reached(source)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder, and no data of that name: use {', '.join(NAMES)} or a path")
    if path.is_dir():
        return _checked(source, read_folder(path))
    if path.suffix == ".npz":
        return _checked(source, read_npz(path, _KEYS))
    raise DataError(f"{source}: neither a folder of idx files nor an .npz file")


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return Dataset("digits", images.reshape(-1, 1, 8, 8).astype(np.float32), labels.astype(np.int64), by_pixel=True)


def _fetch(address: str, name: str, sha256: str, folder: str) -> Path:
    """Return the path of a downloaded file; it is fetched once and its checksum is verified every time."""
    import platformdirs
    import pooch

    cache = platformdirs.user_cache_path("normscope") / folder
    try:
        found: str = pooch.retrieve(address, known_hash=f"sha256:{sha256}", fname=name, path=cache, progressbar=False)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        reason = str(error).partition("\n")[0][:120]
        raise DataError(
            f"{folder}: {name} could not be fetched ({reason}): check the network, or give your copy with --data PATH"
        ) from error
    return Path(found)


def _fashion_mnist() -> Dataset:
    folders = {
        _fetch(_FASHION_ADDRESS + name, name, sha256, "fashion-mnist").parent for name, sha256 in _FASHION_FILES.items()
    }
    return _checked("fashion-mnist", read_folder(folders.pop()))


def _cifar10() -> Dataset:
    import tarfile

    path = _fetch(_CIFAR_ADDRESS, "cifar-10-binary.tar.gz", _CIFAR_SHA256, "cifar10")
    parts: dict[str, np.ndarray] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = Path(member.name).name
            if name.endswith("_batch.bin") or name.startswith("data_batch"):
                stream_ = archive.extractfile(member)
                if stream_ is not None:
                    parts[name] = np.frombuffer(stream_.read(), np.uint8).reshape(-1, 3073)
    train = np.concatenate([parts[f"data_batch_{i}.bin"] for i in range(1, 6)])
    test = parts["test_batch.bin"]
    return _checked(
        "cifar10",
        {
            "x_train": train[:, 1:].reshape(-1, 3, 32, 32),
            "y_train": train[:, 0],
            "x_test": test[:, 1:].reshape(-1, 3, 32, 32),
            "y_test": test[:, 0],
        },
    )


def _numbers(images: np.ndarray) -> np.ndarray:
    """Return uint8 images as floats in [0, 1], floats as they are."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images.astype(np.float32)


def _checked(name: str, arrays: Mapping[str, np.ndarray]) -> Dataset:
    """Check the four arrays and put channels first."""
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if len(np.shape(y)) == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if np.ndim(y) != 1 or np.ndim(x) not in (2, 3, 4):
            raise DataError(f"{name}: x_{part} must be (N, F), (N, H, W) or images with channels, y_{part} (N,)")
        if len(x) != len(y):
            raise DataError(f"{name}: x_{part} has {len(x)} examples and y_{part} {len(y)}")
        if len(x) == 0 or x.size == 0:
            raise DataError(f"{name}: x_{part} is empty")
        if not (np.issubdtype(x.dtype, np.floating) or x.dtype == np.uint8):
            raise DataError(f"{name}: x_{part} is {x.dtype}: give images as uint8 or float")
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise DataError(f"{name}: y_{part} must hold class numbers from 0, got {y.dtype} from {y.min()}")
        if y.max() >= _MOST_CLASSES:
            raise DataError(f"{name}: y_{part} has the class number {y.max()}: number the classes from 0 without gaps")
        if x.dtype != np.uint8 and not np.isfinite(x).all():
            raise DataError(
                f"{name}: x_{part} holds {int((~np.isfinite(x)).sum())} NaN or infinite values: remove them"
            )
        if x.dtype != np.uint8 and max(x.max(), -x.min()) > _LARGEST_NUMBER:
            raise DataError(f"{name}: x_{part} has numbers beyond {_LARGEST_NUMBER:g} in size: divide them by it")
    x_train, x_test = _channels_first(arrays["x_train"]), _channels_first(arrays["x_test"])
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(f"{name}: training inputs are {x_train.shape[1:]}, test inputs {x_test.shape[1:]}")
    y_train, y_test = (arrays[key].reshape(-1).astype(np.int64) for key in ("y_train", "y_test"))
    return Dataset(name, x_train, y_train, x_test, y_test)


def _channels_first(x: np.ndarray) -> np.ndarray:
    """Give (N, H, W) one channel, and turn (N, H, W, C) round if only its last axis can be the channels."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return np.ascontiguousarray(np.moveaxis(x, -1, 1))
    return x


def gaussian_regression(seed: int, *, samples: int = 1000, size: int = 10) -> Split:
    """Draw the data of the deep linear network: x Gaussian, targets A x with A i.i.d. Gaussian.

    Santurkar et al. 2018, appendix A.1. Training, validation and test part are the same: nothing is held out there.

    Args:
        seed: Seed of the replicate.
        samples: Number of inputs.
        size: Their features, and those of the targets.
    """
    source = torch.Generator().manual_seed(stream(seed, "split"))
    x = torch.randn(samples, size, generator=source)
    y = x @ torch.randn(size, size, generator=source).T
    return Split(x, y, x, y, x, y)
