"""A user's file is loaded with everything it may rest on, and whatever it raises is one line with its place."""

import os
import subprocess
import sys
import textwrap

import pytest

from normscope._errors import StoreError, UsageError
from normscope.usercode import described, imports_from, load_file, load_module, place_of, quiet_stdout, users_code


@pytest.fixture
def write(tmp_path):
    before = set(sys.modules)

    def write(code, name="setup_of_mine.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refused(path):
    before = set(sys.modules)
    with pytest.raises(UsageError) as caught:
        load_file(path)
    assert "\n" not in str(caught.value)
    assert not [name for name in set(sys.modules) - before if name.startswith("normscope_user_")]
    return str(caught.value)


@pytest.mark.parametrize("name", ["setup_of_mine.py", "with spaces-and.dots.py", "no_suffix"])
def test_a_file_is_a_module_that_is_found_again(write, name):
    module = load_file(
        write(
            """
            from __future__ import annotations
            from dataclasses import dataclass, fields

            @dataclass
            class Point:
                x: float

            COUNT = len(fields(Point))
            """,
            name,
        )
    )
    assert module.COUNT == 1
    assert sys.modules[module.__name__] is module
    assert module.Point.__module__ == module.__name__


def test_what_lies_beside_is_imported_and_nothing_is_left_behind(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    write("VALUE = 7\n", "lies_beside.py")
    searched, wrote = list(sys.path), sys.dont_write_bytecode
    assert load_file(write("from lies_beside import VALUE\n")).VALUE == 7
    assert (sys.path, sys.dont_write_bytecode) == (searched, wrote)
    assert not (tmp_path / "__pycache__").exists()
    load_file(write("import sys\nsys.path.insert(0, 'of the user')\nsys.path.append('at the end')\n"))
    assert sys.path == ["of the user", *searched, "at the end"]


def test_a_file_that_is_changed_within_a_second_is_read_again(write):
    assert load_file(write("VALUE = 1\n")).VALUE == 1
    assert load_file(write("VALUE = 2\n")).VALUE == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero (setup_of_mine.py:2)"),
        ("import json\njson.loads('{')\n", "(setup_of_mine.py:2)"),
        ("x = 1\n\ndef (:\n", "SyntaxError: invalid syntax (setup_of_mine.py:3)"),
        ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it' (setup_of_mine.py:1)"),
        ("raise SystemExit('usage:\\n it')\n", "SystemExit: usage: it (setup_of_mine.py:1)"),
        ("class Bad(Exception):\n    def __str__(self):\n        raise ValueError\nraise Bad\n", "raised Bad (setup_"),
        ("raise ValueError('a' * 1000)\n", f"ValueError: {'a' * 300}... (setup_of_mine.py:1)"),
        ("raise ValueError\n", "raised ValueError (setup_of_mine.py:1)"),
        ("class Halt(BaseException): ...\nraise Halt(4)\n", "raised Halt: 4 (setup_of_mine.py:2)"),
        ("raise BaseExceptionGroup('all', [KeyboardInterrupt()])\n", "(setup_of_mine.py:1)"),
    ],
)
def test_what_a_file_raises_is_one_line_with_its_place(write, code, said):
    path = write(code)
    message = refused(path)
    assert message.startswith(f"importing {path} raised ")
    assert said in message


def test_the_innermost_line_of_the_user_is_named_also_in_another_file(write):
    write("def helper():\n    return 1 / 0\n", "lies_beside.py")
    assert "(lies_beside.py:2)" in refused(write("import lies_beside\nlies_beside.helper()\n"))
    write("x = (\n", "also_beside.py")
    assert "(also_beside.py:1)" in refused(write("import also_beside\n"))


def test_a_file_among_libraries_is_the_users_own_if_it_is_named(write):
    write("1 / 0\n", "site-packages/of_mine.py")
    assert "(of_mine.py:1)" in refused(write("").parent / "site-packages" / "of_mine.py")


