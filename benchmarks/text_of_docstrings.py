"""Make the text of the character models: ``src/normscope/studies/data/text.txt.gz``, from one version of Python.

The text is kept in the package, so this has been run once, with Python 3.11.7; another version gives another text, and
records of two texts are not replicates of one thing.
"""

import ast
import gzip
import inspect
import re
import sysconfig
from pathlib import Path

#: 96 blocks of 2048 characters, and the character that follows the last (`lab/text.py`).
SIZE = 96 * 2048 + 1
#: Shorter docstrings are labels rather than prose.
SHORTEST = 250
#: Not documentation of the library, or code that came from elsewhere under a licence of its own.
LEFT_OUT = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "distutils", "ensurepip", "site-packages", "pydoc_data"),
    *("asynchat.py", "asyncore.py", "cookies.py", "trace.py", "uu.py", "xmlrpc", "__phello__", "config-3.11"),
}


def docstrings(path):
    """Return the longer docstrings of a module, in the order of its lines; none if others hold rights in it."""
    source = path.read_text(encoding="utf-8", errors="ignore")
    rights = re.findall(r"(?i)^.*copyright.*$", source, re.MULTILINE)
    if any("Python Software Foundation" not in line for line in rights):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    texts = (inspect.cleandoc(text) for node in nodes if (text := ast.get_docstring(node, clean=False)))
    return [text for text in texts if len(text) >= SHORTEST and text.isascii()]


def main():
    """Write the text, the docstrings spread evenly over the library."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in root.rglob("*.py") if not LEFT_OUT & set(path.relative_to(root).parts))
    found = list(dict.fromkeys(text for path in paths for text in docstrings(path)))
    clean = [
        re.sub(r"[ \t]+$", "", re.sub(r"\n{3,}", "\n\n", text.replace("\t", "    ")), flags=re.M) for text in found
    ]
    total = sum(len(text) + 2 for text in clean)
    kept, due = [], 0.0
    for text in clean:
        due += SIZE * 1.02 / total * (len(text) + 2)
        if sum(len(one) + 2 for one in kept) + len(text) / 2 < due:
            kept.append(text)
    text = "\n\n".join(kept)
    text = "".join(sign for sign in text if sign == "\n" or " " <= sign <= "~")[:SIZE]
    target = Path(__file__).parents[1] / "src/normscope/studies/data/text.txt.gz"
    target.write_bytes(gzip.compress(text.encode("ascii"), 9, mtime=0))
    print(f"{len(found)} docstrings, {total} characters; kept {len(kept)}, {len(text)}, {len(set(text))} symbols")


if __name__ == "__main__":
    main()
