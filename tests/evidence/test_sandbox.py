"""Batches are taken as the loader gives them, and what is wrong with a loader is one line that names it."""

import pytest
import torch

from normscope._errors import UsageError
from normscope.evidence.sandbox import batches


def failing(at):
    """Yield batches until one fails."""
    for index in range(at):
        yield torch.full((2, 3), float(index))
    raise OSError("disk")


class Closed:
    def __iter__(self):
        raise OSError("closed")


@pytest.mark.parametrize(("most", "there"), [(1, 5), (2, 5), (5, 5), (9, 5)])
def test_the_first_batches_are_given_and_no_more_are_asked_for(most, there):
    asked = []

    def loader():
        for index in range(there):
            asked.append(index)
            yield torch.full((2, 3), float(index))

    assert [int(batch[0, 0]) for batch in batches(loader(), most)] == list(range(min(most, there)))
    assert asked == list(range(min(most, there)))


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (Closed(), r"^iterating the evaluation loader raised OSError: closed \(test_sandbox\.py:\d+\)$"),
        (failing(2), r"^getting batch 2 of the evaluation loader raised OSError: disk \(test_sandbox\.py:\d+\)$"),
        ([torch.ones(2), torch.ones(0, 3)], r"^batch 1 of the evaluation loader is empty"),
    ],
)
def test_a_loader_that_fails_is_named_with_what_was_asked_of_it(loader, words):
    with pytest.raises(UsageError, match=words):
        list(batches(loader, 4, what="evaluation loader"))
