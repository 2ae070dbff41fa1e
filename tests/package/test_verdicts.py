"""Studies that are judged together: corrected together, run by one command where they are alike, condensed whole."""

import dataclasses
import re
import types

import pytest

from normscope import studies, verdicts
from normscope._errors import UsageError
from normscope.plots import Table
from normscope.records import Estimate, Outcome, Verdict
from normscope.records.provenance import version


def verdict(slug, p=0.001, outcome=Outcome.HOLDS):
    return Verdict(slug, f"{slug} holds.", outcome, "e", Estimate(1.0, 0.5, 1.5, 0.95, 4, "m"), 0.1, "r", p_value=p)


class Run:
    """A run as `studies.load` gives it, with planted answers."""

    def __init__(self, slug, *, p=0.001, seeds=10, asked=(10,), preset="quick", data="digits", wall=(1.5, 2.25)):
        self._verdict, self._asked, self._preset = verdict(slug, p), asked, preset
        config = {"preset": preset, "data": {"name": data}, "device": "cpu",
                  "versions": {name: version(name) for name in ("normscope", "torch")}}  # fmt: skip
        self.store = types.SimpleNamespace(
            config=config,
            provenance={"cores": {"usable": 3}, "cpu": "a processor"},
            wall_times=lambda: dict(enumerate(wall)),
        )
        columns = ("Quantity", "Measured", "Theory", "Ratio")
        table = Table("Against theory", columns, (("g", 1.5, "1.4", "1.07"),))
        self.study = types.SimpleNamespace(
            READS_DATA=True,
            CODE=slug, CARD=len(slug), TOPIC="topic", CLAIM=f"{slug} holds.", title=lambda: f"About {slug}.",
            SOURCE_PATH="", address=lambda: "", page=lambda: {"Claim": "c"},
            drawn=lambda evidence: (), tabulated=lambda evidence: (table,),
        )  # fmt: skip
        self._evidence = types.SimpleNamespace(seeds=tuple(range(seeds)))

    def verdict(self):
        return self._verdict

    def asked(self, *, together):
        return self._asked

    def evidence(self):
        return self._evidence

    def command(self, seeds):
        return f"normscope study run {self.study.CODE} --preset {self._preset} --seeds {seeds}"


@pytest.fixture
def loaded(monkeypatch):
    def loaded(*runs):
        monkeypatch.setattr(studies, "load", lambda folder: list(runs))
        return verdicts.load("anywhere")

    return loaded


def test_verdicts_are_corrected_together(loaded):
    together = loaded(Run("a", p=0.03), Run("b", p=0.04), Run("c", p=0.001))
    assert [judged.verdict.outcome for judged in together] == [
        Outcome.UNCLEAR,
        Outcome.UNCLEAR,
        Outcome.HOLDS,
    ]
    assert [judged.verdict.adjusted_p for judged in together] == pytest.approx([0.06, 0.06, 0.003])
    assert loaded(Run("a", p=0.03))[0].verdict.outcome is Outcome.HOLDS
    assert [judged.seconds for judged in together] == [0, 0, 0]


def test_runs_that_one_command_may_have_made_get_the_same_number_of_seeds(loaded):
    together = loaded(Run("a", asked=(20, 10)), Run("b", asked=(10,)), Run("c", asked=(8,)), Run("d", asked=(20, 7)))
    assert [judged.command.rpartition(" ")[2] for judged in together] == ["20", "10", "8", "20"]
    together = loaded(Run("a", asked=(20, 10)), Run("b", asked=(10,)), Run("c", asked=(10,)))
    assert [judged.command.rpartition(" ")[2] for judged in together] == ["10", "10", "10"]


def test_runs_that_are_alike_are_made_by_one_command(loaded, monkeypatch):
    evidence = verdicts.condense(loaded(Run("a"), Run("b"), Run("c", preset="full")))
    made, other, *rest = evidence.commands
    assert made == "normscope study run a b --preset quick --seeds 10 --out runs/all"
    assert other == "normscope study run c --preset full --seeds 10 --out runs/all"
    assert rest == [
        "normscope report runs/all --condense src/normscope/studies/data/evidence.json",
        "normscope report src/normscope/studies/data/evidence.json --markdown docs/evidence.md",
    ]
    monkeypatch.setattr(studies, "all", lambda: [Run("a").study, Run("b").study])
    assert verdicts.condense(loaded(Run("a"), Run("b"))).commands[0].startswith("normscope study run --all --preset")


