"""How large attention logits are, and how near the weights are to picking one position, step by step."""

from collections.abc import Iterable

from torch import Tensor

from normscope.records import Record
from normscope.studies.lab.meters import AbstractMeter

PROBE = "attention"


class AttentionMeter(AbstractMeter):
    """Reads the logits and the weights of every block of a transformer.

    Records, probe ``attention``, one site a block: ``largest_logit``, the largest size of a scaled logit over samples,
    heads and pairs of positions, those that the mask hides included; ``largest_weight``, the largest weight of a query,
    mean over samples, heads and queries, which is 1 where every query picks one position.

    Args:
        blocks: Number of blocks.
        every: Steps between two readings.
    """

    def __init__(self, blocks: int, *, every: int = 5) -> None:
        parts = ("logits", "weights")
        super().__init__([f"blocks.{block}.attention.{part}" for block in range(blocks) for part in parts])
        self._every = every
        self._seen: list[tuple[str, str, Tensor]] = []

    def wants(self, step: int) -> bool:
        """Listen to every few steps."""
        return step % self._every == 0

    def look(self, site: str, out: Tensor) -> None:
        """Take the largest logit, or the mean of the largest weights."""
        block, _, part = site.rpartition(".")
        if part == "logits":
            self._seen.append((block, "largest_logit", out.abs().max()))
        else:
            self._seen.append((block, "largest_weight", out.amax(-1).mean()))

    def read(self, cell: str, step: int) -> Iterable[Record]:
        """Yield what the step's forward pass showed."""
        for site, name, value in self._seen:
            yield Record(cell, step, PROBE, site, name, float(value))
        self._seen = []
