"""The Python of the pages runs: of guides without a test of their own, and of the pages of probes."""

import re
import warnings

import pytest
import torch
from torch import nn

import normscope as ns
from kit.guides import PAGES, ROOT, blocks
from normscope.comparing import ComparisonWarning
from sitemaker import units

#: Pages whose Python another test runs, as it also looks at what comes out.
RUN_ELSEWHERE = {
    "README.md": "tests/docs/test_readme.py",
    "docs/checking.md": "tests/docs/test_checking.py",
    "docs/comparing.md": "tests/docs/test_comparing.py",
    "docs/verify.md": "tests/docs/test_verify.py",
    "docs/watching.md": "tests/docs/test_watching.py",
    "docs/layers.md": "tests/layers/test_layers_guide.py",
}
OWN = [
    page
    for page in PAGES
    if blocks(page.read_text(encoding="utf-8"), "python") and page.relative_to(ROOT).as_posix() not in RUN_ELSEWHERE
]
#: Their Python trains several networks in processes of their own.
LONG = {"docs/figures-of-papers.md", "docs/scale.md"}
SHORT = [
    pytest.param(page, marks=[pytest.mark.long] if name in LONG else [], id=name)
    for page in OWN
    for name in [page.relative_to(ROOT).as_posix()]
]


def test_tests_that_run_a_page_elsewhere_name_it():
    for page, test in RUN_ELSEWHERE.items():
        name = page.removeprefix("docs/")
        if (ROOT / test).is_file():
            assert name in (ROOT / test).read_text(encoding="utf-8"), test


@pytest.mark.parametrize("page", SHORT)
def test_the_python_of_a_guide_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ComparisonWarning)
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            exec(compile(block, str(page), "exec"), names)
    if page.name == "figures-of-papers.md":
        assert {"own", "none"} <= {row["arm"] for row in names["beta"].spec["data"]["values"]}
        assert (tmp_path / "figures" / "effective-beta.pdf").read_bytes().startswith(b"%PDF")
        drawn = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
        assert drawn <= set(re.findall(r"`(smoothness-[\w-]+)\.pdf`", page.read_text(encoding="utf-8")))


def test_the_python_of_the_pages_of_probes_runs():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ran = 0
    (probes,) = (kind for kind in units.kinds() if kind.folder == "probes")
    for unit in probes.units:
        for block in blocks(units.page(probes, unit), "python"):
            names = {"model": model, "optimizer": optimizer, "loss_fn": lambda model, batch: model(batch).sum()}
            exec(compile(block, unit.CODE, "exec"), names)
            (probe,) = re.findall(r'probes=\["(\w+)"\]', block)
            assert probe == unit.CODE
            assert not names["scope"].not_read.get(probe, "").startswith("it evaluates the loss again"), probe
            names["scope"].detach()
            ran += 1
    assert ran == len(ns.probes.all())