def test_what_is_condensed_is_what_was_judged(loaded):
    (judged,) = loaded(Run("a-study", seeds=3))
    (study,) = verdicts.condense([judged]).studies
    assert (study.slug, study.card, study.title, study.topic) == ("a-study", 7, "About a-study.", "topic")
    assert (study.preset, study.data, study.device, study.seeds) == ("quick", "digits", "cpu", (0, 1, 2))
    assert (study.seconds, study.normscope, study.torch, study.cores, study.cpu) == (
        3.8,
        version("normscope"),
        version("torch"),
        3,
        "a processor",
    )
    assert study.verdict is judged.verdict
    assert study.command == judged.command
    assert [(row.quantity, row.theory) for row in study.theory] == [("g", "1.4")]


def test_the_sentence_names_data_presets_and_seeds(loaded):
    one = verdicts.condense(loaded(Run("a"))).lede
    assert one == "On digits, preset quick, 4 seeds an arm."
    more = verdicts.condense(loaded(Run("a"), Run("b", preset="full", data="cifar10"))).lede
    assert more == "On cifar10, digits, preset full, quick, 4 seeds an arm."


def test_texts_and_errata_are_shown_beside_many_studies_alone(loaded):
    from normscope.report import FEW

    few = verdicts.condense(loaded(*(Run(f"s{i}") for i in range(FEW))))
    many = verdicts.condense(loaded(*(Run(f"s{i}") for i in range(FEW + 1))))
    assert (few.sentences, few.errata) == ((), ())
    assert many.sentences == studies.texts().sentences
    assert many.errata == studies.texts().errata


@pytest.fixture
def planted(monkeypatch):
    """Studies that end as planted: with an outcome, or with an error."""

    def planted(**ends):
        runs, asked = {slug: Run(slug) for slug in ends}, []

        def run(study, *, out, progress, seeds=10, extend=False, look_twice=True, **settings):
            progress(1, 2, None)
            end = ends[study.CODE]
            asked.append((study.CODE, seeds, extend, look_twice))
            if isinstance(end, tuple):  # the verdicts of a first and of a second look
                end = end[seeds > 10]
                runs[study.CODE]._verdict = end
            if isinstance(end, BaseException):
                raise end
            return end if isinstance(end, Verdict) else verdict(study.CODE, outcome=end)

        monkeypatch.setattr(studies, "get", lambda slug: runs[slug].study)
        monkeypatch.setattr(studies, "refuse", lambda chosen, **options: None)
        monkeypatch.setattr(studies.runs, "run", run)
        monkeypatch.setattr(studies, "load", lambda folder: [runs[folder.name]])
        return asked

    return planted


def test_a_study_that_fails_does_not_stop_the_others(planted, tmp_path):
    planted(a=Outcome.OPPOSITE, b=ValueError("no\nluck"), c=UsageError("not that"), d=Outcome.HOLDS)
    steps, ends = [], []
    judged, failed = verdicts.run(
        ["a", "b", "a", "c", "d"],
        out=tmp_path,
        progress=lambda *said: steps.append(said),
        ended=lambda slug, said, seconds: ends.append((slug, said, seconds >= 0)),
    )
    assert [one.run.study.CODE for one in judged] == ["a", "d"]
    assert all(one.seconds > 0 for one in judged)
    assert failed == {"b": "ValueError: no", "c": "not that"}
    assert steps == [(slug, 1, 2) for slug in "abcd"]
    assert ends == [
        ("a", "opposite, before Holm's correction", True),
        ("b", "failed: ValueError: no", True),
        ("c", "failed: not that", True),
        ("d", "holds, before Holm's correction", True),
    ]


def test_where_none_ends_well_it_is_said_and_one_alone_raises_what_it_raised(planted, tmp_path):
    planted(a=ValueError("x"), b=ValueError("y"))
    silent = {"out": tmp_path, "progress": lambda *said: None}
    with pytest.raises(UsageError, match="none of the 2 studies ended well; the first, a: ValueError: x"):
        verdicts.run(["a", "b"], **silent)
    with pytest.raises(ValueError, match="y"):
        verdicts.run(["b"], **silent)
    planted(a=KeyboardInterrupt(), b=Outcome.HOLDS)
    with pytest.raises(KeyboardInterrupt):
        verdicts.run(["a", "b"], **silent)


