"""What an executor costs beside a bare loop: cells a second of cells that do nothing, and of cells that take a while.

    python benchmarks/executors.py [--cells 200] [--seconds 0.05] [NAME ...]

Names are those of ``--executor``, and ``dask``; all that are installed are measured without a name. One start of every
executor is left out of its times, for a run of many cells does not feel it; it has a column of its own.
"""

import argparse
import functools
import importlib.util
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext

from normscope.running import Work, executor_of

#: Executors, and the package that each needs.
NAMES = {"local": "joblib", "ray": "ray", "slurm:cluster=local": "submitit", "dask": "distributed"}


def pause(seconds, task):
    """A cell: it holds its process for a while, as work on the CPU does."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return task


@contextmanager
def engine(name, workers):
    """Yield an executor that is connected."""
    if name == "dask":
        import joblib
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
            joblib.parallel_config("dask"),
        ):
            yield executor_of("local", workers)
        return
    found = executor_of(name, workers)
    with found if hasattr(found, "__enter__") else nullcontext():
        yield found


def timed(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(name, workers, cells, seconds):
    """Return the seconds of the start, of cells that do nothing, and of cells that take ``seconds``."""
    nothing, busy = (Work(functools.partial(pause, each), str) for each in (0.0, seconds))
    began = time.perf_counter()
    with engine(name, workers) as found:
        list(found.run(nothing, range(workers)))
        start = time.perf_counter() - began
        return start, *(timed(lambda work=work: list(found.run(work, range(cells)))) for work in (nothing, busy))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    installed = [name for name, package in NAMES.items() if importlib.util.find_spec(package)]
    cells, seconds = asked.cells, asked.seconds
    loop = [timed(lambda each=each: [pause(each, task) for task in range(cells)]) for each in (0.0, seconds)]
    print(f"{cells} cells, {asked.workers} workers; a busy cell takes {seconds:g} s.\n")
    print("| executor | start, s | empty cells a second | overhead a cell, ms | busy cells a second | to the loop |")
    print("|---|---:|---:|---:|---:|---:|")
    print(f"| bare loop, one process | – | {cells / loop[0]:,.0f} | – | {cells / loop[1]:.1f} | 1.00 |")
    for name in asked.names or installed:
        start, empty, busy = measure(name, asked.workers, cells, seconds)
        row = (f"{start:.1f}", f"{cells / empty:,.0f}", f"{1000 * empty / cells:.2f}", f"{cells / busy:.1f}")
        print(f"| {name} | {' | '.join(row)} | {loop[1] / busy:.2f} |", flush=True)


if __name__ == "__main__":
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    main()
