"""Data sets: the digits, the text, downloads with checksums, and any folder of idx files or npz file of the user's."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from normscope._errors import DataError, UsageError
from normscope.records.reading import reached
from normscope.studies.lab._idx import read_folder
from normscope.studies.lab._npz import read_npz
from normscope.studies.lab.dataset import Dataset, Split
from normscope.studies.lab.streams import stream
from normscope.studies.lab.text import load_text

__all__ = ["NAMES", "Dataset", "Split", "gaussian_regression", "load"]

NAMES = ("digits", "text", "fashion-mnist", "cifar10")

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


@functools.lru_cache(maxsize=2)
def load(source: str) -> Dataset:
    """Load data by name or path.

    Args:
        source: ``"digits"`` (scikit-learn's) or ``"text"`` (for transformers), which are always there,
            ``"fashion-mnist"`` or ``"cifar10"`` (downloaded once, with their checksums), or a path: a folder of idx
            files named as MNIST's, gzipped or not, or an ``.npz`` file of ``x_train``, ``y_train``, ``x_test`` and
            ``y_test``, images as uint8 or float, channels first or last.

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
            "text": load_text,
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