def test_the_page_tells_wall_times_of_this_call_or_the_sum_of_the_cells(loaded, tmp_path):
    (judged,) = loaded(Run("a", wall=(30.0, 31.0)))
    assert "1 min 01 s" in verdicts.write_report([judged], tmp_path / "page.html").read_text(encoding="utf-8")
    timed = verdicts.Judged(judged.run, judged.verdict, 125.0, judged.command)
    text = verdicts.write_report([timed], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "2 min 05 s" in text
    assert "1 min 01 s" not in text


def test_a_study_that_is_decided_alone_but_not_among_the_others_is_extended_too(planted, tmp_path):
    weak = (verdict("weak", p=0.03), verdict("weak", p=0.0001))
    unclear = (verdict("unclear", p=0.5, outcome=Outcome.UNCLEAR), verdict("unclear", p=0.4, outcome=Outcome.UNCLEAR))
    lost = dataclasses.replace(verdict("lost", p=None, outcome=Outcome.NOT_MEASURABLE), adjusted_p=None)
    asked = planted(strong=verdict("strong", p=1e-6), weak=weak, unclear=unclear, lost=lost)
    ends = []
    judged, failed = verdicts.run(
        ["strong", "weak", "unclear", "lost"],
        out=tmp_path,
        progress=lambda *said: None,
        ended=lambda slug, said, seconds: ends.append((slug, said)),
        extend=True,
        seeds=10,
    )
    assert asked == [
        ("strong", 10, True, False), ("weak", 10, True, False), ("unclear", 10, True, False), ("lost", 10, True, False),
        ("weak", 20, True, False), ("unclear", 20, True, False),
    ]  # fmt: skip
    assert failed == {}
    assert [one.verdict.outcome.value for one in judged] == ["holds", "holds", "unclear", "holds"]  # "lost" by its run
    assert ends[-2:] == [
        ("weak", "holds, before Holm's correction, second look"),
        ("unclear", "unclear, before Holm's correction, second look"),
    ]


def test_one_study_alone_is_extended_by_its_own_word_and_none_without_the_option(planted, tmp_path):
    weak = (verdict("weak", p=0.03), verdict("weak", p=0.0001))
    silent = {"out": tmp_path, "progress": lambda *said: None}
    asked = planted(weak=weak)
    verdicts.run(["weak"], **silent, extend=True)
    assert asked == [("weak", 10, True, False)]
    asked = planted(weak=weak, other=verdict("other", p=0.5, outcome=Outcome.UNCLEAR))
    verdicts.run(["weak", "other"], **silent)
    assert asked == [("weak", 10, False, True), ("other", 10, False, True)]


def test_a_second_look_that_fails_takes_the_study_out(planted, tmp_path):
    unclear = verdict("b", p=0.5, outcome=Outcome.UNCLEAR)
    planted(a=verdict("a"), b=(unclear, ValueError("no room")))
    judged, failed = verdicts.run(["a", "b"], out=tmp_path, progress=lambda *said: None, extend=True)
    assert [one.run.study.CODE for one in judged] == ["a"]
    assert failed == {"b": "ValueError: no room"}


def test_the_page_shows_the_p_value_corrected_over_the_studies_judged_together(loaded, tmp_path):
    together = loaded(Run("a", p=0.02), Run("b", p=0.3))
    text = verdicts.write_report(together, tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"<dt>(after Holm|uncorrected)</dt><dd>(.*?)</dd>", text) == [
        ("after Holm", "p = 0.04"),
        ("after Holm", "p = 0.3"),
    ]


def test_the_page_of_a_condensed_file_needs_no_run_and_has_the_headings_of_installed_studies(loaded, tmp_path):
    evidence = verdicts.condense(loaded(Run("fewer-iterations"), Run("of-my-own")))
    text = verdicts.write_condensed(evidence, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "eventually gets there too" in text, "the installed study's own page"
    for words in ("fewer-iterations holds.", "of-my-own holds.", "a processor", "7.6 s in all", "1.07"):
        assert words in text


def test_a_condensed_file_that_is_joined_is_the_file_of_all_runs(loaded):
    """Of p = 0.02 and 0.03 each holds alone, and neither among three."""
    kept = verdicts.condense(loaded(Run("ab", p=0.02), Run("abcd", p=0.2)))
    anew = verdicts.condense(loaded(Run("abc", p=0.03), Run("abcd", p=0.9)))
    whole = verdicts.condense(loaded(Run("ab", p=0.02), Run("abc", p=0.03), Run("abcd", p=0.9)))
    joined = verdicts.joined(anew, kept)
    assert [study.verdict.outcome for study in kept.studies] == [Outcome.HOLDS, Outcome.UNCLEAR]
    assert joined.studies == whole.studies
    assert joined.lede == whole.lede
    *_, report, markdown = joined.commands
    assert "--join" in report
    assert "--markdown" in markdown
    assert set(joined.commands[:-2]) >= {line for line in kept.commands if " run " in line}
    assert verdicts.joined(anew, verdicts.joined(anew, kept)).studies == joined.studies
    everything = dataclasses.replace(kept, commands=("normscope study run --all --seeds 10 --out runs/all",))
    assert verdicts.joined(anew, everything).commands[0] == "normscope study run ab --seeds 10 --out runs/all"
