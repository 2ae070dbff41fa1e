import base64
import dataclasses
import hashlib
import html
import io
import json
import os
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from kit import report_pages
from normscope import report
from normscope._errors import StoreError
from normscope.plots import Table
from normscope.records import Condition, Estimate, Outcome, Premise, Verdict
from normscope.report import Section, _text  # white box: markup is a language of its own, seen a case at a time
from normscope.report._page import duration  # white box: a page shows a few of its words only
from normscope.stats import adjust

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{7*7}}&amp;\u2028" + "x" * 300


class Outline(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.headings, self.ids, self.links, self.scripts = [], [], [], [], []
        self._script = None

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append((tag, named))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in named:
            self.ids.append(named["id"])
        if tag == "a":
            self.links.append(named.get("href", ""))
        if tag == "script":
            self._script = [named.get("type", ""), ""]
            self.scripts.append(self._script)

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, text):
        if self._script is not None:
            self._script[1] += text


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "deep" / "report.html"
    arguments = {"sections": report_pages.sections(report_pages.frame(every=20)), "provenance": report_pages.PROVENANCE}
    written = report.write(path, title="A report", times=report_pages.TIMES, lede="Four claims.", **arguments)
    assert written == path
    return path.read_text(encoding="utf-8")


def outline(page):
    parser = Outline()
    parser.feed(page)
    return parser


def test_the_page_refers_to_nothing_outside(page):
    found = outline(page)
    for tag, attributes in found.tags:
        if tag in ("script", "img", "iframe", "source"):
            assert "src" not in attributes
        if tag == "link":
            assert attributes["href"].startswith("data:")
    assert not re.search(r"@import|url\(", page[page.index("<style>") : page.index("</style>")])


def test_headings_go_down_one_step_at_a_time_and_addresses_exist_once(page):
    found = outline(page)
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in zip(found.headings, found.headings[1:], strict=False))
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert [tag for tag, _ in found.tags].count("main") == 1


