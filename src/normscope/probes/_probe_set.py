"""The probes of a recorder: which are due, which were switched off, and why some have read nothing."""

from collections.abc import Sequence

from normscope._errors import NormscopeError
from normscope.probes._probe import AbstractProbe
from normscope.probes._probed_step import ProbedStep
from normscope.probes._warnings import ProbeWarning, WiringWarning
from normscope.usercode import described, warn_user

_NO_LOSS = "it evaluates the loss again, and the scope was given no loss_fn(model, batch)"


class ProbeSet:
    """Probes, and what is known about their readings.

    Args:
        probes: The probes.
        has_loss: Whether there is a loss function: without it some of them are not read, or only in part.

    Attributes:
        probes: Those that can be read.
        not_read: Codes of probes that have read nothing so far, each with the reason in words.
        wiring: Why what was read may be wrong, in words.
    """

    def __init__(self, probes: Sequence[AbstractProbe], *, has_loss: bool) -> None:
        self.probes: list[AbstractProbe] = []
        self.not_read: dict[str, str] = {}
        self._off: set[int] = set()
        self._have_read: set[str] = set()
        self._told: set[str] = set()
        self.wiring: list[str] = []
        for probe in probes:
            readable = probe if has_loss else probe.without_loss()
            if readable is None:
                self.not_read[probe.CODE] = _NO_LOSS
            else:
                self.probes.append(readable)

    def due(self, index: int, every: int) -> list[AbstractProbe]:
        """Return the probes that read at a step.

        Args:
            index: Number of the step.
            every: The schedule of probes that have none of their own.
        """
        return [probe for probe in self.probes if index % (probe.every or every) == 0 and id(probe) not in self._off]

    def note(self, probed: ProbedStep, index: int) -> None:
        """Take over what a step has shown: failures, probes without values, and what does not fit the loop."""
        causes = {repr(error): error for _, error in probed.failures.values()}
        for words, error in causes.items():  # probes that failed by one cause are told of in one warning
            by_it = {id(probe) for probe, other in probed.failures.values() if repr(other) == words}
            self.switch_off([probe for probe in self.probes if id(probe) in by_it], error, index)
        self._have_read |= probed.values_read
        for code, reason in probed.nothing.items():
            if code not in self._have_read:
                self.not_read.setdefault(code, reason)
        for code in probed.values_read:
            self.not_read.pop(code, None)
        if probed.wiring_causes:
            self.note_wiring(probed.wiring_causes, index)
        self._note_left_out(probed, index)

    def note_wiring(self, causes: Sequence[str], index: int) -> None:
        """Warn of what does not fit the loop, each cause once, and keep it."""
        fresh = [cause for cause in causes if cause not in self.wiring]
        if fresh:
            self.wiring += fresh
            warn_user(
                f"what the scope was given does not fit the training loop (step {index}): {'; '.join(fresh)}",
                WiringWarning,
            )

    def _note_left_out(self, probed: ProbedStep, index: int) -> None:
        """Tell once of a reading that was left out; the probes are read again at the next due step."""
        if not probed.left_out:
            return
        probes, why = probed.left_out
        told = why in self.not_read.values() or why in self._told
        self._told.add(why)
        self.not_read |= {probe.CODE: why for probe in probes if probe.CODE not in self._have_read}
        if not told:
            codes = ", ".join(repr(probe.CODE) for probe in probes)
            warn_user(f"{codes} left out step {index}, and will be read at the next due step: {why}", ProbeWarning)

    def give_up(self, why: str) -> None:
        """Read no probe any more."""
        self._off.update(map(id, self.probes))
        self.not_read |= {probe.CODE: why for probe in self.probes if probe.CODE not in self._have_read}

    def switch_off(self, probes: Sequence[AbstractProbe], error: Exception, index: int) -> None:
        """Read these probes no more, and warn of the cause once."""
        self._off.update(map(id, probes))
        reason = " ".join(str(error).split()) if isinstance(error, NormscopeError) else described(error)
        self.not_read |= {probe.CODE: f"switched off at step {index}: {reason}" for probe in probes}
        codes, many = ", ".join(repr(probe.CODE) for probe in probes), len(probes) > 1
        warn_user(
            f"{'probes' if many else 'probe'} {codes} failed at step {index} and {'are' if many else 'is'} "
            f"switched off; training goes on: {reason}",
            ProbeWarning,
        )
