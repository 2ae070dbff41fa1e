"""Set-ups of ``benchmarks/check_zoo``: checks neither raise nor leave a trace, and the figures are counted right."""

import importlib.util
import sys
from pathlib import Path

import pytest

ZOO = Path(__file__).resolve().parents[2] / "benchmarks/check_zoo"
QUICK = [
    "masked_batch_norm",
    "entity_embeddings",
    "physics",
    "dqn_batch_norm",
    "last_batch_of_one_mlp",
    "dead_channels_after_norm",
]


@pytest.fixture(scope="module")
def zoo():
    spec = importlib.util.spec_from_file_location(
        "check_zoo", ZOO / "__init__.py", submodule_search_locations=[str(ZOO)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["check_zoo"] = package
    spec.loader.exec_module(package)
    for name in ("list", "measure", "page"):
        importlib.import_module(f"check_zoo.{name}")
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "check_zoo"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def every(zoo):
    return {**zoo.list.HEALTHY, **zoo.list.PLANTED}


def test_there_are_enough_and_each_says_what_it_is(zoo, every):
    assert len(zoo.list.HEALTHY) >= 45
    assert len(zoo.list.PLANTED) >= 30
    assert len(every) == len(zoo.list.HEALTHY) + len(zoo.list.PLANTED)
    assert all(set_up.says != set_up.name for set_up in every.values())
    assert all(set_up.right for set_up in zoo.list.PLANTED.values())
    assert not any(set_up.right for set_up in zoo.list.HEALTHY.values())


@pytest.mark.parametrize("name", QUICK)
def test_a_check_neither_raises_nor_leaves_a_trace(zoo, every, name):
    row = zoo.measure.measured(every[name], fixes=False)
    assert "abort" not in row
    assert row["trace"] == []


def test_a_set_up_is_made_alike_twice(zoo, every):
    one, two = (zoo.measure.state(*every["entity_embeddings"].make()) for _ in range(2))
    assert all(zoo.measure.alike(one[name], two[name]) for name in one if "stream" not in name)


def test_a_trace_is_seen(zoo, every):
    case, extra = every["dqn_batch_norm"].make()
    before = zoo.measure.state(case, extra)
    extra[0].get_buffer("1.running_mean")[0] += 1e-7
    changed = [
        name for name, value in zoo.measure.state(case, extra).items() if not zoo.measure.alike(value, before[name])
    ]
    assert changed == ["2 Sequential", "3 Sequential"]  # the target is the averaged model as well


@pytest.mark.parametrize(
    ("at_once", "worse"),
    [([0.5, 0.01, 1.0], True), ([0.5, 0.3, 1.0], False), ([0.009, 0.0, 0.1], False), ([0.015, 0.0, 1.0], False),
     ([float("nan"), 0.0, 1.0], True), ([-3.0, 0.1, 4.0], False)],
)  # fmt: skip
def test_harm_is_a_rise_beyond_noise(zoo, at_once, worse):
    assert zoo.measure.harmful({"at_once": at_once}) is worse
    assert zoo.measure.persistent({"at_once": at_once, "later": [0.0, 0.0, 1.0]}) is False


def test_figures_of_the_page(zoo, monkeypatch, tmp_path):
    def row(name, *codes, **more):
        findings = [
            {"code": c, "severity": s, "message": "m", "cost": "", "fix": "", "places": ["a"]} for c, s in codes
        ]
        return {"name": name, "findings": findings, "trace": [], "unmeasured": [], "fixes": [], "cpu": 1.0, **more}

    setups = zoo.kit.SetUp
    healthy = {"a": setups("a", "A", None), "b": setups("b", "B", None, true={"NS113": "so it is"})}
    planted = {"c": setups("c", "C", None, frozenset({"NS101"})), "d": setups("d", "D", None, frozenset({"NS102"}))}
    monkeypatch.setattr(zoo.page, "HEALTHY", healthy)
    monkeypatch.setattr(zoo.page, "PLANTED", planted)
    rows = {
        "a": row("a", ("NS105", "warning"), ("NS122", "info")),
        "b": row("b", ("NS113", "warning")),
        "c": row("c", ("NS101", "error"), ("NS120", "warning"), abort="E: raised"),
        "d": row("d", trace=["0 Linear"]),
    }
    figures = zoo.page.numbers(rows)
    assert figures["verdicts"] == {"wrong": 2, "true": 1, "planted": 1}
    assert [name for name, _ in figures["wrong"]] == ["a", "c"]
    assert (figures["clean"], figures["recall"]) == (1, 1)
    assert (figures["aborts"], figures["traces"]) == ([("c", "E: raised")], [("d", ["0 Linear"])])

    monkeypatch.setattr(zoo.page, "PAGE", tmp_path / "check.md")
    zoo.page.PAGE.write_text("# Rates\n\nby construction\n", encoding="utf-8")
    texts, speed = [], {"wall": 1.0, "cpu": 1.0, "epoch": 1.0}
    for _ in range(2):
        zoo.page.write(rows, {"1": {"a": rows["a"], "b": rows["b"]}}, speed, "2026-01-01")
        texts.append(zoo.page.PAGE.read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    assert texts[0].startswith("# Rates\n\nby construction\n\n<!-- check_zoo")
    assert "| precision | 0.50 |" in texts[0]
    assert "| recall | 0.50 |" in texts[0]
    assert "| the same with seed 1 | 1 of 2 |" in texts[0]
    assert "**missed**" in texts[0]
