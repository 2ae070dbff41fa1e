"""What every question of a comparison is: contrasts of arms that begin from the same weights, and what they rest on."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from normscope.atlas import LEARNING
from normscope.comparing.quantities import LEARNS, LEARNS_REASON, fall, read_in
from normscope.records import Outcome, Verdict
from normscope.records.answers import capital
from normscope.studies import Best, Contrast, Evidence
from normscope.studies.judging import AbstractJudge
from normscope.studies.wording import Wording

if TYPE_CHECKING:
    from normscope.plots import Figure, Table

When = Literal["often", "some", "ends"]


@dataclass(frozen=True)
class Reading:
    """A probe that a question needs.

    Attributes:
        probe: Its code.
        when: ``"often"``: some twenty times in a run; ``"some"``: some six times; ``"ends"``: at the first step and the
            last.
        options: Arguments of the probe.
    """

    probe: str
    when: When
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Two arms that a question compares.

    Attributes:
        first: The arm that is asked about: the network as it is, if that is among the arms.
        second: The arm that it is compared with.
        words: How both are called in a sentence: ``("with its norms", "without its norms")``.
        headline: Whether this pair decides the question.
    """

    first: str
    second: str
    words: tuple[str, str]
    headline: bool = False

    def is_read(self, evidence: Evidence, probe: str) -> bool:
        """Say whether the pair is to be compared by a probe: the probe is read in both arms, or the pair decides.

        In arms that stand beside the others for one question no probe is read.
        """
        return self.headline or read_in(evidence, probe, self.first, self.second)


class ArmWording(Wording):
    """Words for arms and conditions; the learning rate of the set-up itself is no condition."""

    def condition(self, key: str, value: Any) -> str:
        """Name the value of a point; empty for the factor 1 of the learning rate."""
        if isinstance(value, Best):
            return "own best learning rates"
        return "" if key == "rate" and value == 1.0 else super().condition(key, value)


class AbstractQuestion(AbstractJudge):
    """A question that a comparison answers. A question is found by its file being in the folder ``questions``.

    Its docstring is its page. It yields contrasts for a pair of arms; the first contrast of the headline pair decides.
    A positive effect speaks for the claim, and a verdict *holds* answers the question with yes.

    Attributes:
        NUMBER: Its place among the questions.
        ASKS: The question in a sentence, with ``{first}`` and ``{second}`` for the arms.
        CLAIM: The same as a claim.
        TILE: What the question's tile in the strip at the top of the page is called; empty if it has none.
        READINGS: The probes that it needs; none if it rests on losses and evaluations alone.
        BOTH_LEARN: Whether it says something only of networks that both learn.
    """

    HEADINGS = ("Question", "Method", "Threats")
    NUMBER: ClassVar[int]
    ASKS: ClassVar[str]
    TILE: ClassVar[str] = ""
    READINGS: ClassVar[Sequence[Reading]] = ()
    BOTH_LEARN: ClassVar[bool] = True
    SOURCES: ClassVar[tuple[str, ...]] = ()

    def __init__(self, arms: Mapping[str, str] | None = None) -> None:
        """Take the words for the arms, by their name in the records."""
        self.arms = dict(arms or {})

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield what is judged of two arms, the contrast that decides first.

        Args:
            evidence: The records; ``evidence.settings`` has ``steps``, ``rates`` and ``arms``.
            pair: The arms.
        """
        raise NotImplementedError(f"{type(self).__name__} must yield its contrasts")

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence["Figure"]:
        """Draw what answers the question: by default the quantity of the contrast that decides, over steps."""
        first = next(iter(self.contrasts(evidence, pairs[0])))
        return [self.figure(first, evidence)] if any(first.quantity.record) else []

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence["Table"]:
        """Tabulate further numbers behind the answer."""
        return ()

    def lacks(self, evidence: Evidence) -> str:
        """Say why the question cannot be asked of this comparison, in a sentence without period; empty if it can."""
        return ""

    def judge(self, evidence: Evidence, pairs: Sequence[Pair]) -> Verdict:
        """Return the verdict of the headline pair's first contrast, with all other contrasts as its parts."""
        first, *others = [
            self.verdict_of(contrast, evidence, primary=not index)
            for index, contrast in enumerate(self.judged(evidence, pairs))
        ]
        if why := self.lacks(evidence):
            first = replace(first, outcome=Outcome.NOT_MEASURABLE, p_value=None, why=why)
        return replace(first, parts=tuple(others))

    def judged(self, evidence: Evidence, pairs: Sequence[Pair]) -> list[Contrast]:
        """Return all contrasts with their premises, the contrast that decides first."""
        ordered = sorted(pairs, key=lambda pair: not pair.headline)
        return [self._with_premises(contrast, pair) for pair in ordered for contrast in self.contrasts(evidence, pair)]

    def _with_premises(self, contrast: Contrast, pair: Pair) -> Contrast:
        """Put before a contrast that both arms learn, and the words for the arms where it has none."""
        labels = contrast.labels if any(contrast.labels) else pair.words
        learn = tuple(self.learns(arm) for arm in (pair.first, pair.second)) if self.BOTH_LEARN else ()
        claim = (contrast.claim or self.CLAIM).format(first=pair.words[0], second=pair.words[1])
        return replace(contrast, claim=claim, premises=(*learn, *contrast.premises), labels=labels)

    def learns(self, arm: str) -> Contrast:
        """Return the contrast that an arm learns: its loss falls by a share of the fall of the arm that falls most."""
        words = self.arms.get(arm, arm)
        return Contrast(
            fall(),
            arm,
            at={"rate": 1.0},
            scale="value",
            claim=f"The network {words} learns.",
            says="its loss falls by {effect} of the largest fall, over the seeds",
            each_above=LEARNS,
            margin_reason=LEARNS_REASON,
            unit="%",
            name=LEARNING,
        )

    def verdict_of(self, contrast: Contrast, evidence: Evidence, *, primary: bool = False) -> Verdict:
        """Judge one contrast; where no loss falls, a share of the largest fall is not spoken of."""
        found = super().verdict_of(contrast, evidence, primary=primary)
        if contrast.name != LEARNING:
            return found
        if not math.isfinite(found.effect.point):
            return replace(found, why="its loss is no finite number at the first step")
        return replace(found, finding="its loss does not fall") if found.effect.point <= 0 else found

    @property
    def wording(self) -> Wording:
        """Words for the arms and conditions."""
        return ArmWording(self.arms, {"rate": "learning rate times {:g}"} | dict(self.CONDITIONS))

    def asks(self, pair: Pair) -> str:
        """Return the question with the words for the arms in it."""
        return capital(self.ASKS.format(first=pair.words[0], second=pair.words[1]))
