"""A switch of the process's memory allocator. Nothing here happens unless it is asked for."""

import ctypes
import sys

from normscope._errors import UsageError

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h


def keep_large_blocks() -> None:
    """Keep freed blocks, however large, in the process, for the next tensor of their size.

    As glibc comes, a freed tensor of 32 MiB or more goes back to the system, and the next one is handed out page by
    page as it is first written to: for elementwise work on large activations these page faults cost more than the work.
    After this call freed memory stays, so that the process holds what it once needed at its peak, for as long as it
    lives. That is so for all of the process, not for this library alone; so it is never done silently, and cannot be
    undone.

    Call it once, before the first large tensor is made.

    Raises:
        UsageError: The system's allocator is not glibc's, and has no such switch.

    Example:
        >>> import normscope as ns
        >>> ns.allocator.keep_large_blocks()  # doctest: +SKIP
    """
    if not sys.platform.startswith("linux"):
        raise UsageError(f"keep_large_blocks is a switch of glibc, and this is {sys.platform}")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        raise UsageError("keep_large_blocks is a switch of glibc, and this process has another C library")
    # No blocks of their own from the system, whatever their size; and none given back: -1 stands for never.
    if not (mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1)):
        raise UsageError("this C library did not take the switch: nothing was changed")
