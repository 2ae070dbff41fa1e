"""The pages are written for readers who are new to English: no filler, no shortened words, no endless sentence."""

import re
import subprocess
import sys

import pytest

from kit.guides import PAGES, ROOT

#: Words that add nothing, that praise, or that a reader who is new to English must look up.
BANNED = re.compile(
    r"\b(simply|obviously|clearly|easily|basically|actually|really|quite|just|leverag\w+|utili[sz]\w+|seamless\w*"
    r"|powerful|blazing\w*|cutting-edge|effortless\w*|in order to|note that|please|e\.g\.|i\.e\.|etc\.|w\.r\.t\."
    r"|via|whilst|thereof|whereby|hereby|aforementioned|amongst|\w+n't|it's|there's|that's|you'll|we'll|we've|one's)(?!\w)",
    re.IGNORECASE,
)
LONGEST = 50  # words of a sentence
#: Written by the report from sentences of the studies, and from quotations.
MADE = {"evidence.md", "questions.md"}
#: Not misspelt: findings of a severity.
KNOWN = "informations,notin"


def prose(text):
    """Return the sentences of a page, without code and tables."""
    made = re.sub(r"^<!-- atlas: \w.*?^<!-- atlas: end -->", "", text, flags=re.MULTILINE | re.DOTALL)
    bare = re.sub(r"^```.*?^```|^\|.*?$|^<!--.*?-->$|`[^`]+`", "", made, flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|^\s*(?:[-#*]|\d+\.)\s", bare, flags=re.MULTILINE):
        yield from re.split(r"(?<=[.:;?!])\s+", " ".join(paragraph.split()))


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in MADE], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_is_plain(page):
    sentences = list(prose(page.read_text(encoding="utf-8")))
    assert sentences
    assert not [(found[0], sentence) for sentence in sentences for found in BANNED.finditer(sentence)]
    assert not [sentence for sentence in sentences if len(sentence.split()) > LONGEST]


def test_words_and_sentences_that_are_not_plain_are_seen():
    text = "A `simply` b. It's so.\n\n```sh\njust\n```\n" + "word " * (LONGEST + 1) + "."
    sentences = list(prose(text))
    assert [found[0] for sentence in sentences for found in BANNED.finditer(sentence)] == ["It's"]
    assert len([sentence for sentence in sentences if len(sentence.split()) > LONGEST]) == 1


def test_mathematics_has_one_markup():
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r":math:|\.\. math::", path.read_text(encoding="utf-8")), path


@pytest.mark.extras
def test_no_word_is_misspelt():
    pytest.importorskip("codespell_lib", reason="codespell is not installed")
    where = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "examples", "benchmarks/results", "src"]
    words = [
        sys.executable,
        "-m",
        "codespell_lib",
        "--ignore-words-list",
        KNOWN,
        "--skip",
        "*.so,*.json,*.svg,*.png,*.o",
    ]
    done = subprocess.run([*words, *where], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
