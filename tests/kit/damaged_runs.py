"""Folders of runs of each kind, whole and damaged: of a study, a comparison and a scope, and a condensed file."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import polars as pl
import torch

import normscope as ns
from kit.damaged_files import broken_json, changed_json
from kit.odd_paths import make_sparse
from kit.odd_scripts import SETUP
from normscope.records.json import digest


def make_files(folder, run):
    """Make what is small in a folder: ``my_claim.py``, ``script.py`` and the run ``scope``.

    Args:
        folder: The folder.
        run: Runs a command line in the folder; raises unless it ends well.
    """
    run("study", "new", "my_claim.py")
    claim = folder / "my_claim.py"
    text = claim.read_text(encoding="utf-8")
    for old, new in (('"steps": 1000', '"steps": 4'), ('"steps": 100', '"steps": 3')):
        assert old in text
        text = text.replace(old, new)
    claim.write_text(text, encoding="utf-8")
    (folder / "script.py").write_text(SETUP + "\nmake = case\n", encoding="utf-8")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.watch(model, optimizer, probes=["update_ratio", "loss"], every=1, record_to=folder / "scope")
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
        optimizer.step()
    scope.detach()
    scope.close()


def make_runs(folder, run):
    """Make the other runs in the folder of `make_files`: of a study, condensed too, and of a comparison."""
    run("study", "run", "my_claim.py", "--seeds", "2", "--workers", "1", "--out", "study")
    run("report", "study", "--study", "my_claim.py", "--condense", "condensed.json")
    run("compare", "script.py:make", *SMALL, "--out", "comparison")


#: Options with which a comparison of ``script.py`` ends soon.
SMALL = ("--steps", "3", "--questions", "speed,step", "--seeds", "2", "--workers", "1")


def damage(folder: Path, chance):
    """Damage one file of a run, and return in words what was done."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".parquet"))
    path = folder / chance.choice([name for name in names if name.endswith(".json")] * 2 + names)
    how = chance.choice(
        ["content"] * 12 + ["gone", "folder", "fifo", "loop", "dangling", "unreadable", "sparse", "other"]
    )
    if how == "content":
        return f"{path.name}: {_spoiled(path, chance)}"
    other = folder / chance.choice(names)
    raw = other.read_bytes()
    path.unlink()
    with contextlib.suppress(FileNotFoundError):
        _replace(path, how, raw)
    return f"{path.name}: {how}"


def _replace(path, how, raw):
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how in ("loop", "dangling"):
        path.symlink_to(path.name if how == "loop" else "nowhere")
    elif how == "sparse":
        make_sparse(path)
    elif how != "gone":
        path.write_bytes(raw)
        path.chmod(0 if how == "unreadable" else 0o644)


def _spoiled(path, chance):
    if path.suffix == ".parquet":
        return _spoiled_table(path, chance)
    text = path.read_text(encoding="utf-8")
    if chance.random() < 0.3:
        what, raw = broken_json(text, chance)
        path.write_bytes(raw)
        return what
    what, text = changed_json(text, chance)
    if path.name == "run.json" and chance.random() < 0.8:  # its hash is true: the damage is found where it is read
        with contextlib.suppress(Exception):
            document = json.loads(text)
            text = json.dumps(document | {"config_hash": digest(document["config"])})
    path.write_text(text, encoding="utf-8")
    return what


def _spoiled_table(path, chance):
    raw = path.read_bytes()
    how = chance.choice(
        ["empty", "cut", "flipped", "text", "other columns", "other types", "no rows", "nulls", "escapes"]
    )
    if how in ("empty", "cut", "text"):
        path.write_bytes({"empty": b"", "cut": raw[: len(raw) // 2], "text": b"PAR1 no PAR1"}[how])
    elif how == "flipped":
        spoiled = bytearray(raw)
        spoiled[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        path.write_bytes(spoiled)
    else:
        frame = pl.read_parquet(path)
        pl.DataFrame.write_parquet(
            {
                "other columns": lambda: pl.DataFrame({"a": [1]}),
                "other types": lambda: frame.with_columns(value=pl.lit("x"), step=pl.lit(1.5)),
                "no rows": lambda: frame.clear(),
                "nulls": lambda: frame.with_columns(value=pl.lit(None, pl.Float64)),
                "escapes": lambda: frame.with_columns(site=pl.lit("\x1b[31m\n<script>"), name=pl.lit("\x07")),
            }[how](),
            path,
        )
    return how


def copy_run(source: Path, target: Path):
    """Copy a run, or a condensed file."""
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
