"""What studies are whose cells build a network, look at it, train it, and look again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from normscope.records import Cell, Record
from normscope.studies.lab.arms import fit, network, split_of
from normscope.studies.lab.meters import AbstractMeter
from normscope.studies.lab.norms import Factory
from normscope.studies.lab.train_stacked import fit_stacked, stackable
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

#: Arguments of ``options`` with which all seeds of a cell are still trained at once.
STACKED = frozenset({"steps", "lr", "batch_size", "optimizer"})


@dataclass(frozen=True)
class Arm:
    """What tells one arm of a study from the others.

    Attributes:
        words: The arm in words, for sentences, legends and tables: ``"batch norm"``.
        norm: What stands between each linear layer and its activation (``normscope.studies.lab.norms``).
    """

    words: str
    norm: Factory

    def __str__(self) -> str:
        return self.words


class AbstractTraining(AbstractStudy):
    """A study whose cells each train one network; dense networks with all seeds of an arm at once.

    The network is that of the settings with the arm's norm (``ARMS``, ``norm``) and the cell's sizes (``sizes``). A
    study that has cells of other kinds too overrides ``trains``, and ``run_cell`` for those.
    """

    def norm(self, cell: Cell) -> Factory:
        """Return what stands between each linear layer and its activation: what the cell's ``Arm`` says."""
        norm: Factory = self.ARMS[cell.arm].norm
        return norm

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return sizes and options of the cell's network in place of those of the settings."""
        return {}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of a cell, with the initial weights of its seed, in train mode."""
        return network(cell, data, self.norm(cell), device, **self.sizes(cell))

    def split(self, cell: Cell, data: "Dataset", device: str) -> "Split":
        """Return the data of a cell."""
        return split_of(cell, data, device)

    def options(self, cell: Cell) -> dict[str, Any]:
        """Return arguments of ``lab.train.train`` in place of the cell's: a rate, an optimizer, probes, a watcher.

        Cells with other arguments than ``STACKED`` are trained one by one.
        """
        return {}

    def meters(self, cell: Cell) -> Sequence[AbstractMeter]:
        """Return what reads every step's own forward pass; of each cell its own."""
        return ()

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Look at the network before it is trained."""
        return ()

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Look at it when it is."""
        return ()

    def trains(self, cell: Cell) -> bool:
        """Say whether a cell is no more than the methods above, so that its seeds can be trained at once."""
        return True

    def together(self, cell: Cell) -> bool:
        """Train dense networks with all seeds at once; convolutions take as long as they do one by one."""
        return self.trains(cell) and stackable(cell) and self.options(cell).keys() <= STACKED

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train the network of one cell, and look at it before and after."""
        split, model = self.split(cell, data, device), self.network(cell, data, device)
        yield from self.before(cell, model, split)
        yield from fit(model, split, cell, meters=self.meters(cell), **self.options(cell))
        yield from self.after(cell, model, split)

    def run_cells(self, cells: Sequence[Cell], data: "Dataset", device: str) -> Iterable[tuple[Cell, list[Record]]]:
        """Train the networks of cells that differ in their seed only, all at once."""
        splits = [self.split(cell, data, device) for cell in cells]
        models = [self.network(cell, data, device) for cell in cells]
        given = list(zip(cells, models, splits, strict=True))
        early = [list(self.before(*one)) for one in given]
        meters = [self.meters(cell) for cell in cells]
        trained = fit_stacked(models, splits, cells, meters=meters, **self.options(cells[0]))
        for one, first, records in zip(given, early, trained, strict=True):
            yield one[0], [*first, *records, *self.after(*one)]
