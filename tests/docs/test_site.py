"""The site before it is rendered: every unit has a page, every link leads somewhere, programs can read all of it."""

import inspect
import posixpath
import re

import pytest

import normscope as ns
from normscope import atlas
from sitemaker import api, links, markup, site, tree, units
from sitemaker.tree import SiteError, Tree


@pytest.fixture(scope="module")
def pages():
    """All pages, with their links made to fit."""
    return tree.collect()


def test_every_unit_has_a_page_with_all_its_headings(pages):
    for kind in units.kinds():
        assert kind.units
        for unit in kind.units:
            text = pages.pages[units.address(kind, unit)]
            assert text.startswith(f"# {unit.CODE}") or unit.__name__ in text.splitlines()[0]
            for heading in unit.page():
                assert f"\n## {heading}\n" in text, unit.CODE
            listed = pages.pages[f"reference/{kind.folder}/index.md"]
            assert f"]({unit.CODE}.md)" in listed


def test_mathematics_of_units_stands_as_it_was_written(pages):
    for kind in units.kinds():
        for unit in kind.units:
            text = pages.pages[units.address(kind, unit)]
            formulas = re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", inspect.cleandoc(unit.__doc__))
            assert all(" ".join(formula.split()) in text for formula in formulas), unit.CODE


def test_pages_of_layers_and_probes_say_how_they_are_called(pages):
    for kind in units.kinds()[:2]:
        for unit in kind.units:
            text = pages.pages[units.address(kind, unit)]
            called = re.search(rf"^ns\.{kind.folder}\.{unit.__name__}\((.*?)\)\n```", text, re.MULTILINE | re.DOTALL)
            assert called, unit
            named = [name for name in inspect.signature(unit).parameters if name not in {"args", "kwargs"}]
            assert all(re.search(rf"\b{name}\b", called[1]) for name in named)


def test_every_public_name_has_its_place(pages):
    top = pages.pages["reference/api/index.md"]
    for name in ns.__all__:
        if name in api.modules():
            module = pages.pages[f"reference/api/{name}.md"]
            assert all(f"\n## ns.{name}.{member}\n" in module for member, _ in api.public(getattr(ns, name)))
        elif not name.startswith("_"):
            assert f"\n## ns.{name}\n" in top


def test_every_page_is_reached_from_the_front(pages):
    seen, left = set(), ["index.md"]
    while left:
        page = left.pop()
        if page in seen:
            continue
        seen.add(page)
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", pages.pages[page], re.MULTILINE | re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            left += [posixpath.normpath(posixpath.join(posixpath.dirname(page), f"{name}.md")) for name in names]
    assert seen == set(pages.pages)


def test_a_new_page_is_listed_among_the_guides():
    front = "# A\n\n```{toctree}\n:caption: Answers\n\nold\n```\n\n```{toctree}\n:caption: Guide\n\nb\n```\n"
    made = tree.with_all_guides({"index.md": front, "old.md": "", "b.md": "", "new.md": "", "sub/c.md": ""})
    assert made == front.replace("Guide\n\nb", "Guide\n\nnew\nb")


def test_programs_find_every_page_and_read_no_directives(pages):
    listed = site.llms(pages)
    for path, text in pages.pages.items():
        assert f"]({path})" in listed
        plain = re.sub(r"^```.*?^```", "", site.plain(text), flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"^:::|\{toctree\}|^:link", plain, re.MULTILINE), path
    assert "- [What is wrong with my network?](checking.md): `normscope check` finds" in site.plain(
        pages.pages["index.md"]
    )


@pytest.mark.parametrize("link", ["[a](gone.md)", "[a](index.md#gone)", "![a](gone.png)", "[a](#gone)"])
def test_a_link_that_leads_nowhere_is_seen(link):
    # The files of a page are looked for when its links are made to fit; headings when all pages are there.
    found = Tree(pages={"index.md": f"# A\n\nb {link} `[c](no.md)`\n\n```text\n[d](no.md)\n```\n"})
    assert [line for line in tree.dead_ends(found) if "gone" in line]
    assert not [line for line in tree.dead_ends(found) if "no.md" in line]


def test_a_page_without_a_title_is_refused():
    with pytest.raises(SiteError, match=r"a\.md has no title"):
        Tree(pages={"a.md": "text\n"}).title("a.md")


def test_studies_lead_to_their_evidence(pages):
    for study in ns.studies.all():
        text = pages.pages[f"reference/studies/{study.CODE}.md"]
        assert "## Answer" in text
        assert f"normscope study run {study.CODE}" in text
        assert f"(reference/studies/{study.CODE}.md)" in pages.pages["evidence.md"]


def test_questions_say_what_the_networks_of_the_atlas_answer(pages):
    for row in atlas.committed().rows:
        text = pages.pages[f"reference/questions/{row.code}.md"]
        assert "On the networks of [the atlas](../../atlas.md): *" in text
        assert row.cells[0].network.title in text
        assert f"<br>[`{row.code}`](reference/questions/{row.code}.md): " in pages.pages["atlas.md"]
    assert '<a href="atlas-page.html">' in pages.pages["atlas.md"]


@pytest.mark.parametrize(
    ("docstring", "made"),
    [
        ("A\nb.\n\n## C\nd\n- e\n  f\n- g\nh", "A b.\n\n## C\n\nd\n\n- e f\n- g\n\nh"),
        ("A.\n\nArgs:\n    x: One\n        two.\n    y: Three ``<a>``.",
         "A.\n\n**Arguments**\n\n- `x`: One two.\n- `y`: Three ``<a>``."),
        ("Returns:\n    One\n    two.", "**Returns**\n\nOne two."),
        ("a\n$$x = 1,\ny$$\nb", "a\n\n$$\nx = 1, y\n$$\n\nb"),
        (":class:`~a.B` <b> `<c>` $a<b$", "`a.B` \\<b> `<c>` $a<b$"),
        ("A.\n\nso:\n\n    code\n      in", "A.\n\nso:\n\n```text\ncode\n  in\n```"),
        ("a share of\n5\n% of it", "a share of 5 % of it"),
    ],
)  # fmt: skip
def test_docstrings_become_markdown(docstring, made):
    assert markup.markdown(docstring) == made


def test_numbers_of_papers_and_threads_are_links():
    assert markup.sources(("arXiv:1502.03167 section 3", "pytorch/vision#8250")) == (
        "- [arXiv:1502.03167](https://arxiv.org/abs/1502.03167) section 3\n"
        "- [pytorch/vision#8250](https://github.com/pytorch/vision/issues/8250)"
    )


def test_a_faulty_page_is_seen(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html">b</a><a href="a.html#c">c</a><a href="#d" id="d">d</a><a href="https://e.f">e</a>'
        '<script src="https://g.h/i.js"></script><img src="j.svg">'
    )
    assert links.check(tmp_path) == [
        "a.html loads https://g.h/i.js from elsewhere",
        "a.html links to b.html, which is not there",
        "a.html links to a.html#c, a place that is not there",
        "a.html links to j.svg, which is not there",
    ]
