"""How many processes work on this machine."""

from normscope._errors import UsageError


def worker_count(workers: int | None, device: str = "cpu", *, remote: bool = False) -> int:
    """Return how many tasks are to be done at a time.

    Args:
        workers: The number that was asked for; None for one process per core (one in all on a GPU).
        device: ``"cpu"`` or ``"cuda"``.
        remote: Whether the tasks are done on other machines: then this machine needs no such device.

    Raises:
        UsageError: The number is below 1, or the device is not available.
    """
    if device != "cpu" and not remote:
        import torch

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"device {device!r} is not available here: use --device cpu") from error
    if workers is None:
        import joblib

        return int(joblib.cpu_count()) if device == "cpu" or remote else 1
    if workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    return workers
