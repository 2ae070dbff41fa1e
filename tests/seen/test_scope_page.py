"""The page of planted records: what it opens with, how many pictures it shows, and that names cannot break it."""

import json
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from kit.charts import rows_of
from kit.planted_records import records, seen_of
from normscope import probes, seen
from normscope.records import Finding, Severity
from normscope.seen import CellFacts, Seen

EVIL = "<b>x</b><script>alert(1)</script>"


def charts(page):
    """Return the charts' descriptions by key."""
    data = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(data)["charts"]


def visible(page):
    """Return the keys of the charts outside of folds."""
    keys, depth = [], 0
    for match in re.finditer(r'<details|</details>|data-chart="([^"]+)"', page):
        depth += {"<details": 1, "</details>": -1}.get(match[0], 0)
        if match[1] and not depth:
            keys.append(match[1])
    return keys


@pytest.fixture(scope="module")
def scope():
    """Return a scope with every streaming probe on a network of two layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    streaming = [probe.CODE for probe in probes.all() if probe.STREAMING]

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    scope = ns.Scope(model, loss_fn, optimizer, streaming, every=2)
    for _ in range(9):
        batch = torch.randn(32, 8), torch.randint(0, 3, (32,))
        with scope.step(batch):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
    return scope


@pytest.fixture(scope="module")
def page(scope, tmp_path_factory):
    return scope.report(tmp_path_factory.mktemp("page") / "page.html").read_text(encoding="utf-8")


def test_a_small_model_shows_one_picture_a_probe_and_the_loss(scope, page):
    shown = visible(page)
    read = set(scope.records()["probe"].cast(str).unique())
    assert len(shown) == len(read) <= len(scope.probes)  # the loss is the picture of the probe of the loss
    assert shown[0] == "loss"
    assert len(charts(page)) <= 4 * len(read)


def test_it_opens_with_what_stands_out(page):
    order = [page.index(f'id="{anchor}"') for anchor in ("stands-out", "loss", "panels", "more", "made")]
    assert order == sorted(order)


def test_every_layer_is_named_in_a_picture(page):
    words = {row.get("site") for chart in charts(page).values() for row in rows_of(chart["spec"])}
    assert {"0", "1", "2", "3"} <= words


def test_no_markup_of_docstrings_is_left_and_no_legend_names_the_only_cell(page):
    text = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    for raw in ("$", "Args:", "Raises:", "\\lVert", "\\frac", "One seed"):
        assert raw not in text
    for chart in charts(page).values():
        assert chart["spec"]["usermeta"]["normscope"]["legend"] == []


def test_every_probe_can_be_described_without_raw_markup():
    for probe in probes.all():
        found = seen_of(records(probe.CODE, {"norm": {"a": 1.0}}))
        text = re.sub(r"<script.*?</script>|<style.*?</style>", "", seen.html_page(found), flags=re.DOTALL)
        assert not re.findall(r"\$|\bArgs:|\\[A-Za-z]{2,}", text), probe.CODE


def hostile():
    finding = Finding("NS101", "slug", Severity.ERROR, f"bad {EVIL}", (EVIL,), details={"first_step": 3})
    facts = CellFacts("scope", EVIL, {EVIL: "Linear"}, 31, ("NS101",), (finding,), (EVIL,), {"curvature": EVIL})
    frame = seen_of(records("saturation", {"dead_share": {EVIL: 0.5, "fc": 0.0}})).frame
    return Seen(frame, (facts,), None, {"machine": EVIL})


def test_names_are_escaped_everywhere():
    found = hostile()
    for text in (seen.html_page(found), seen.html_of(found)):
        bare = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
        assert "<b>x" not in bare
        assert "<script>alert" not in text
        assert "&lt;b&gt;x" in text
    assert EVIL in seen.summary_of(found)
    assert json.loads(json.dumps(seen.document(found)))["stands_out"][0]["sites"] == [EVIL]


def test_the_notebook_form_is_small_and_has_no_script(scope):
    text = scope._repr_html_()
    assert len(text) < 6000
    assert "<script" not in text
    assert "<style" not in text


def test_the_summary_tells_findings_and_what_was_not_read_and_where_it_lies(tmp_path):
    finding = Finding("NS101", "slug", Severity.ERROR, "it is wrong", ("a", "b", "c", "d"))
    dead = records("saturation", {"dead_share": {"act": 0.4}})
    found = seen_of(dead, rules=("NS101",), findings=(finding,), not_read={"curvature": "there is no loss function"})
    text = seen.summary_of(Seen(found.frame, found.cells, tmp_path))
    assert "40 % of the units of `act` are never active." in text
    assert "NS101 error    it is wrong (a, b, c and 1 more)" in text
    assert "curvature: there is no loss function" in text
    assert str(tmp_path) in text
    assert "1 finding." in text


def test_a_pictures_quantity_is_that_of_the_most_urgent_sentence():
    lag = {"mean_gap": {"bn": 0.1}, "variance_gap": {"bn": 2.0}}
    found = charts(seen.html_page(seen_of(records("statistics_gap", lag, steps=(0, 20, 40, 60)))))
    assert "Running variance" in found["study-statistics-gap"]["spec"]["usermeta"]["normscope"]["subtitle"]


def test_theory_is_drawn_where_the_model_is_that_of_theory():
    layers = [str(number) for number in range(6)]
    growth = {"output_norm": {site: 1.467 ** (-i / 2) for i, site in enumerate(layers)}, "growth": {"": 1.467}}
    kinds = {"bn": "BatchNorm1d", "act": "ReLU"} | dict.fromkeys(layers, "Linear")
    group = [*records("gradient_flow", growth)]
    chart = charts(seen.html_page(seen_of(group, modules=kinds)))["study-gradient-flow"]
    lines = [row for row in rows_of(chart["spec"]) if "rank" in row]
    assert [row["now"] for row in lines] == pytest.approx([1.467 ** (-i / 2) for i in range(6)], rel=0.01)
    plain = charts(seen.html_page(seen_of(group, modules=dict.fromkeys(layers, "Linear"))))["study-gradient-flow"]
    assert not [row for row in rows_of(plain["spec"]) if "rank" in row]


def test_several_cells_are_on_one_page_with_a_legend():
    cells = ("scope.rank0", "scope.rank1")
    groups = [records("update_ratio", {"update_ratio": {"a": 1e-3, "b": 2e-3}}, cell) for cell in cells]
    losses = [records("loss", {"loss": {"": [2.0, 1.0, 0.5, 0.4]}}, cell) for cell in cells]
    found = charts(seen.html_page(seen_of(*groups, *losses, cells=cells)))
    for chart in (found["loss"], found["study-update-ratio"]):
        assert chart["spec"]["usermeta"]["normscope"]["legend"] == list(cells)


def test_facts_are_read_back_as_they_were_written(tmp_path):
    (facts,) = hostile().cells
    assert seen.read_facts(facts.save(tmp_path)) == facts


def test_page_summary_and_notebook_open_with_why_what_was_read_may_be_wrong():
    lag = {"mean_gap": {"bn": 3.0}}
    why = "the optimizer holds parameters of another model"
    doubtful = seen_of(records("statistics_gap", lag, steps=(0, 30, 60)), wiring=(why,))
    for text in (seen.summary_of(doubtful), seen.html_of(doubtful), seen.html_page(doubtful).partition("<main")[2]):
        said = text.index(f"What was read may be wrong: {why}.")
        assert said < text.index("lags behind")
    assert seen.document(doubtful)["wiring"] == [{"cell": "scope", "why": why}]
    assert "may be wrong" not in seen.summary_of(seen_of(records("statistics_gap", lag)))


def test_the_page_says_what_its_words_mean():
    text = seen.html_page(seen_of(records("statistics_gap", {"mean_gap": {"bn": 3.0}}, steps=(0, 30, 60))))
    assert "Costly: training is likely slower or worse for it." in text
    assert 'title="training is likely slower or worse for it"' in text
