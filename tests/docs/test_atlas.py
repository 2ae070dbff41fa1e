"""The guide to the atlas: what it shows is what its commands write from the files, and its commands work."""

import importlib.util
import itertools
import re
import shlex
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from kit.guides import PAGES, ROOT, blocks
from normscope import atlas, studies
from normscope.explain import committed
from normscope.report import questions_page

GUIDE = ROOT / "docs/atlas.md"
TEXT = GUIDE.read_text(encoding="utf-8")
FOUND = atlas.committed()
MARKED = [page for page in PAGES if re.search(r"^<!-- atlas: \w", page.read_text(encoding="utf-8"), re.MULTILINE)]
SET_UPS = dict(re.findall(r"^\| (.+? on .+?) \| `(\w+\.py:\w+|–)` \|$", TEXT, re.MULTILINE))


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_shows_of_the_atlas_is_what_the_files_say(page):
    fresh = atlas.into(page, FOUND) == page.read_text(encoding="utf-8")
    assert fresh, f"the files of the atlas have changed since {page.name} was made: run `make pages`"


def test_what_the_questions_page_shows_of_the_atlas_is_what_the_files_say():
    said = {row.code: row.answer for row in FOUND.rows}
    made = questions_page(studies.texts().questions, committed(), "images/questions", said)
    fresh = made == (ROOT / "docs/questions.md").read_text(encoding="utf-8")
    assert fresh, "the evidence or the atlas has changed since docs/questions.md was made: run `make pages`"


def test_what_it_says_of_errata_has_the_words_of_the_files():
    """The sentences are by hand: where a word changes they must be read again."""
    (section,) = re.findall(r"^### Errata\n(.*?)^## ", TEXT, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| .*? \| `(\w+)` \| (.*?) \| .*? \|$", section, re.MULTILINE)
    assert len(rows) == 4
    for code, words in rows:
        said = ", ".join(f"{outcome.value} on {len(cells)}" for outcome, cells in FOUND.row(code).words.items())
        assert words == said, f"the word on {code} has changed: read the sentence about the erratum again"


def test_make_pages_writes_every_page_that_has_a_place_for_the_atlas():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^ATLAS_PAGES := (.*)$", makefile, re.MULTILINE)[1].split()
    assert sorted(listed) == sorted(page.relative_to(ROOT).as_posix() for page in MARKED)
    assert {"README.md", "docs/atlas.md"} <= set(listed)


@pytest.fixture
def set_up(monkeypatch, tmp_path):
    """Return the function of a set-up, which reads invented images of the real ones' shapes."""
    for name, shape in {"FASHION_MNIST": (28, 28), "CIFAR10": (32, 32, 3)}.items():
        rng, count = np.random.default_rng(0), 140
        images = {f"x_{part}": rng.integers(0, 256, (count, *shape), dtype=np.uint8) for part in ("train", "test")}
        np.savez(tmp_path / f"{name}.npz", **images, y_train=np.arange(count) % 10, y_test=np.arange(count) % 10)
        monkeypatch.setenv(f"NORMSCOPE_{name}", str(tmp_path / f"{name}.npz"))
    folder = ROOT / "atlas/networks"
    monkeypatch.syspath_prepend(str(folder))

    def made(address):
        file, _, name = address.partition(":")
        spec = importlib.util.spec_from_file_location(f"set_up_{file.removesuffix('.py')}", folder / file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)

    yield made
    sys.modules.pop("images", None)


@pytest.mark.parametrize("kept", [*FOUND.networks, *FOUND.variants], ids=lambda kept: kept.network.title)
def test_the_set_up_of_every_network_is_listed_has_its_layers_and_makes_a_step(kept, set_up):
    case = set_up(SET_UPS[kept.network.title])()
    named = [type(module).__name__ for site, module in case.model.named_modules() if site]
    computing = [name for name in named if name not in ("Sequential", "ModuleList", "Identity")]
    known = Counter(name if hasattr(nn, name) else "own classes" for name in computing)
    assert known == kept.network.layers
    before = [parameter.detach().clone() for parameter in case.model.parameters()]
    case.loss_fn(case.model, next(iter(case.loader))).backward()
    case.optimizer.step()
    after = [parameter.detach() for parameter in case.model.parameters()]
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert not all(map(torch.equal, before, after))


def test_its_commands_of_committed_networks_are_those_that_made_the_files():
    """A command that compares a network has the options that stand in the table of networks."""
    lines = [line for block in blocks(TEXT, "sh") for line in block.splitlines()]
    by_title = {each.network.title: each for each in (*FOUND.networks, *FOUND.variants)}
    checked = 0
    for compared, condensed in itertools.pairwise(lines):
        if not compared.startswith("normscope compare atlas/") or "--condense" not in condensed:
            continue
        given, words = shlex.split(compared), shlex.split(condensed)
        title = words[words.index("--network") + 1]
        assert given[2] == f"atlas/networks/{SET_UPS[title]}"
        if "--differs" in words:
            thing, _, base = words[words.index("--differs") + 1].rpartition(" from ")
            assert base in SET_UPS
            if title in by_title:
                network = by_title[title].network
                assert (network.differs_in, network.differs_from) == (thing, base)
        if title in by_title and "--arms" in given:
            row = next(line for line in atlas.networks(FOUND).splitlines() if line.startswith(f"| {title} |"))
            options = given[3 : given.index("--out")]
            assert f"`{' '.join(options)}`" in row
            checked += 1
    assert checked


@pytest.mark.long
def test_its_own_network_is_compared_condensed_and_shown(run, tmp_path, monkeypatch):
    (section,) = re.findall(r"^## Your own network\n(.*?)^### ", TEXT, re.MULTILINE | re.DOTALL)
    made = blocks((ROOT / "docs/comparing.md").read_text(encoding="utf-8"), "python")[0]
    (tmp_path / "train.py").write_text(made[: made.index("result = ")], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    compare, report, shown = (shlex.split(line)[1:] for line in blocks(section, "sh")[0].splitlines())
    run(*compare, "--seeds", 3, "--steps", 4, "--workers", 1, "--questions", "gradients,speed")
    run(*report)
    shown.remove("--open")
    assert "Yours, my network on my data: " in run(*shown).stdout
    kept = (tmp_path / "mine.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in kept
    assert "train.py" not in kept
