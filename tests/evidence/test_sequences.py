"""A norm's input is read as sequences in every layout in which it may be some, as views."""

import pytest
import torch

from normscope.evidence.sequences import as_sequences, tail_lengths, tail_share


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_sequences_of_three_positions_or_more_are_found_in_their_layouts(length):
    x = torch.randn(4, 5, length)
    found = [x] if length >= 3 else []
    for given in (x, x[:, :, None], x[..., None]):
        views = as_sequences(given, (4, length, 5))
        assert len(views) == len(found)
        assert all(torch.equal(view, x) for view in views)
        assert all(view.data_ptr() == given.data_ptr() for view in views)


def test_rows_are_the_positions_of_all_sequences_samples_first_or_lengths_first():
    x = torch.randn(4, 5, 8)
    by_sample, by_length = x.movedim(1, 2).reshape(32, 5), x.permute(2, 0, 1).reshape(32, 5)
    assert any(torch.equal(view, x) for view in as_sequences(by_sample, (4, 8, 5)))
    assert any(torch.equal(view, x) for view in as_sequences(by_length, (8, 4, 5)))


@pytest.mark.parametrize("shape", [(4, 5, 6, 7), (4,), (2, 3, 4, 5, 6)])
def test_maps_and_volumes_are_no_sequences(shape):
    assert as_sequences(torch.randn(shape), (4, 8, 5)) == []


@pytest.mark.parametrize("lengths", [[0, 2, 3, 8], [1, 4, 5, 7]])
def test_a_tail_is_the_equal_columns_at_the_end_if_they_are_three(lengths):
    x = torch.randn(4, 5, 8)
    for sample, length in enumerate(lengths):
        x[sample, :, 8 - length :] = x[sample, :, -1:]
    expected = [length if length >= 3 else 0 for length in lengths]
    assert tail_lengths(x).tolist() == expected
    assert tail_share(x) == pytest.approx(sum(expected) / 32)
