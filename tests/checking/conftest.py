"""How the tests type commands."""

import textwrap

import pytest
from check_setups import NET


@pytest.fixture
def refuse(refuse):
    """Refuse a check."""
    return lambda *words, **options: refuse("check", *words, **options)


@pytest.fixture
def write(tmp_path):
    def write(code, name="setup.py"):
        path = tmp_path / name
        path.write_text(NET + textwrap.dedent(code), encoding="utf-8")
        return path

    return write
