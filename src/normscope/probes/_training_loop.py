"""The parts of a training loop, and what its earlier steps have shown about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.processes import Processes
from normscope.modules.reach import Reach, left_words
from normscope.probes._replay import LossFn
from normscope.probes._start_state import Layout

if TYPE_CHECKING:
    from torch.amp import GradScaler


@dataclass(slots=True)
class TrainingLoop:
    """The parts of a training loop, and what earlier steps have shown about them.

    Attributes:
        model: The model as the loop calls it, in its wrappers.
        loss_fn: The loss that the loop trains on; None if the scope was given none.
        optimizers: The optimizers of the loop.
        scaler: The gradient scaler of the loop, if any.
        also: What else the loss changes, to be put back after each replay.
        layout: Where the parameters lie in flat buffers; None before the first step that needs it.
        wired: Whether a step has shown already that its parts fit together, or that they do not.
        loss_autocasts: Whether ``loss_fn`` turns autocast on by itself, by the precision (``PassConditions.settle``).
        processes: Those that must run the same passes; None before the first step at which they must.
        proven: Whether the user's own gradient may serve as the step's, by modes and parameters (``UsersPass``).
        reach: What the loss reaches beside the model.
    """

    model: Module
    loss_fn: LossFn | None
    optimizers: Sequence[Optimizer]
    scaler: "GradScaler | None" = None
    also: tuple[Any, ...] = ()
    layout: Layout | None = None
    proven: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    wired: bool = False
    loss_autocasts: dict[str, bool] = field(default_factory=dict)
    processes: Processes | None = None
    reach: Reach = field(init=False)

    def __post_init__(self) -> None:
        self.reach = Reach({} if self.loss_fn is None else {"loss_fn": self.loss_fn}, self.also)

    def is_still_scaled(self, scale: float) -> bool:
        """Whether gradients carry the loss scale as the step ends, if no optimizer has made an update.

        A scaler that has skipped an update has unscaled the gradients before; its state or a new scale shows it.

        Args:
            scale: The scale as the step began.
        """
        scaler = self.scaler
        if scaler is None or float(scaler.get_scale()) != scale:
            return False
        states = getattr(scaler, "_per_optimizer_states", {})
        stages = [states[id(optimizer)]["stage"] for optimizer in self.optimizers if id(optimizer) in states]
        return all(getattr(stage, "name", "READY") == "READY" for stage in stages)


class TraceError(UsageError):
    """Evaluating the loss again has changed something that could not be put back.

    Args:
        left: What was changed.
    """

    def __init__(self, left: Sequence[str]) -> None:
        super().__init__(f"evaluating loss_fn again has changed what could not be put back: {left_words(left)}")