def test_the_policy_admits_the_scripts_of_the_page_and_no_other(page):
    found = outline(page)
    (policy,) = [
        a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    code = [text for kind, text in found.scripts if kind != "application/json"]
    assert hashes == [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert "unsafe-eval" not in policy
    assert policy.startswith("default-src 'none'")


def words_of(markup):
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]+>", " ", markup))).strip()


def tiles(page):
    """Return (word with its sign, effect, claim, sentence) of every tile."""
    parts = (
        r'<li class="tile .*?<p class="said">(.*?)<strong class="effect">(.*?)</strong>.*?<p class="claim">(.*?)</p>'
    )
    found = re.findall(parts + r'(?:\s*<p class="sentence">(.*?)</p>)?', page, re.S)
    return [tuple(words_of(part) for part in tile) for tile in found]


def test_the_page_opens_with_a_tile_a_claim_experiments_first_and_identities_apart(page):
    smooth, shift, noisy, three = report_pages.verdicts()
    assert [tile[:3] for tile in tiles(page)] == [
        ("◐ depends on the depth", "1.83 times narrower (1.52 to 2.20)", smooth.claim),
        ("⇄ opposite", "0.12 less (0.05 to 0.19)", shift.claim),
        ("– not measurable", "", noisy.claim),
        ("✕ false", "largest error 18 %", three.claim),
    ]
    assert tiles(page)[0][3] == (
        "Yes: the range is 1.83 times narrower (1.52 to 2.20). "
        "But opposite with 3 hidden layers (2.0 times wider (1.7 to 2.5))."
    )
    assert page.index("noisy-batchnorm") < page.index("Identities: algebra") < page.index("largest error 18 %")
    assert page.index('class="tiles"') < page.index("3 claims: 1 depends on a condition, 1 is the opposite, 1 is not")
    assert "1 is not measurable; 1 identity apart: 1 is false." in page


def section_of(page, slug):
    return words_of(page[page.index(f'id="study-{slug}"') :].partition("</section>")[0])


def test_a_sign_stands_only_beside_the_claim_that_its_word_answers(page):
    found = re.findall(r'<h2 id="study-.*?>(.*?)</h2>', page)
    claims = [verdict.claim for verdict in report_pages.verdicts()]
    assert [words_of(head) for head in found] == claims
    assert "Does batch norm smooth the loss along the gradient?" not in re.sub(
        r"<details.*?</details>", "", page, flags=re.S
    )


def test_a_study_shows_its_answer_margin_and_premises_and_all_contrasts(page):
    text = section_of(page, "landscape-smoothness")
    assert "Here: dense networks, 8x8 digits. Also tried: Opposite with 3 hidden layers" in text
    assert "smallest effect that matters ×1.5: half as wide again is not seen in a figure" in text
    assert "Headline: 8 hidden layers, the same step sizes 1.83 times narrower (1.52 to 2.20) ✓ holds" in text
    assert "3 hidden layers 2.0 times wider (1.7 to 2.5) ⇄ opposite" in text
    assert "20 hidden layers 1.20 times narrower (0.8 to 1.9) ? unclear about 40 seeds would decide" in text
    assert "Along the gradient, the gradient changes less with batch norm. 8 hidden layers" in text
    noisy = section_of(page, "noisy-batchnorm")
    assert "premise, met The noise shifts means (seen: 2.4 times as much: holds)" in noisy
    assert "Not measurable: a premise is not met: Batch norm gains over none (seen: 35 against 28 steps" in noisy
    assert noisy.count("Batch norm gains over none") == 1, "the reason says it"
    assert "0.62 (0.41" not in noisy, "an effect that was not measured"
    assert "allowed error below 1.0e−7 %" in section_of(page, "bn-backward-three-terms")


def test_one_picture_a_study_and_all_the_rest_folded(page):
    folds = re.compile(r"<details.*?</details>", re.S)
    for slug in ("landscape-smoothness", "ics-gradient-shift", "noisy-batchnorm", "bn-backward-three-terms"):
        section = page[page.index(f'id="study-{slug}"') :].partition("</section>")[0]
        visible = folds.sub("", section)
        assert visible.count('class="chart"') == 1
        assert "<table" not in visible
        assert "Threats" not in visible
    assert not [a for tag, a in outline(page).tags if tag == "details" and "open" in a]


def test_every_section_holds_its_parts_tables_threats_and_command(page):
    for words in ("range at depth 8", "best learning rate", "Threats", "--out runs/demo",
                  "The grid of steps was cut", "Method", "after Holm", "2 min 59 s in all", "torch"):  # fmt: skip
        assert words in page
    assert "s ∈ [1/2, 4]η" in page
    assert "λ<sub>max</sub> ≈ 2/η" in page


@pytest.mark.parametrize(
    ("levels", "words"), [((0.95, 0.95), "95 %"), ((0.9, 0.95), "90 % and 95 %"), ((0.999,), "99.9 %")]
)
@pytest.mark.parametrize("adjusted", [None, 0.04])
def test_the_page_says_which_intervals_and_whether_p_is_corrected(tmp_path, levels, words, adjusted):
    verdicts = tuple(
        Verdict(f"s{i}", "Claim.", Outcome.HOLDS, "e", Estimate(1, 0.5, 2, level, 9, "t"), 0.1, "r",
                p_value=0.02, adjusted_p=adjusted)
        for i, level in enumerate(levels)
    )  # fmt: skip
    sections = [Section(v.study, "Title.", "Claim.", {}, (v,)) for v in verdicts]
    page = report.write(tmp_path / "r.html", title="T", sections=sections).read_text(encoding="utf-8")
    assert f"The {words} interval over seeds decides" in page
    assert page.count("<dt>uncorrected</dt><dd>p = 0.02</dd>") == (len(levels) if adjusted is None else 0)
    assert page.count("<dt>after Holm</dt><dd>p = 0.04</dd>") == (0 if adjusted is None else len(levels))


@pytest.mark.parametrize("p", [0.011, 0.2, 4e-5])
def test_what_stands_after_holm_is_the_corrected_p_value_and_never_the_raw(tmp_path, p):
    """Judged together with another claim, by the correction itself: the page has the corrected number alone."""
    effect = Estimate(0.2, 0.1, 0.3, 0.95, 3, "m")
    raw = [Verdict(s, "c", Outcome.HOLDS, "e", effect, 0.1, "r", p_value=v) for s, v in (("a", p), ("b", 0.3))]
    for together, factor in ((raw, 2), (raw[:1], 1)):
        sections = [Section(v.study, "S", "c", {}, (v,)) for v in adjust(together)]
        text = report.write(tmp_path / "r.html", title="t", sections=sections).read_text(encoding="utf-8")
        first = text[text.index('id="study-a"') :].partition("</section>")[0]
        said = "p &lt; 0.001" if factor * p < 1e-3 else f"p = {factor * p:.2g}"
        assert f"<dt>after Holm</dt><dd>{said}</dd>" in first
        assert len(re.findall(r"<dd>p [=&]", first)) == 1
        assert "uncorrected" not in text


@pytest.mark.parametrize("outcome", [Outcome.NOT_MEASURABLE, Outcome.EXACT, Outcome.FALSE])
def test_no_p_value_where_nothing_was_tested(tmp_path, outcome):
    effect = Estimate(0.2, 0.1, 0.3, 0.95, 3, "m", "error" if outcome.of_identity else "difference")
    verdict = Verdict("s", "c", outcome, "e", effect, 0.1, "r", p_value=0.01, adjusted_p=0.02)
    path = report.write(tmp_path / "r.html", title="t", sections=[Section("s", "S", "c", {}, (verdict,))])
    text = path.read_text(encoding="utf-8")
    assert "after Holm" not in text
    assert "p = 0.0" not in text


def test_values_that_are_not_finite_stand_above_their_chart(tmp_path):
    figure = report_pages.sections(report_pages.frame(1, 20))[2].figures[0]
    figure = dataclasses.replace(figure, caption="How to read it. Left out: 302 values not finite. More.")
    section = Section("s", "S", "c", {}, (), figures=(figure,), kind="probe")
    text = report.write(tmp_path / "r.html", title="t", sections=[section]).read_text(encoding="utf-8")
    notice = '<p class="notice">Left out: 302 values not finite.</p>'
    assert text.index(notice) < text.index('<div class="chart"')
    assert text.count("302 values") == 1


def hostile_section():
    effect = Estimate(0.1, 0.0, 0.2, 0.95, 3, HOSTILE, HOSTILE)
    told = {"claim": HOSTILE, "outcome": Outcome.UNCLEAR, "endpoint": HOSTILE, "effect": effect, "margin": 0.1}
    told |= dict.fromkeys(("name", "margin_reason", "finding", "amount", "why", "here", "reason"), HOSTILE)
    told |= {"premises": (Premise(HOSTILE, True),), "sources": (HOSTILE,)}
    told |= {"conditions": (Condition(HOSTILE, HOSTILE),)}
    others = tuple(Verdict(HOSTILE, **(told | changed), primary=False) for changed in (
        {"conditions": (Condition(HOSTILE, HOSTILE * 2),)}, {"claim": HOSTILE * 2},
        {"outcome": Outcome.FALSE, "claim": HOSTILE * 3},
    ))  # fmt: skip
    verdict = Verdict(HOSTILE, **told, parts=others)
    figure = report_pages.sections(report_pages.frame(1, 20))[2].figures[0]
    bad = type(figure)(HOSTILE, HOSTILE, HOSTILE, HOSTILE, figure.spec)
    table = Table(HOSTILE, (HOSTILE, "b"), ((HOSTILE, 1.0), (None, True)), HOSTILE)
    text = {"Threats": HOSTILE, HOSTILE: HOSTILE}
    shown = ((verdict, verdict), (bad,), (table,))
    return Section(HOSTILE, HOSTILE, HOSTILE, text, *shown, HOSTILE, (HOSTILE,), HOSTILE)


def test_hostile_strings_stay_text(tmp_path):
    section = hostile_section()
    path = report.write(tmp_path / "r.html", title=HOSTILE, sections=[section, section], lede=HOSTILE,
                        provenance={HOSTILE: {HOSTILE: HOSTILE}}, times={HOSTILE: 1.0})  # fmt: skip
    found = outline(path.read_text(encoding="utf-8"))
    assert [kind for kind, _ in found.scripts] == ["", "application/json", "", ""]
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    data = json.loads(found.scripts[1][1])
    assert HOSTILE in [chart["alt"] for chart in data["charts"].values()]
    assert len(found.ids) == len(set(found.ids))


def test_the_check_for_hostile_strings_would_catch_a_leak():
    assert [t for t, _ in outline(f"<p>{HOSTILE}</p>").tags if t in ("img", "script")]


def test_a_page_without_studies_is_a_page(tmp_path):
    path = report.write(tmp_path / "r.html", title="Nothing", sections=[], provenance={}, times={})
    assert "Nothing was judged." in path.read_text(encoding="utf-8")
    bare = Section("s", "S", "", {}, ())
    assert "Is it" in report.write(path, title="Is it", sections=[bare]).read_text(encoding="utf-8")


def test_a_path_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "r.html", tmp_path):
        with pytest.raises(StoreError) as caught:
            report.write(path, title="t", sections=[])
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_a_page_that_fails_half_way_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="No space left"):
        report.write(path, title="t", sections=[])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.html"]


