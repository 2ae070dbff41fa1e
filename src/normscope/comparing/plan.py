"""What a comparison runs: fixed before anything runs, and part of the run's configuration."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from normscope import probes
from normscope._errors import UsageError
from normscope.comparing.question import AbstractQuestion, Reading
from normscope.probes import AbstractProbe

#: Called with what is done, how much of it is done, and how much there is in all.
Progress = Callable[[str, int, int], None]
#: How often a probe is read in a run, at most.
TIMES = {"often": 20, "some": 5, "ends": 1}
#: Points of a run at which the network is evaluated, beside the first.
EVALUATIONS = 4


@dataclass(frozen=True)
class Wish:
    """What a user asks for.

    Attributes:
        steps: Training steps of a run; None where they may be chosen.
        seeds: Replicates; None where they may be chosen.
        rates: Factors of the learning rate.
        batches: Batches of an evaluation.
        budget: Seconds that the comparison may take; None for as long as it needs.

    Raises:
        UsageError: A number makes no sense.
    """

    steps: int | None = None
    seeds: int | None = None
    rates: tuple[float, ...] = (1.0,)
    batches: int = 8
    budget: float | None = None

    def __post_init__(self) -> None:
        for name, given in (("steps", self.steps), ("seeds", self.seeds), ("batches", self.batches)):
            if given is not None and (not isinstance(given, int) or isinstance(given, bool)):
                raise UsageError(f"--{name} is a whole number, not {given!r}")
        if odd := [rate for rate in self.rates if not isinstance(rate, int | float)]:
            raise UsageError(f"--rates are numbers, such as 0.3,1,3; got {odd[0]!r}")
        if self.steps is not None and self.steps < 2:
            raise UsageError(f"--steps must be at least 2, got {self.steps}")
        if self.seeds is not None and self.seeds < 1:
            raise UsageError(f"--seeds must be at least 1, got {self.seeds}")
        if self.batches < 1:
            raise UsageError(f"--batches must be at least 1, got {self.batches}")
        wrong = next((rate for rate in self.rates if not 0 < rate < math.inf), None)
        if wrong is not None:
            raise UsageError(f"--rates are factors of the learning rate, such as 0.3,1,3; got {wrong:g}")

    def as_json(self) -> dict[str, Any]:
        """Return what was asked for, but for the seeds where no budget chooses them: more can be run later."""
        found = asdict(self) | {"rates": list(self.rates)}
        return found if self.budget is not None else {key: found[key] for key in found if key != "seeds"}


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        questions: Codes of the questions.
        steps: Training steps of a run.
        seeds: Replicates, seeds 0 to ``seeds - 1``.
        rates: Factors of the learning rate; 1 is among them.
        batches: Batches of an evaluation.
        readings: By the code of a probe its schedule and its options.
        left_out: Sentences on what was left out to keep a budget.
    """

    questions: tuple[str, ...]
    steps: int = 200
    seeds: int = 5
    rates: tuple[float, ...] = (1.0,)
    batches: int = 8
    readings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def every(self, code: str) -> int:
        """Return the schedule of a probe: it is read at every so-many-th step, from the first on."""
        return max(1, math.ceil((self.steps - 1) / TIMES[self.readings[code]["when"]]))

    def times(self, code: str) -> int:
        """Return how often a probe is read in a run."""
        return 1 + (self.steps - 1) // self.every(code)

    def probes(self) -> list[AbstractProbe]:
        """Make the probes of a run."""
        return [
            probes.get(code)(**reading["options"], every=self.every(code)) for code, reading in self.readings.items()
        ]

    def evaluated(self) -> tuple[int, ...]:
        """Return after how many steps the network is evaluated: at the start, the end, and between."""
        return tuple(sorted({round(self.steps * part / EVALUATIONS) for part in range(EVALUATIONS + 1)}))

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, without the number of seeds, which may grow."""
        return {key: value for key, value in asdict(self).items() if key != "seeds"}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Plan":
        """Make the plan that `as_json` wrote; the number of seeds is the default."""
        lists = {key: tuple(found[key]) for key in ("questions", "rates", "left_out")}
        return cls(**{**found, **lists})


def plan_of(questions: Sequence[AbstractQuestion], wish: Wish) -> Plan:
    """Return the plan of a comparison that keeps no budget: what was asked for, and defaults for the rest."""
    codes = tuple(question.CODE for question in questions)
    plan = Plan(codes, rates=tuple(sorted({1.0, *map(float, wish.rates)})), batches=wish.batches)
    return replace(
        plan, steps=wish.steps or plan.steps, seeds=wish.seeds or plan.seeds, readings=readings_of(questions)
    )


def readings_of(questions: Sequence[AbstractQuestion]) -> dict[str, dict[str, Any]]:
    """Join what questions read; a probe that several need is read as often as the question that needs it most."""
    order = list(TIMES)
    found: dict[str, Reading] = {}
    for reading in (reading for question in questions for reading in question.READINGS):
        before = found.get(reading.probe)
        if before is not None and before.options != reading.options:
            raise UsageError(f"two questions read {reading.probe} with different options")
        if before is None or order.index(reading.when) < order.index(before.when):
            found[reading.probe] = reading
    return {code: {"when": each.when, "options": dict(each.options)} for code, each in sorted(found.items())}
