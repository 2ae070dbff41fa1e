"""What the guide to comparing says runs."""

import re
import warnings
from pathlib import Path

import pytest

from normscope.comparing import ComparisonWarning, all_questions
from normscope.surgery import ARMS

GUIDE = Path(__file__).parents[2] / "docs" / "comparing.md"
TEXT = GUIDE.read_text(encoding="utf-8")


@pytest.mark.long
def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ComparisonWarning)
        exec(compile(code, str(GUIDE), "exec"), {})
    assert (tmp_path / "page.html").is_file()
    assert (tmp_path / "export" / "answers.csv").is_file()
    assert "Does the network train faster" in capsys.readouterr().out


def test_it_lists_every_arm_and_every_question():
    arms, questions = TEXT.split("## The arms")[1].split("## The questions")[:2]
    named = re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| (`.*?) \|", arms, re.M)))
    assert set(named) == set(ARMS)
    listed = re.findall(r"^\| `([\w-]+)` \|", questions, re.M)
    assert listed == [question.CODE for question in all_questions()]
