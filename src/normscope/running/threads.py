"""Work on one thread, so that numbers do not depend on how many there are."""

from collections.abc import Iterator
from contextlib import contextmanager

from normscope.modules.rng import torch_streams_kept


@contextmanager
def one_thread() -> Iterator[None]:
    """Work on one thread, from a known state of torch's random stream; both are as before at the end."""
    import torch

    threads = torch.get_num_threads()
    with torch_streams_kept():
        # Nothing draws from the global generator on purpose; should something do so, it draws the same every time.
        torch.manual_seed(0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
