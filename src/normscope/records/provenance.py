"""The conditions of a measurement: versions, machine, threads, commit, time."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

#: Packages whose version may change a number.
PACKAGES = ("normscope", "torch", "numpy", "scipy", "scikit-learn", "polars", "duckdb", "joblib")
#: Environment variables that set how many threads the numerical libraries use.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def collect() -> dict[str, Any]:
    """Describe the software and the machine, without naming the machine or its user.

    Imports nothing heavy: versions come from the packages' metadata, and torch is asked for its threads and device
    only if the caller imported it already.

    Returns:
        A JSON object: ``versions`` (null for what is not installed), ``python``, ``platform``, ``cpu``, ``cores``
        (logical, and those this process may use), ``threads`` (environment), ``torch`` (null, or its threads and
        accelerator), ``commit`` (null outside a checkout) and whether it was ``dirty``, ``utc`` (start, ISO 8601).
    """
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": {"logical": os.cpu_count(), "usable": _usable()},
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ},
        "torch": _torch(),
        **_commit(),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version(name: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def made_elsewhere(versions: Mapping[str, Any]) -> str:
    """Return a sentence where records were made with other versions than those that read them; else nothing.

    Args:
        versions: Of the packages that made the records, by their names.
    """
    others = [
        f"{name} {versions[name]} (here: {version(name) or 'none'})"
        for name in ("normscope", "torch")
        if versions.get(name) and versions[name] != version(name)
    ]
    return f"The records were made with {' and '.join(others)}." if others else ""


def _usable() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _torch() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):
        return None
    # Asking an accelerator that nobody has used yet would start it.
    used = torch.cuda.is_initialized()
    return {"threads": torch.get_num_threads(), "accelerator": torch.cuda.get_device_name() if used else None}


def _commit() -> dict[str, Any]:
    """Return the commit of the checkout this package is imported from, if it is one."""
    folder = Path(__file__).resolve().parent
    nothing: dict[str, Any] = {"commit": None, "dirty": None}
    if {"site-packages", "dist-packages"} & set(folder.parts):  # a repository around these would be somebody else's
        return nothing

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if not commit:
        return nothing
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}
