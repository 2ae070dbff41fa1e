"""Probes in processes that must keep in step: each reads in all of them or in none."""

from collections.abc import Callable, Sequence

from torch.nn import Module

from normscope.modules.processes import OutOfStepError, Processes, exchanging
from normscope.modules.shards import sharded
from normscope.modules.wrapped import rank_of_many
from normscope.probes._start_state import StartState


class InStep:
    """What one step asks of the other processes; nothing where the processes exchange no values in their passes.

    Args:
        known: The processes of earlier steps, if they had to keep in step.

    Attributes:
        known: As given, or found at this step.
        processes: Those that must run the same passes at this step; None if each may run its own.
    """

    def __init__(self, known: Processes | None) -> None:
        self.known = known
        self.processes: Processes | None = None

    def failed_anywhere(
        self, model: Module, start: StartState | None, failed: Sequence[bool], *, replays: bool
    ) -> list[bool]:
        """Return which probes have failed in any process.

        Args:
            model: The model.
            start: The state with which the step began, if a probe evaluates the loss again.
            failed: Whether each of the probes has failed in this process.
            replays: Whether any of them evaluates the loss again.

        Raises:
            RuntimeError: The others do not answer.
        """
        if rank_of_many() is None:
            return list(failed)
        modes = [(module, module.training) for module in model.modules()]
        groups = exchanging(modes if start is None else start.conditions.modes)
        if not groups and not sharded(model):
            return list(failed)
        if self.known is None:
            self.known = Processes(groups[0] if len(groups) == 1 else None)
        if groups and replays:
            self.processes = self.known
        return self.known.any_of(failed)

    def run(self, act: Callable[[], None]) -> None:
        """Call ``act``; where processes must keep in step, it raises in all of them or in none.

        Raises:
            OutOfStepError: It has raised in another process.
            BrokenPassError: It has raised in this process alone, while others wait for values of this one.
        """
        if self.processes is None:
            act()
            return
        try:
            act()
            self.processes.end()
        except OutOfStepError:
            raise
        except Exception:
            self.processes.fail()
            raise
