"""Studies of transformers: on the text if nothing is named, on images if they are, and never on vectors."""

import numpy as np
import pytest

from kit.small_studies import settings
from normscope import studies
from normscope._errors import UsageError
from normscope.studies.lab.data import load

SLUG = "rmsnorm-equals-layernorm"


@pytest.fixture
def small(monkeypatch):
    study = studies.get(SLUG)
    monkeypatch.setattr(type(study), "PRESETS", {"quick": settings(SLUG, lrs=[0.01], steps=3)})
    return study


def test_a_run_that_names_no_data_is_on_the_text_and_says_so(small, tmp_path):
    verdict = small.run(out=tmp_path, seeds=1, workers=1)
    (run,) = studies.load(tmp_path)
    assert run.store.config["data"] == {"name": "text", "fingerprint": load("text").fingerprint()}
    assert "--data" not in run.command()
    assert "characters of documentation" in verdict.here


def test_a_run_may_name_images_which_are_cut_into_patches(small, tmp_path):
    small.run(out=tmp_path, seeds=1, workers=1, data="digits")
    (run,) = studies.load(tmp_path)
    assert run.store.config["data"]["fingerprint"] == load("digits").fingerprint()
    assert "--data digits" in run.command()
    assert run.store.frame()["value"].is_finite().all()


def test_vectors_are_refused_in_a_line(small, tmp_path):
    part = np.zeros((30, 5), np.float32), np.arange(30) % 3
    np.savez(tmp_path / "vectors.npz", x_train=part[0], y_train=part[1], x_test=part[0], y_test=part[1])
    with pytest.raises(UsageError, match=f"{SLUG} trains transformers: give --data text or images, not vectors"):
        small.run(out=tmp_path / "runs", data=str(tmp_path / "vectors.npz"))
