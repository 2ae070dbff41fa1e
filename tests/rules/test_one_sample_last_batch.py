"""The remainder of an epoch, for many numbers of samples and batches."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kit.findings import finding_of, is_quiet, repaired
from normscope.evidence import examples
from normscope.records import Severity


def loaded(samples, size, *, net=examples.mlp, **options):
    shape = examples.SHAPES[net]
    data = TensorDataset(torch.randn(samples, *shape), torch.arange(samples) % 4)
    return examples.healthy(net, loader=DataLoader(data, batch_size=size, **options), trained=0)


@pytest.mark.parametrize(
    ("samples", "size"), [(33, 16), (50, 16), (51, 16), (52, 16), (64, 16), (65, 32), (40, 9), (7, 8)]
)
def test_the_remainder_is_that_of_division(samples, size):
    case, rest = loaded(samples, size), samples % size
    if samples < size or not 0 < rest < size / 4:
        assert is_quiet(case, "NS104")
        return
    finding = finding_of(case, "NS104")
    assert (finding.measured, finding.bound) == (rest, size / 4)
    assert finding.message.startswith(f"{samples} samples in batches of {size} leave a last batch of {rest}")
    assert finding.severity is (Severity.ERROR if rest == 1 else Severity.WARNING)
    assert ("training raises there" in finding.message) is (rest == 1)
    generator = case.loader.generator
    repaired(case, "NS104")
    assert [len(x) for x, _ in case.loader] == [size] * (samples // size)
    assert case.loader.generator is generator


def test_one_sample_of_a_map_has_values_enough_not_to_raise():
    finding = finding_of(loaded(33, 16, net=examples.cnn), "NS104")
    assert finding.severity is Severity.WARNING
    assert "raises" not in finding.message
    assert finding.cost == "1 sample enters the running statistics with the weight of 16"


def test_norms_that_would_raise_are_named_and_not_those_with_positions():
    case = loaded(33, 16, net=examples.cnn)
    case.model[8] = torch.nn.Sequential(torch.nn.Linear(192, 4), torch.nn.BatchNorm1d(4))
    assert finding_of(case, "NS104").places == ("8.1",)


@pytest.mark.parametrize(
    "change", [lambda case: case.model.eval(), lambda case: setattr(case, "loader", list(case.loader)[:-1])]
)
def test_no_norm_in_train_mode_and_no_batch_size_are_not_judged(change):
    case = loaded(33, 16)
    change(case)
    assert is_quiet(case, "NS104")


def test_a_loader_that_drops_its_remainder_is_left_in_peace():
    assert is_quiet(loaded(33, 16, drop_last=True), "NS104")
