"""The scope on a user's own loop: its page, its probes and rules, and the public names."""

import json
import re

import polars
import pytest
import torch
from torch import nn

import normscope as ns
from normscope._errors import StoreError, UsageError


def loss_fn(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


FOUR = ("gradient_flow", "activation_distribution", "covariate_shift", "landscape")


def watched(steps=5, every=2, blocks=1, probes=FOUR, **options):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8)]
    for _ in range(blocks):
        layers += [ns.layers.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)]
    model = nn.Sequential(*layers[:-1], nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.Scope(model, loss_fn, optimizer, probes=probes, every=every, **options)
    for _ in range(steps):
        batch = (torch.randn(16, 6), torch.randint(0, 3, (16,)))
        with scope.step(batch):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
    return scope


@pytest.mark.parametrize("stored", [False, True])
def test_scope_writes_a_page_of_every_probe(tmp_path, stored):
    scope = watched(record_to=tmp_path / "run" if stored else None)
    frame = scope.records()
    assert set(frame["step"]) == {0, 2, 4}
    page = scope.report(tmp_path / "page.html").read_text(encoding="utf-8")
    for probe in ("gradient-flow", "activation-distribution", "covariate-shift", "landscape"):
        assert re.search(rf'<section id="[a-z-]*{probe}"', page)
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', page, re.S).group(1))
    drawn = json.dumps(data["charts"], ensure_ascii=False)
    # Every quantity is drawn: a value of each is found among the charts' data.
    for name in ("norm", "output_norm", "growth", "std", "l2", "relative", "cosine", "effective_beta@same-step"):
        assert name in frame["name"].to_list()
        assert ns.plots.readable(name.partition("@")[0]) in drawn or name in drawn, name
    assert "Nothing was judged" not in page


def test_a_deep_network_under_every_probe_is_drawn_by_depth_and_step(tmp_path):
    blocks = 12
    probes = [probe for probe in ns.probes.all() if probe.CODE != "residual_stream"]  # it reads transformers alone
    scope = watched(steps=3, every=1, blocks=blocks, probes=[probe.CODE for probe in probes])
    page = scope.report(tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', page, re.S).group(1))
    frame = scope.records()
    for probe in probes:
        assert re.search(rf'<section id="[a-z-]*{probe.CODE.replace("_", "-")}"', page), probe.CODE
        assert frame.filter(frame["probe"] == probe.CODE).height, probe.CODE
    charts = data["charts"]
    drawn = [json.dumps(chart) for chart in (charts.values() if isinstance(charts, dict) else charts)]
    layerwise = frame.group_by("probe", "name").agg(polars.col("site").n_unique().alias("sites"))
    assert layerwise["sites"].max() >= blocks
    # The telling picture of a probe with a value at every layer has a map; none is drawn as one line a layer.
    assert len([chart for chart in drawn if '"rect"' in chart]) >= 8
    assert not any(re.search(r'"color": \{[^{}]*"field": "site"', chart) for chart in drawn)
    # Every layer stands by its name, and few charts hold every quantity.
    named = "".join(drawn)
    assert all(f'"{site}"' in named for site in frame["site"].cast(str).unique() if site)
    assert len(drawn) <= 5 * len(probes)
    assert len(page) < 20e6


def test_a_scope_with_nothing_recorded_has_no_page(tmp_path):
    with pytest.raises(UsageError, match="nothing was recorded"):
        watched(steps=0).report(tmp_path / "page.html")
    with pytest.raises(StoreError):
        watched(steps=1).report(tmp_path)


def test_a_scope_gives_the_records_of_a_probe_with_a_column_for_each_quantity():
    scope = watched()
    rows = scope.records().filter(probe="gradient_flow").to_dicts()
    found = {(row["step"], row["site"]): row for row in scope.wide("gradient_flow").to_dicts()}
    assert rows
    assert all(found[row["step"], row["site"]][row["name"]] == row["value"] for row in rows)


def test_there_is_one_public_scope():
    assert not hasattr(ns.probes, "Scope")
    assert [name for name in ns.__all__ if hasattr(getattr(ns, name), "Scope")] == []
    assert issubclass(ns.Scope, ns.probes.Recorder)


def test_a_scope_has_no_attribute_that_only_it_hands_to_the_recorder():
    """What the recorder reads of itself, it sets itself: rules are given to its constructor as observers."""

    class Listening:
        def __init__(self):
            self.heard = []

        def begin(self, index, batches):
            self.heard.append(("begin", index, batches))

        def micro_batch(self, batch):
            self.heard.append(("micro", batch))

        def end(self, error):
            self.heard.append(("end", type(error)))

        def read(self):
            self.heard.append(("read",))

    listening = Listening()
    recorder = ns.probes.Recorder(nn.Linear(2, 2), loss_fn, every=2, observers=[listening])
    with recorder.step("a"):
        recorder.micro_batch("b")
    with pytest.raises(KeyError), recorder.step("c"):
        raise KeyError
    with recorder.step("d"):  # the step that failed does not count
        pass
    assert listening.heard == [
        ("begin", 0, ["a"]), ("micro", "b"), ("end", type(None)), ("read",),
        ("begin", 1, ["c"]), ("end", KeyError),
        ("begin", 1, ["d"]), ("end", type(None)), ("read",),
    ]  # fmt: skip


def test_public_names_are_there():
    assert set(ns.__all__) <= set(dir(ns))
    for name in ns.__all__:
        assert getattr(ns, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        _ = ns.nothing
    assert ns.study("noisy-batchnorm").CODE == "noisy-batchnorm"
