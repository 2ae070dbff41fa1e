"""Every command that a page names is understood."""

import re

import pytest

from kit.guides import PAGES, ROOT, commands, parsed
from normscope import comparing, probes, rules, studies
from normscope.surgery import ARMS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_fit(page):
    for command in commands(page.read_text(encoding="utf-8")):
        try:
            parsed(command)
        except Exception as error:
            pytest.fail(f"{command}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("command", ["normscope chek x", "normscope check x --selekt NS1", "normscope study rum x"])
def test_a_command_that_does_not_fit_is_seen(command):
    with pytest.raises(Exception, match=r"chek|selekt|rum"):
        parsed(command)


def test_the_names_in_commands_exist():
    text = "\n".join(command for page in PAGES for command in commands(page.read_text(encoding="utf-8")))
    named = {
        option: re.findall(rf"^normscope (?:compare|check) .*{option}[ =]([\w.,-]+)", text, re.MULTILINE)
        for option in ("--questions", "--arms", "--select")
    }
    split = {option: {each for value in values for each in value.split(",")} for option, values in named.items()}
    assert split["--questions"] <= {question.CODE for question in comparing.all_questions()}
    assert split["--arms"] <= set(ARMS)
    codes = {rule.CODE for rule in rules.all()}
    assert all(any(code.startswith(chosen) for code in codes) for chosen in split["--select"])
    slugs = {study.CODE for study in studies.all()}
    for command in re.findall(r"^normscope study (?:run|show) (.+)$", text, re.MULTILINE):
        words = [word for word in command.split("#")[0].split(" --")[0].split() if not word.startswith("--")]
        assert {word for word in words if not word.endswith(".py") and word.islower()} <= slugs, command
    units = {probe.CODE for probe in probes.all()} | slugs | codes | {q.CODE for q in comparing.all_questions()}
    for name in re.findall(r"^normscope explain ([a-z][\w-]+)$", text, re.MULTILINE):
        assert name in units or name.replace("-", "_") in units, name
