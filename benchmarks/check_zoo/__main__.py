"""How often the rules are right on networks that they were not made on.

python -m benchmarks.check_zoo                  all set-ups, and the page
python -m benchmarks.check_zoo --seed 1 --no-fixes    under other first weights; the page counts what is wrong there
python -m benchmarks.check_zoo resnet18 vae     these alone, without the page
"""

import argparse
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from . import page
from .list import HEALTHY, PLANTED
from .measure import measured
from .speed import resnet18_seconds


def _rows(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    files = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def main() -> None:
    """Measure, keep what was measured in ``--out``, write the page."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.check_zoo", description=__doc__)
    options.add_argument("names", nargs="*")
    options.add_argument("--out", default="runs/check-zoo")
    options.add_argument("--part", default="1/1", help="K/N: only the K-th of N parts, to share the work by processes")
    options.add_argument("--seed", type=int, default=0, help="of the first weights and of all that is drawn after")
    options.add_argument("--no-fixes", action="store_true")
    options.add_argument("--page", action="store_true", help="only write the page from what was measured")
    args = options.parse_args()
    torch.set_num_threads(1)
    out = Path(args.out) / (f"seed-{args.seed}" if args.seed else "")
    out.mkdir(parents=True, exist_ok=True)
    every = {**HEALTHY, **PLANTED}
    part, parts = map(int, args.part.split("/"))
    names = [] if args.page else args.names or list(every)[part - 1 :: parts]
    for name in names:
        row = measured(every[name], not args.no_fixes, args.seed)
        fresh = out / f".{name}.{os.getpid()}"
        fresh.write_text(json.dumps(row, indent=1), encoding="utf-8")
        fresh.rename(out / f"{name}.json")
        print(*page.told(every[name], row), sep="\n", flush=True)
    if not args.names and parts == 1 and not args.seed:
        if not args.page:
            (out / ".speed").write_text(json.dumps(resnet18_seconds()), encoding="utf-8")
        rows = _rows(out, every)
        seeds = {path.name[5:]: _rows(path, HEALTHY) for path in sorted(out.glob("seed-*"))}
        speed = json.loads((out / ".speed").read_text(encoding="utf-8"))
        page.write(rows, seeds, speed, time.strftime("%Y-%m-%d"))


if __name__ == "__main__":
    main()
