"""What studies are whose cells train a small transformer."""

from typing import TYPE_CHECKING, Any

from normscope._errors import UsageError
from normscope.records import Cell
from normscope.studies.lab.arms import schedule, split_of
from normscope.studies.lab.text import CONTEXT, Text
from normscope.studies.lab.transformer import Transformer, transformer
from normscope.studies.lab.warm_up import warm_adam
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split


class AbstractTransformerTraining(AbstractTraining):
    """A study whose cells each train one transformer on the text, or on images if the run names some.

    The settings give ``network`` (fields of ``lab.transformer.Shape``), ``steps``, ``batch``, ``lr``, ``warmup`` (steps
    of linear warm-up, 0 if left out), ``context`` (characters of a window, 64), ``train`` and ``test`` (windows at
    most); a cell's point may give the last five in their place. Norms of the arms come from ``lab.token_norms``.
    """

    NETWORKS = "small transformers"
    DATA = "text"

    def takes(self, data: "Dataset") -> None:
        """Take the text and images, which are cut into patches."""
        if not isinstance(data, Text) and len(data.shape) != 3:
            raise UsageError(f"{self.CODE} trains transformers: give --data text or images, not vectors")

    def shape(self, cell: Cell) -> dict[str, Any]:
        """Return the arguments of ``lab.transformer.transformer``, those of ``sizes`` in place of the settings'."""
        return {**cell.settings["network"], "context": self._context(cell), **self.sizes(cell)}

    def network(self, cell: Cell, data: "Dataset", device: str) -> Transformer:
        """Return the transformer of a cell, with the initial weights of its seed, in train mode."""
        return transformer(data, self.norm(cell), seed=cell.seed, **self.shape(cell)).to(device).train()

    def split(self, cell: Cell, data: "Dataset", device: str) -> "Split":
        """Return the data of a cell; of text, windows of the cell's context."""
        if not isinstance(data, Text):
            return split_of(cell, data, device)
        train, test = (cell.settings.get(name) for name in ("train", "test"))
        return data.split(cell.seed, train=train, test=test, context=self._context(cell)).to(device)

    def options(self, cell: Cell) -> dict[str, Any]:
        """Return the optimizer: Adam with the cell's warm-up."""
        warmup = int({**cell.settings, **cell.point}.get("warmup", 0))
        return {"optimizer": warm_adam(schedule(cell)["lr"], warmup=warmup)}

    def together(self, cell: Cell) -> bool:
        """Train seeds one by one."""
        return False

    def _context(self, cell: Cell) -> int:
        return int({**cell.settings, **cell.point}.get("context", CONTEXT))
