"""A comparison without its records, which can be committed and sent: numbers seed by seed, and no names of layers."""

from collections.abc import Mapping
from dataclasses import dataclass

from normscope.atlas.kept import KeptContrast


@dataclass(frozen=True, slots=True)
class KeptQuestion:
    """A question with the contrasts that answer it.

    Attributes:
        code: Of the question.
        number: Its number among all questions.
        asks: The question, with the words for the arms.
        lacks: Why it could not be asked, in a clause; empty if it could.
        contrasts: What was compared, the contrast that decides first.
    """

    code: str
    number: int
    asks: str
    lacks: str
    contrasts: tuple[KeptContrast, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """What a reader must know of a network, without a name of its layers.

    Attributes:
        name: What its owner calls it: ``"VGG-A at a quarter of its width"``.
        data: What it is trained on: ``"CIFAR-10 subset (16k/3k)"``.
        layers: Layers and norms by their class in torch or in this package, and how many there are; classes of the
            owner's own are counted as ``"own classes"``.
        differs_from: Name and data of the network of the atlas from which it differs in one thing, joined by " on ";
            empty if it is no variant.
        differs_in: That thing, in words that complete "the word changes with": ``"the initial weights (He's)"``.
    """

    name: str
    data: str
    layers: Mapping[str, int]
    differs_from: str
    differs_in: str

    @property
    def title(self) -> str:
        """Name and data."""
        return f"{self.name} on {self.data}"

    @property
    def layers_in_words(self) -> str:
        """The layers on a line: ``"4 BatchNorm2d, 4 Conv2d"``."""
        return ", ".join(f"{count} {name}" for name, count in self.layers.items())

    @property
    def norms_in_words(self) -> str:
        """The norms among them; empty where no class is a norm by its name."""
        return ", ".join(f"{count} {name}" for name, count in self.layers.items() if "Norm" in name)


@dataclass(frozen=True, slots=True)
class KeptComparison:
    """A comparison without its records.

    Attributes:
        network: The network.
        arms: Words for the arms, by name, the arm that is asked about first.
        pair: Names of the two arms that decide.
        learning: By the name of an arm, whether it learns.
        steps: Training steps of a run.
        batches: Batches of an evaluation.
        rates: Factors of the learning rate.
        seeds: The replicates.
        level: Confidence level of the intervals.
        questions: The questions, in order.
        normscope: Version.
        torch: Version.
        cpu: Kind of the processor.
        cores: Cores that the run could use; None if that is not known.
        device: Where the runs were.
        began: When the run began, in UTC.
        seconds: What all runs took, one after the other.
    """

    network: Network
    arms: Mapping[str, str]
    pair: tuple[str, ...]
    learning: Mapping[str, KeptContrast]
    steps: int
    batches: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    level: float
    questions: tuple[KeptQuestion, ...]
    normscope: str
    torch: str
    cpu: str
    cores: int | None
    device: str
    began: str
    seconds: float

    @property
    def machine(self) -> str:
        """Processor and cores, or the accelerator."""
        return self.device if self.device != "cpu" else f"{self.cpu}, {self.cores or '?'} cores"
