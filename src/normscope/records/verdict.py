"""A contrast, judged; and a claim, which is its headline contrast with all that was tried beside it."""

from dataclasses import dataclass
from enum import StrEnum

from normscope.records.estimate import Estimate
from normscope.records.notebook import card, items, paragraph, with_code


class Outcome(StrEnum):
    """The word for a contrast: one of five for a measurement, one of two for an identity of algebra."""

    HOLDS = "holds"
    OPPOSITE = "opposite"
    NO_EFFECT = "no effect that matters"
    UNCLEAR = "unclear"
    NOT_MEASURABLE = "not measurable"
    EXACT = "exact"
    FALSE = "false"

    @property
    def decided(self) -> bool:
        """Whether the word says how things are: it is neither *unclear* nor *not measurable*."""
        return self not in (Outcome.UNCLEAR, Outcome.NOT_MEASURABLE)

    @property
    def in_favour(self) -> bool:
        """Whether the word agrees with the claim."""
        return self in (Outcome.HOLDS, Outcome.EXACT)

    @property
    def of_identity(self) -> bool:
        """Whether the word is that of an identity, which is never counted with experiments."""
        return self in (Outcome.EXACT, Outcome.FALSE)


@dataclass(frozen=True, slots=True)
class Premise:
    """What must be the case for a contrast to say anything.

    Attributes:
        words: The premise, with what was seen.
        met: Whether it was seen to be the case.
    """

    words: str
    met: bool


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that was fixed while two arms were compared.

    Attributes:
        name: What it is, in words: ``"depth"``, ``"learning rate"``, ``"matching"``.
        value: Its value in words that can stand alone: ``"20 hidden layers"``.
    """

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word for one contrast of a study, with the estimate that decided it.

    The verdict of a study is that of its headline contrast; its ``parts`` are the other contrasts. Parts with the same
    claim are *also tried*: ``normscope.records.standing`` and ``answer`` compose the claim's words from all of them.

    Attributes:
        study: Slug of the study.
        claim: What is claimed, in a sentence.
        outcome: The word.
        endpoint: What was measured, in words.
        effect: The estimate that decided, positive in the direction of the claim.
        margin: Smallest effect of interest, on the effect's scale; fixed before the run.
        reason: The numbers behind the word, in a sentence.
        sources: Where the claim comes from.
        p_value: Two-sided probability of data at least this extreme if the effect lay at the bound that the outcome
            excludes, corrected for a second look where the run may be extended; None where no test was made.
        adjusted_p: ``p_value`` after correction over the headlines judged together; None before that.
        primary: Whether this is the headline of its study.
        parts: The study's other contrasts.
        name: Name of the contrast within its study, by which sentences of texts refer to it; may be empty.
        margin_reason: Why the margin is what it is, in a line.
        premises: What had to be the case, with what was seen.
        conditions: What was fixed while the arms were compared.
        finding: What was seen, as a clause with the effect in natural units.
        amount: The effect in natural units: ``"6.1 times narrower (5.2 to 7.1)"``.
        why: What keeps the word from being decided: a failed premise, censored pairs, the number of seeds that would
            decide. Empty for a decided word.
        here: Networks and data that the numbers are about: ``"dense networks, 8x8 digits"``.
    """

    study: str
    claim: str
    outcome: Outcome
    endpoint: str
    effect: Estimate
    margin: float
    reason: str
    sources: tuple[str, ...] = ()
    p_value: float | None = None
    adjusted_p: float | None = None
    primary: bool = True
    parts: tuple["Verdict", ...] = ()
    name: str = ""
    margin_reason: str = ""
    premises: tuple[Premise, ...] = ()
    conditions: tuple[Condition, ...] = ()
    finding: str = ""
    amount: str = ""
    why: str = ""
    here: str = ""

    def _repr_html_(self) -> str:
        """Return claim, word and numbers for a notebook, and below them the other contrasts."""
        claim, word = with_code(self.claim), with_code(self.outcome.value)
        parts = [paragraph(f"{claim}: <b>{word}</b> {with_code(self.amount)}")]
        parts += [paragraph(with_code(words)) for words in (self.finding, self.reason, self.why) if words]
        if self.parts:
            parts.append(items((part.outcome.value, _contrast(part)) for part in self.parts))
        return card(parts)


def _contrast(part: Verdict) -> str:
    """Return a contrast in a line: what it compares, and its effect."""
    under = ", ".join(condition.value for condition in part.conditions if condition.name != "arms")
    return ", ".join(words for words in (part.claim, under, part.amount) if words)
