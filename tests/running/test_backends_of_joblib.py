"""A backend that joblib was given is used, also one whose threads share torch's settings and random stream."""

import joblib
import pytest
from polars.testing import assert_frame_equal

from kit import runner_studies
from kit.executed import records
from normscope._errors import UsageError
from normscope.running import LocalExecutor, Work, executor_of


def test_threads_of_one_process_do_one_cell_at_a_time_with_the_same_records(tmp_path):
    """The study draws from torch's global stream, so two cells at once would draw from each other's."""
    study = runner_studies.Unseeded()
    study.run(out=tmp_path / "alone", seeds=6, workers=1)
    with joblib.parallel_config("threading", n_jobs=3):
        assert executor_of(None).remote
        study.run(out=tmp_path / "threads", seeds=6)
    assert not executor_of(None).remote
    found, alone = (records(tmp_path / name, "unseeded") for name in ("threads", "alone"))
    assert_frame_equal(found, alone, check_exact=True)


def test_an_exception_of_a_study_is_raised_as_it_is_without_a_backend(tmp_path):
    with joblib.parallel_config("threading", n_jobs=2), pytest.raises(ZeroDivisionError, match="planted"):
        runner_studies.Broken().run(out=tmp_path, seeds=3)


def test_a_backend_that_fails_is_one_line(monkeypatch):
    def broken(*words, **options):
        raise ConnectionError("the scheduler\nis gone")

    with joblib.parallel_config("threading", n_jobs=2):
        monkeypatch.setattr(joblib.Parallel, "__call__", lambda self, tasks: (broken() for _ in range(1)))
        with pytest.raises(
            UsageError, match=r"joblib's backend Threading failed: ConnectionError: the scheduler is gone"
        ):
            list(LocalExecutor(2).run(Work(str, str), range(3)))
