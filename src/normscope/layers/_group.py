"""A process group as an option of a layer: it can be neither copied nor pickled, and layers are."""

from typing import Any

import torch

from normscope._errors import UsageError


class GroupOfProcesses:
    """Holds a process group. A copy has the same group; a pickle has the ranks, for there is no group in a file.

    Args:
        group: The group; None if only the ranks are known.
        ranks: The ranks of its processes, where there is no group.
    """

    def __init__(self, group: Any, ranks: tuple[int, ...] | None = None) -> None:
        self.group, self.ranks = group, ranks

    def __deepcopy__(self, memo: Any) -> "GroupOfProcesses":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        ranks = self.ranks or tuple(torch.distributed.get_process_group_ranks(self.group))
        return GroupOfProcesses, (None, ranks)

    def current(self) -> Any:
        """Return the group; None for all processes, and where processes are not connected.

        Raises:
            UsageError: The group was of some of the processes, and the layer came out of a file.
        """
        connected = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.group is None and connected and self.ranks != tuple(range(torch.distributed.get_world_size())):
            raise UsageError(
                f"this layer synchronised over ranks {list(self.ranks or ())}, and a file holds no process group: "
                "set layer.process_group to one of this run"
            )
        return self.group