@pytest.mark.parametrize(
    ("markup", "made"),
    [
        ("a\nb\n\nc", "<p>a b</p>\n<p>c</p>"),
        ("- a\n  more\n- b", "<ul><li>a more</li><li>b</li></ul>"),
        ("so:\n1. a\n2. b\nend", "<p>so:</p>\n<ol><li>a</li><li>b</li></ol>\n<p>end</p>"),
        ("`x<y` and ``*z*``", "<p><code>x&lt;y</code> and <code>*z*</code></p>"),
        ("**a** *b* 2*3*4 a * b", "<p><strong>a</strong> <em>b</em> 2*3*4 a * b</p>"),
        (":class:`~a.B` :func:`f <g>`", "<p><code>a.B</code> <code>f</code></p>"),
        ("[x](https://a.b/c) [y](javascript:z)",
         '<p><a href="https://a.b/c" rel="noopener noreferrer">x</a> [y](javascript:z)</p>'),
        ("t:\n\n    code <b>\n      in", "<p>t:</p>\n<pre><code>code &lt;b&gt;\n  in</code></pre>"),
        ("```py\na\n\nb\n```\nc", "<pre><code>a\n\nb</code></pre>\n<p>c</p>"),
        ("$\\frac{\\gamma}{\\sigma+1}x^2_i$",
         '<p><span class="math">γ/(σ+1)x<sup>2</sup><sub>i</sub></span></p>'),
        ("<b>&", "<p>&lt;b&gt;&amp;</p>"),
        ("", ""),
    ],
)  # fmt: skip
def test_markup(markup, made):
    assert str(_text.html(markup)) == made


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_table_fits_and_reads_nothing_as_markup(width):
    strange = Verdict(
        "s[red]",
        "[bold]claim[/] [/nope]",
        Outcome.OPPOSITE,
        "e",
        Estimate(0.1, 0, 0.2, 0.95, 3, "m"),
        0.1,
        "[r]",
        finding="[f]",
        amount="[a]",
    )
    out = io.StringIO()
    Console(file=out, width=width).print(report.console([*report_pages.verdicts(), strange], reasons=True))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    flat = re.sub(r"\s+", " ", text)
    for words in ("◐ depends", "⇄ opposite", "– not", "✕ false", "1.83 times", "[bold]", "s[red]", "[f]"):
        assert words in flat
    assert flat.index("s[red]") < flat.index("✕ false"), "identities come last"
    short = io.StringIO()
    Console(file=short, width=width).print(report.console([strange]))
    assert "[f]" not in short.getvalue()
    coloured = io.StringIO()
    Console(file=coloured, width=80, force_terminal=True, color_system="standard").print(
        report.console(report_pages.verdicts())
    )
    assert "\x1b[1;31m" in coloured.getvalue()