def test_an_interrupt_is_none_of_these_and_leaves_no_module(write):
    with pytest.raises(KeyboardInterrupt):
        load_file(write("raise KeyboardInterrupt\n"))
    assert "normscope_user_setup_of_mine" not in sys.modules


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    assert "cannot read" in refused(tmp_path / "gone.py")
    assert "cannot read" in refused(tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot read" in refused(tmp_path / "file" / "below.py")
    assert "cannot read" in refused(tmp_path / "nul\0.py")
    os.mkfifo(tmp_path / "pipe.py")
    assert "it is no file" in refused(tmp_path / "pipe.py")
    with (tmp_path / "huge.py").open("wb") as file:
        file.truncate(1 << 40)
    assert "too large" in refused(tmp_path / "huge.py")


EXITS = """
import os, sys
from normscope.usercode import exits_told, load_file
with exits_told():
    load_file(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import os\n\nos._exit(0)\n", 2, "ended the program by os._exit(0) (setup_of_mine.py:3)"),
        ("from os import _exit as leave\nleave(7)\n", 2, "os._exit(7) (setup_of_mine.py:2)"),
        ("import os\nif os.fork() == 0:\n    os._exit(9)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))\n", 0, ""),
    ],
)
def test_a_process_that_a_users_file_ends_says_so(write, code, status, said):
    words = [sys.executable, "-c", EXITS, str(write(code))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr.count("\n") == (1 if said else 0)
    assert said in done.stderr
    assert done.stdout == ("" if said else "9\n")


@pytest.mark.parametrize("code", ["import os\nos.fork()\n", "import os\nif not os.fork():\n    raise ValueError\n"])
def test_a_process_that_a_users_file_forks_does_not_go_on_with_the_program(write, code):
    going_on = "import sys\nfrom normscope.usercode import load_file\nload_file(sys.argv[1])\nprint('went on')\n"
    words = [sys.executable, "-c", going_on, str(write(code))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "went on\n"
    assert done.stderr == ""


def test_a_stream_that_the_users_code_closes_is_not_the_programs(capfd):
    with quiet_stdout():
        print("before")
        sys.stdout.close()
    print("after")
    print("also after", file=sys.stderr)
    told = capfd.readouterr()
    assert told.out == "after\n"
    assert told.err == "before\nalso after\n"


def test_the_packages_own_errors_pass_with_the_place_of_their_cause(write):
    path = write(
        """
        from normscope._errors import StoreError
        def plain():
            raise StoreError("it is full")
        def caused():
            try:
                1 / 0
            except ZeroDivisionError as error:
                raise StoreError("it is full") from error
        """
    )
    module = load_file(path)
    for call, said in ((module.plain, "it is full"), (module.caused, "it is full (setup_of_mine.py:7)")):
        with pytest.raises(StoreError) as caught, users_code("storing"):
            call()
        assert str(caught.value) == said


def test_nested_blocks_say_it_once_and_keep_the_cause():
    with pytest.raises(UsageError) as caught, users_code("the check"), users_code("the loss"):
        raise ValueError("no")
    assert str(caught.value) == f"the loss raised ValueError: no ({os.path.basename(__file__)}:{_line_of('no')})"
    assert isinstance(caught.value.__cause__, ValueError)


def _line_of(word):
    with open(__file__, encoding="utf-8") as file:
        return next(i for i, line in enumerate(file, start=1) if f'raise ValueError("{word}")' in line)


def test_modules_are_found_by_name_in_the_current_folder(write, tmp_path, monkeypatch):
    write("VALUE = 3\n", "found_by_name.py")
    write("1 / 0\n", "raises_by_name.py")
    write("import nothing_like_it\n", "lacks_by_name.py")
    monkeypatch.chdir(tmp_path)
    assert load_module("found_by_name").VALUE == 3
    for name, said in {
        "raises_by_name": "importing raises_by_name raised ZeroDivisionError: division by zero (raises_by_name.py:1)",
        "lacks_by_name": "No module named 'nothing_like_it' (lacks_by_name.py:1)",
        "nothing_like_it": "there is no module or file called nothing_like_it",
        "found_by_name.deeper": "there is no module or file called found_by_name.deeper",
        "..relative": "'..relative' is no module's name",
        "": "'' is no module's name",
    }.items():
        with pytest.raises(UsageError) as caught:
            load_module(name)
        assert said in str(caught.value)


def test_the_folder_is_searched_first_and_taken_off_once(tmp_path):
    before = list(sys.path)
    with imports_from(tmp_path):
        assert sys.path == [str(tmp_path), *before]
        assert sys.dont_write_bytecode
    assert sys.path == before


def test_kind_and_message_stand_in_one_line():
    assert described(ValueError("two\n  lines")) == "ValueError: two lines"
    assert described(KeyError()) == "KeyError"
    assert place_of(ValueError("never raised")) == ""
