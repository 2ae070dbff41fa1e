"""The text of character models: documentation of Python's standard library, kept in the package."""

import functools
import gzip
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from normscope._errors import UsageError
from normscope.studies.lab.dataset import Dataset, Split
from normscope.studies.lab.streams import stream

#: Characters of a block. Blocks, not single windows, are dealt out to training, validation and test.
BLOCK = 2048
#: Characters that a model sees at once where nothing else is asked for.
CONTEXT = 64


class Text(Dataset):
    """A text as blocks of consecutive characters, with the character that follows each.

    ``x_train`` holds the codes (blocks, 2048), uint8, and ``y_train`` the codes one character later, int64. A code is
    the place of a character among those that occur, in the order of ASCII.
    """

    __slots__ = ()

    def split(
        self,
        seed: int,
        *,
        train: int | None = None,
        test: int | None = None,
        dtype: torch.dtype = torch.float32,
        context: int = CONTEXT,
    ) -> Split:
        """Deal out the blocks to training, validation and test (9 to 1 to 2), and cut them into windows.

        Args:
            seed: Seed of the replicate.
            train: Number of training windows at most; None for all.
            test: Number of validation windows, and of test windows, at most; None for all.
            dtype: Not used: inputs are codes.
            context: Characters of a window; it divides 2048.

        Returns:
            Inputs and labels (windows, context), int64; the label of a character is the character behind it.

        Raises:
            UsageError: The context does not divide a block.
        """
        if context < 1 or BLOCK % context:
            raise UsageError(f"a context of {context} characters does not divide {BLOCK}: use a power of 2 up to that")
        order = np.random.default_rng(stream(seed, "split")).permutation(len(self.x_train))
        first, second = len(order) * 9 // 12, len(order) * 10 // 12
        parts = (order[:first], train), (order[first:second], test), (order[second:], test)

        def windows(codes: np.ndarray, most: int | None) -> Tensor:
            return torch.from_numpy(codes.astype(np.int64).reshape(-1, context)[:most])

        return Split(*(windows(side[rows], most) for rows, most in parts for side in (self.x_train, self.y_train)))


@functools.cache
def characters() -> str:
    """Return the text: 96 blocks of 2048 printable ASCII characters and line ends, and a character behind the last.

    Docstrings of the standard library of Python 3.11.7, spread evenly over its modules (PSF licence, which stands
    beside the text; ``benchmarks/text_of_docstrings.py`` made it).
    """
    packed = files("normscope.studies").joinpath("data", "text.txt.gz").read_bytes()
    return gzip.decompress(packed).decode("ascii")


@functools.cache
def symbols() -> str:
    """Return the characters that occur in the text, in the order of their codes."""
    return "".join(sorted(set(characters())))


def load_text() -> Text:
    """Return the text as data, by the name ``text``."""
    code = np.zeros(128, np.uint8)
    code[[ord(symbol) for symbol in symbols()]] = np.arange(len(symbols()))
    codes = code[np.frombuffer(characters().encode("ascii"), np.uint8)]
    return Text("text", codes[:-1].reshape(-1, BLOCK), codes[1:].astype(np.int64).reshape(-1, BLOCK))
