"""The text: the same everywhere, cut into windows that no other part of a split sees."""

from importlib.resources import files

import numpy as np
import pytest
import torch

from normscope import studies
from normscope._errors import UsageError
from normscope.studies.lab.data import load
from normscope.studies.lab.text import BLOCK, characters, symbols


def said(codes):
    return "".join(symbols()[code] for code in codes)


def test_codes_stand_for_the_characters_of_the_text():
    data, text = load("text"), characters()
    assert text.isascii()
    assert text.isprintable() or set(text) - {"\n"} <= set(map(chr, range(32, 127)))
    assert len(text) == data.x_train.size + 1
    assert said(data.x_train[3]) == text[3 * BLOCK : 4 * BLOCK]
    assert said(data.y_train[-1]) == text[-BLOCK:]
    assert data.classes == len(symbols()) == len(set(text))
    assert 64 <= data.classes <= 96


def test_it_is_english_documentation_under_its_licence():
    text = characters()
    assert all(text.count(f" {word} ") > 300 for word in ("the", "is", "a", "of", "to"))
    licence = files("normscope.studies").joinpath("data", "text-LICENSE.txt").read_text(encoding="utf-8")
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in licence
    assert "Copyright (c) 2001-2023 Python Software Foundation; All Rights Reserved" in licence


def test_it_is_the_same_on_every_machine():
    """Records of two texts are no replicates of one thing: who makes another text gives it another name."""
    assert load("text").fingerprint() == "ae8cfe746f669214"


def test_windows_are_consecutive_and_labels_are_the_next_characters():
    part = load("text").split(0, context=32)
    assert torch.equal(part.x_train[:, 1:], part.y_train[:, :-1])
    assert said(part.x_train[0].tolist()) in characters()
    whole = torch.cat([part.x_train, part.x_val, part.x_test])
    assert whole.shape == (96 * BLOCK // 32, 32)
    assert [len(side) * 32 // BLOCK for side in (part.x_train, part.x_val, part.x_test)] == [72, 8, 16]
    counts = np.bincount(load("text").x_train.flatten())
    assert np.array_equal(np.bincount(whole.flatten()), counts)  # every block in one part, and in no other


def test_splits_depend_on_the_seed_and_may_be_smaller():
    data = load("text")
    one, again, other = data.split(1), data.split(1), data.split(2)
    assert torch.equal(one.x_test, again.x_test)
    assert not torch.equal(one.x_test, other.x_test)
    fewer = data.split(1, train=10, test=20)
    assert torch.equal(fewer.x_train, one.x_train[:10])
    assert torch.equal(fewer.y_test, one.y_test[:20])
    assert torch.equal(fewer.x_val, one.x_val[:20])


@pytest.mark.parametrize("context", [0, -4, 48, 4096])
def test_a_context_divides_a_block(context):
    with pytest.raises(UsageError, match="does not divide 2048"):
        load("text").split(0, context=context)


def test_a_study_of_images_refuses_the_text_before_it_runs(tmp_path):
    with pytest.raises(UsageError, match="fewer-iterations takes images or vectors, not text") as caught:
        studies.run("fewer-iterations", data="text", out=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
