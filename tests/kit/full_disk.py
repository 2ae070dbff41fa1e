"""A disk of 5 MB, mounted in a namespace of its own, and what runs on it while it fills up.

As a script: ``python -m kit.full_disk KIND FOLDER``, where the folder is that disk.
"""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

SIZE = "5m"


def possible() -> bool:
    """Whether a process may mount a disk of its own here."""
    tried = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"mount -t tmpfs -o size={SIZE} tmpfs /mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


def on_a_full_disk(kind: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a kind of work on such a disk, mounted at the folder."""
    command = f'mount -t tmpfs -o size={SIZE} tmpfs "$1" && exec "$2" -m kit.full_disk "$3" "$1"'
    return subprocess.run(
        ["unshare", "-Urm", "sh", "-c", command, "sh", str(folder), sys.executable, kind],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def fill(folder: Path, left: int) -> Path:
    """Fill the disk up to so many bytes."""
    filler = folder / "filler"
    free = shutil.disk_usage(folder).free
    filler.write_bytes(os.urandom(max(0, free - left)))
    return filler


def scope(folder: Path) -> None:
    """Train and record until the disk is full, train on, make room, train on: no step and no record is lost."""
    import torch

    import normscope as ns

    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(20)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = lambda model, batch: model(batch).square().mean()  # noqa: E731
    watched = ns.Scope(model, loss, optimizer, ["gradient_flow"], every=1, record_to=folder / "run")
    steps, filler = 0, fill(folder, 30_000)

    def train(count: int) -> None:
        nonlocal steps
        for _ in range(count):
            with watched.step(torch.ones(4, 8)):
                optimizer.zero_grad()
                loss(model, torch.ones(4, 8)).backward()
                optimizer.step()
            steps += 1

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(40):
            train(25)
    print("warned", len(told), str(told[0].message) if told else "")
    filler.unlink()
    train(5)
    watched.close()
    from normscope.records import Store

    print("steps", steps, Store.open(folder / "run").frame()["step"].n_unique())


def study(folder: Path) -> None:
    """Run a study on a disk that is almost full, make room, and go on."""
    from kit.runner_studies import STUDIES
    from normscope.studies.runs import run

    interrupted(folder, folder / "null", lambda: run(STUDIES["null"](), out=folder, seeds=6, workers=1), 24_000)


def set_up():
    """Return the set-up that the comparison trains."""
    import torch

    from normscope import Case

    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(6)]

    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    return Case(model, loss, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def compare(folder: Path) -> None:
    """Compare on a disk that is almost full, make room, and go on."""
    import normscope as ns

    def run() -> None:
        ns.compare(set_up, seeds=3, steps=4, questions=["gradients"], out=folder / "run", workers=1)

    interrupted(folder, folder / "run", run, 40_000)


def interrupted(disk: Path, at: Path, run: Callable[[], object], left: int) -> None:
    """Run with little room, go on with room, and run anew: what the second and the third left must be equal."""
    from normscope._errors import StoreError
    from normscope.records import Store

    filler = fill(disk, left)
    try:
        run()
    except StoreError as error:
        print("refused", error)
    print("complete", len(Store.open(at).completed()))
    filler.unlink()
    run()
    continued = Store.open(at).frame()
    shutil.rmtree(at)
    run()
    print("equal", continued.equals(Store.open(at).frame()), continued.height)


if __name__ == "__main__":
    {"scope": scope, "study": study, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
