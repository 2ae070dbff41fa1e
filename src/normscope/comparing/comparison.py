"""A comparison as it lies in a folder: its records, the words that they give, and its answers in sentences."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import StoreError
from normscope.comparing.answering import answered, number_of
from normscope.comparing.arms import ASIDE
from normscope.comparing.clauses import does_not_learn, how_to_read, listed, same_at_all_rates
from normscope.comparing.export import KINDS, export
from normscope.comparing.find import all_questions, chosen_questions
from normscope.comparing.page import Answer, ComparisonPage, Shown, command_of, write_page
from normscope.comparing.plan import Plan
from normscope.comparing.question import Pair
from normscope.comparing.reading import evidence_of, reports_of
from normscope.comparing.reuse import CODE
from normscope.plots import Figure, Table
from normscope.records import Store, Verdict
from normscope.records.answers import capital
from normscope.records.notebook import card, head, items, paragraph, with_code
from normscope.records.provenance import made_elsewhere
from normscope.report import Section
from normscope.stats import adjust
from normscope.stats.decide import FEWEST_SEEDS
from normscope.studies import Evidence
from normscope.surgery import ArmReport

if TYPE_CHECKING:
    import polars as pl


class Comparison:
    """A comparison of arms of the user's own network.

    Args:
        run: The store of the run, or its folder.
        seeds: Only seeds below this number; None for all that are complete.

    Attributes:
        store: The records.
        path: The folder.
        plan: What was run.
        arms: Words for the arms, by name, the arm that is asked about first.

    Raises:
        StoreError: The folder holds no comparison.
    """

    def __init__(self, run: "Store | str | PathLike[str]", *, seeds: int | None = None) -> None:
        self.store = run if isinstance(run, Store) else Store.open(run)
        self.path = self.store.path
        config = self.store.config
        if config.get("kind") != CODE:
            raise StoreError(f"{self.store.place}: not a run of a comparison")
        self.plan = Plan.from_json(config["plan"])
        self.arms: dict[str, str] = {arm["name"]: arm["words"] for arm in config["arms"]}
        self._notes: tuple[str, ...] = tuple(config["notes"])
        self.questions = chosen_questions(self.plan.questions, self.arms)
        self._seeds = seeds

    @cached_property
    def evidence(self) -> Evidence:
        """The records of the seeds of which every cell is complete.

        Raises:
            DataError: Not one seed is complete.
        """
        return evidence_of(self.store, self.plan, self.store.config["arms"], seeds=self._seeds)

    @cached_property
    def _runs(self) -> list[str]:
        """Names of the cells whose records are read; other runs may lie in the folder."""
        import polars as pl

        return self.evidence.frame["cell"].cast(pl.String).unique().to_list()

    @property
    def seconds(self) -> float:
        """What its runs took, one after the other."""
        return sum(took for run, took in self.store.wall_times().items() if run in self._runs)

    @property
    def described(self) -> bool:
        """Whether there are too few seeds for words: the numbers are then described."""
        return len(self.evidence.seeds) < FEWEST_SEEDS

    def learns(self, arm: str) -> bool:
        """Say whether an arm learns in every seed: its loss falls by a share of the largest fall."""
        return self._learning(arm).outcome.in_favour

    def _learning(self, arm: str) -> Verdict:
        return self.questions[0].verdict_of(self.questions[0].learns(arm), self.evidence)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The first arm beside each other arm; the pair that decides first.

        Without norms decides, unless the network does not learn so and does learn with rescaled weights. An arm that
        stands beside the others for one question decides only if there is no other.
        """
        first, *others = self.arms
        head = next((arm for arm in others if arm not in ASIDE), others[0])
        if head == "none" and "rescaled" in others and not self.learns("none") and self.learns("rescaled"):
            head = "rescaled"
        ordered = [head, *(arm for arm in others if arm != head)]
        return tuple(Pair(first, arm, (self.arms[first], self.arms[arm]), arm == head) for arm in ordered)

    @cached_property
    def answers_in_order(self) -> tuple[Answer, ...]:
        """The answers, question by question, corrected by Holm for being read together."""
        alone = [question.judge(self.evidence, self.pairs) for question in self.questions]
        idle = [self.arms[arm] for arm in (self.pairs[0].first, self.pairs[0].second) if not self.learns(arm)]
        return tuple(
            answered(question, together, self.evidence, self.pairs, idle, alone=before)
            for question, before, together in zip(self.questions, alone, adjust(alone), strict=True)
        )

    def answers(self) -> "pl.DataFrame":
        """Return the answers as a frame.

        Columns: question, asks, quantity, a column for each arm with its number, effect, low, high, level, scale, unit,
        seeds, word, sentence, atlas. Effects that are log-ratios are natural logarithms.
        """
        import polars as pl

        rows = [self._row(answer) for answer in self.answers_in_order]
        return pl.DataFrame(rows, infer_schema_length=None)

    def _row(self, answer: Answer) -> dict[str, Any]:
        verdict, effect = answer.verdict, answer.verdict.effect
        return {
            "question": answer.question.CODE,
            "asks": answer.asks,
            "quantity": verdict.endpoint,
            **self.numbers(answer),
            "effect": effect.point,
            "low": effect.low,
            "high": effect.high,
            "level": effect.level,
            "scale": effect.scale,
            "unit": effect.unit,
            "seeds": effect.n,
            "word": answer.word,
            "sentence": answer.sentence,
            "atlas": answer.beside,
        }

    def numbers(self, answer: Answer) -> dict[str, str]:
        """Return the number of each arm in the contrast that decides, in words; empty where there is none."""
        return {arm: number_of(answer, arm, self.evidence, self.pairs) for arm in self.arms}

    def figures(self, answer: Answer) -> Sequence[Figure]:
        """Draw what answers a question."""
        return answer.question.figures(self.evidence, self.pairs)

    def tables(self, answer: Answer) -> Sequence[Table]:
        """Tabulate the numbers behind an answer."""
        return answer.question.tables(self.evidence, self.pairs)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader must know: what was left out, and which arms do not learn."""
        learning = {self.arms[arm]: self._learning(arm) for arm in self.arms if not self.learns(arm)}
        said = [does_not_learn(words, found, self.plan.steps) for words, found in learning.items()]
        if learning.keys() - set(self.pairs[0].words) and self.pairs[0].words[1] not in learning:
            said.append(f"What is said of learning compares with the network {self.pairs[0].words[1]}")
        said += filter(None, (same_at_all_rates(self.evidence, arm, words) for arm, words in self.arms.items()))
        return (*said, *self._notes, *self._seeds_not_run())

    @property
    def _all_notes(self) -> tuple[str, ...]:
        told = "" if self.described else how_to_read([answer.verdict for answer in self.answers_in_order])
        return (*filter(None, [told]), *self.notes)

    def _seeds_not_run(self) -> list[str]:
        planned, run = self.store.config.get("seeds") or 0, len(self.evidence.seeds)
        return [f"{run} of the {planned} seeds that were planned were run: there was no time for more"][: run < planned]

    @property
    def reports(self) -> Mapping[str, ArmReport]:
        """What was done to make each arm, by its name."""
        return reports_of(self.store)

    @property
    def said_in_runs(self) -> tuple[str, ...]:
        """What probes and recorder had to say in the runs, each sentence once."""
        import polars as pl

        frame = self.store.frame(probe="note").filter(pl.col("cell").cast(pl.String).is_in(self._runs))
        return tuple(dict.fromkeys(frame.sort("arm", "seed")["name"].cast(pl.String).to_list()))

    @property
    def title(self) -> str:
        """The comparison in a few words."""
        return f"Your network {listed(list(self.arms.values()))}"

    @property
    def lede(self) -> str:
        """What was run, in a sentence."""
        seeds, rates = len(self.evidence.seeds), len(self.plan.rates)
        more = f", {rates} learning rates" if rates > 1 else ""
        said = f"{len(self.arms)} arms from the same first weights and on the same batches, {self.plan.steps} training"
        said += f" steps each, {seeds} seed{'s' * (seeds != 1)}{more}."
        return " ".join(filter(None, [said, made_elsewhere(self.store.config["versions"])]))

    def __str__(self) -> str:
        """Return the questions and answers, for a terminal."""
        lines = [f"{self.title}.", self.lede, ""]
        for answer in self.answers_in_order:
            lines += [f"{answer.question.NUMBER:2d}. {answer.asks}", f"    {answer.sentence}"]
            lines += [f"    {answer.beside}"] * bool(answer.beside)
        notes = [note if note.endswith(".") else f"{note}." for note in map(capital, self._all_notes)]
        return "\n".join([*lines, *([""] if notes else []), *notes])

    def __repr__(self) -> str:
        """Return the folder and the arms."""
        return f"Comparison({str(self.path)!r}, arms={list(self.arms)})"

    def _repr_html_(self) -> str:
        """Return the questions and answers for a notebook."""
        parts = [paragraph(f"<b>{with_code(self.title)}</b>"), paragraph(with_code(self.lede))]
        for answer in self.answers_in_order:
            parts += [head(f"{answer.question.NUMBER}. {answer.asks}"), paragraph(with_code(answer.sentence))]
        return card([*parts, items(("", note) for note in self.notes)] if self.notes else parts)

    def document(self) -> dict[str, Any]:
        """Return the comparison as values for JSON: what was run, and every answer with all its contrasts."""
        return {
            "folder": str(self.path),
            "arms": dict(self.arms),
            "plan": self.plan.as_json(),
            "seeds": list(self.evidence.seeds),
            "notes": list(self.notes),
            "said_in_runs": list(self.said_in_runs),
            "reports": {name: report.as_json() for name, report in self.reports.items()},
            "answers": [
                {
                    "question": answer.question.CODE,
                    "asks": answer.asks,
                    "sentence": answer.sentence,
                    "atlas": answer.beside or None,
                    "word": answer.word or None,
                    "numbers": self.numbers(answer),
                    "verdict": answer.verdict,
                }
                for answer in self.answers_in_order
            ],
        }

    def report(self, path: "str | PathLike[str] | None" = None, *, beside: Sequence[Section] = ()) -> Path:
        """Write the page: the strip of tiles, the sentences, and a section a question.

        Args:
            path: The HTML file; ``report.html`` in the run's folder if None.
            beside: Studies that stand beside the comparison.

        Raises:
            StoreError: It cannot be written.
        """
        return write_page(Path(path) if path is not None else self.path / "report.html", self._page(), beside)

    def _page(self) -> ComparisonPage:
        return ComparisonPage(
            title=self.title,
            lede=self.lede,
            shown=tuple(
                Shown(answer, tuple(self.figures(answer)), tuple(self.tables(answer)), self.numbers(answer))
                for answer in self.answers_in_order
            ),
            arms=dict(self.arms),
            pair=(self.pairs[0].first, self.pairs[0].second),
            reports=dict(self.reports),
            notes=self._all_notes,
            said_in_runs=self.said_in_runs,
            provenance=self.store.provenance,
            seconds=self.seconds,
            command=command_of(
                self.store.config,
                len(self.evidence.seeds),
                [question.CODE for question in all_questions()],
                str(self.path),
            ),
        )

    def export(self, folder: "str | PathLike[str]", kinds: Sequence[str] = KINDS) -> list[Path]:
        """Write figures (PDF, SVG), answers and records (CSV) and the table of answers (LaTeX) into a folder.

        Raises:
            UsageError: No such kind.
            StoreError: The folder cannot be written.
        """
        return export(Path(folder), kinds, self._page(), self.answers(), self.evidence.frame)
