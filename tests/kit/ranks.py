"""Functions of a test file run by several processes that exchange values over gloo."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

TESTS = Path(__file__).parent.parent


def run(module, function, folder, count, *args, timeout=240, fails=False):
    """Call ``module.function(rank, folder, *args)`` in as many processes, and return what each has returned.

    Args:
        module: Name of a test module, as ``probes.test_recorder_replicas``.
        function: Its function; what it returns must be JSON.
        folder: Where the processes meet.
        count: How many there are.
        *args: JSON.
        timeout: Seconds until all processes are ended.
        fails: Whether processes may end by an exception: they then have its last line in place of a result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    call = (
        f"import kit.ranks as r; r.enter({module!r}, {function!r}, {str(folder)!r}, %d, {count}, {json.dumps(args)!r})"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", call % rank], cwd=TESTS, stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    found = []
    try:
        for rank, one in enumerate(started):
            _, errors = one.communicate(timeout=timeout)
            if one.returncode and fails:
                found.append(errors.strip().splitlines()[-1])
                continue
            assert one.returncode == 0, errors
            found.append(json.loads((folder / f"{rank}.json").read_text()))
    finally:
        for one in started:
            one.kill()
    return found


def enter(module, function, folder, rank, count, args):
    """What each process does."""
    import importlib

    import torch

    folder = Path(folder)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count, timeout=timedelta(seconds=120)
    )
    result = getattr(importlib.import_module(module), function)(rank, folder, *json.loads(args))
    (folder / f"{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()
