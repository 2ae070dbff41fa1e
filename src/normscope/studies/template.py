"""A template for a user's own study, which runs as it stands."""

import keyword
import re
from pathlib import Path

from normscope._errors import UsageError


def new(path: str | Path) -> Path:
    """Write a template for a study of one's own.

    Args:
        path: A file that does not exist yet, ending in ``.py``; its name becomes the study's slug.

    Returns:
        The path.

    Raises:
        UsageError: The file exists, does not end in ``.py``, cannot be written, or has a name no slug can be made of.
    """
    from normscope.studies.find import all

    file = Path(path)
    words = re.findall(r"[a-z0-9]+", file.stem.lower())
    if file.suffix != ".py" or not words or not words[0][0].isalpha():
        raise UsageError(f"{file} must be named as a Python file whose name begins with a letter: my_claim.py")
    slug, name = "-".join(words), "".join(word.capitalize() for word in words)
    if slug in {study.CODE for study in all()} or keyword.iskeyword(name):
        raise UsageError(f"{slug} cannot be the slug of a study of your own: choose another file name")
    text = (Path(__file__).parent / "templates" / "study.py.txt").read_text(encoding="utf-8")
    for sign, value in (("@TITLE@", f"A study of my own: {slug}."), ("@CLASS@", name), ("@CODE@", slug)):
        text = text.replace(sign, value)
    try:
        with file.open("x", encoding="utf-8", newline="\n") as target:
            target.write(text)
    except FileExistsError:
        raise UsageError(f"{file} exists already: choose another name") from None
    except FileNotFoundError:
        raise UsageError(f"cannot write {file}: there is no folder {file.parent}: make it first") from None
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from None
    return file
