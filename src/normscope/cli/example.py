"""``normscope example``."""

from pathlib import Path

from normscope.cli._print import print_text


def example() -> None:
    """Print a training script to begin with: `normscope example > train.py`, then put your own network in it."""
    print_text(example_file().read_text(encoding="utf-8"))


def example_file() -> Path:
    """Return the file of the training script that ships with the package."""
    return Path(__file__).parent.parent / "examples" / "digits_cnn.py"
