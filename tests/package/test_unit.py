"""Units describe themselves and are found by being there."""

import sys
import textwrap
import types
from typing import ClassVar

import pytest

from normscope import _unit, explain, report, verdicts
from normscope._errors import UnitError
from normscope._unit import Unit, discover, documentation, near, web_page
from normscope.records import Finding, Severity


class Documented(Unit):
    """A title.

    Text before the first heading.

    ## First
    One
    two.

    ## Second
    Three.
    """

    CODE = "documented"
    SOURCES = ()
    HEADINGS = ("First", "Second")


def test_title_and_page_are_those_of_the_docstring():
    assert Documented.title() == "A title."
    assert Documented.page() == {"First": "One\ntwo.", "Second": "Three."}


@pytest.mark.parametrize("headings", [("First", "Third"), ("Third",)])
def test_a_page_that_lacks_a_heading_is_an_error(headings):
    class Lacking(Documented):
        __doc__ = Documented.__doc__
        HEADINGS: ClassVar = headings

    with pytest.raises(UnitError, match="its docstring lacks Third"):
        Lacking.page()


def test_an_empty_heading_is_none():
    class Empty(Documented):
        """A title.

        ## First

        ## Second
        Three.
        """

    with pytest.raises(UnitError, match="lacks First"):
        Empty.page()


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A package with units in files; names of files and their text as given."""

    def room(**files):
        folder = tmp_path / "planted_room"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for name, text in files.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(tmp_path)
        __import__("planted_room")
        return sys.modules["planted_room"]

    yield room
    for name in [name for name in sys.modules if name.partition(".")[0] == "planted_room"]:
        del sys.modules[name]


def test_final_units_are_found_in_the_order_of_files_and_shared_files_passed_over(room):
    found = room(
        b_second="from planted_room._base import Base\nclass B(Base):\n    def act(self): pass\n",
        a_first="from planted_room._base import Base\nclass A(Base):\n    def act(self): pass\nclass Other: pass\n",
        _base="from abc import ABC, abstractmethod\nfrom normscope._unit import Unit\n"
        "class Base(Unit, ABC):\n    @abstractmethod\n    def act(self): ...\n"
        "class Shared(Base):\n    def act(self): pass\n",
        c_abstract="from planted_room._base import Base\nclass C(Base): pass\n",
        d_imports="from planted_room.a_first import A\n",
    )
    base = __import__("planted_room._base", fromlist=["Base"]).Base
    assert [unit.__name__ for unit in discover(found, base)] == ["A", "B"]


def test_near_names_are_offered_and_the_first_few_where_none_is_near():
    known = ["noisy-batchnorm", "landscape", "conditioning", "apple", "bird", "cat", "dog"]
    assert near("noisy-batchnrm", known) == "noisy-batchnorm"
    assert near("xyzzyq", known) == "apple or bird or cat or conditioning or dog"
    assert near("x", types.MappingProxyType({"b": 1, "a": 2})) == "a or b"


@pytest.fixture
def site(monkeypatch):
    """Plant the URLs in the metadata of the package."""

    def planted(*urls):
        metadata = types.SimpleNamespace(get_all=lambda name: list(urls) or None)
        monkeypatch.setattr(_unit.importlib.metadata, "metadata", lambda name: metadata)
        documentation.cache_clear()

    yield planted
    documentation.cache_clear()


def test_pages_are_on_the_site_that_the_metadata_name(site):
    site("Source, https://a.b/source", "Documentation, https://a.b/docs/")
    assert web_page("rules", "NS103") == "https://a.b/docs/reference/rules/NS103.html"
    for name, folder in (
        ("vanishing-at-init", "studies"),
        ("curvature", "probes"),
        ("question:smoothness", "questions"),
    ):
        found = explain.unit(name)
        assert found.address() == f"https://a.b/docs/reference/{folder}/{found.CODE}.html"
    assert Documented.address() == ""


def test_no_host_is_invented(site):
    for urls in ((), ("Source, https://a.b/source",)):
        site(*urls)
        assert web_page("rules", "NS103") == explain.unit("NS103").address() == ""


def test_a_command_a_finding_and_a_page_lead_to_the_site(site, run, tmp_path):
    site("Documentation, https://a.b/docs")
    assert run("explain", "NS103").stdout.endswith("On the web: https://a.b/docs/reference/rules/NS103.html\n")
    finding = Finding("NS103", "slug", Severity.ERROR, "bad", ("layer",))
    checked = report.Checked(target="t", findings=(finding,), rules=())
    assert "--explain NS103 or https://a.b/docs/reference/rules/NS103.html" in report.check_text(checked)
    page = verdicts.write_condensed(explain.committed(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'href="https://a.b/docs/reference/studies/vanishing-at-init.html"' in page
    site()
    assert "On the web" not in run("explain", "NS103").stdout
    assert " or https" not in report.check_text(checked)
