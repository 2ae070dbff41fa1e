"""A set-up is refused in one line, or taken as it is."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from normscope import checking, evidence, rules
from normscope._errors import DataError, UsageError
from normscope.evidence.exported import quiet
from normscope.modules.state import Snapshot
from normscope.rules import _nets


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self):
        for x, y in _nets.data((12,)):
            yield from zip(x, y, strict=True)


def test_a_loader_over_a_stream_has_no_length_and_is_checked():
    case = _nets.case(_nets.mlp, loader=DataLoader(Stream(), batch_size=32))
    assert not [one for one in checking.check(case) if one.code != "NS123"]


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"replicas": [3]}, UsageError, "replicas must be"),
        ({"loader": []}, DataError, "loader is empty"),
        ({"loader": iter([1])}, UsageError, "can be read once"),
        ({"optimizer": 3}, UsageError, "optimizer must be"),
        ({"ignore": {"NS101": ""}}, UsageError, "say why"),
    ],
)
def test_what_is_no_set_up_is_refused(given, kind, words):
    with pytest.raises(kind, match=words) as caught:
        evidence.Case(**{"model": nn.Linear(1, 1), "loss_fn": _nets.loss_fn, "loader": [1], **given})
    assert "\n" not in str(caught.value)


def test_an_error_of_the_loss_is_one_line():
    def wrong(model, batch):
        raise RuntimeError("two\nlines")

    case = evidence.Case(_nets.mlp(), wrong, _nets.data((12,)))
    with pytest.raises(UsageError, match="RuntimeError: two lines") as caught:
        checking.check(case)
    assert "\n" not in str(caught.value)


def test_what_is_ignored_at_a_module_or_in_the_case_is_kept_apart():
    case = _nets.case(_nets.mlp, bias=True)
    case.ignore = {"NS122": "old checkpoints have it"}
    found = checking.check(case, ["NS122"])
    assert len(found) == 0
    assert [reason for _, reason in found.ignored] == ["old checkpoints have it"]
    other = _nets.case(_nets.mlp, bias=True)
    for place in checking.check(other, ["NS122"])[0].places:
        evidence.ignore(other.model.get_submodule(place), "NS122", "on purpose")
    assert len(checking.check(other, ["NS122"])) == 0


def test_a_padded_tail_longer_than_its_bound_matters_only_where_lengths_differ():
    case = rules.get("NS117").SICK[1]()
    fixed = [(torch.where(torch.arange(x.shape[2]) < 10, x, 0.0), y) for x, y in _nets.data((12, 20))]
    assert checking.check(case, ["NS117"], gap=False)
    case.loader = fixed
    assert not checking.check(case, ["NS117"], gap=False)


def test_a_check_of_a_model_that_cannot_be_exported_prints_nothing(capfd):
    checking.check(rules.get("NS116").SICK[0]())
    assert capfd.readouterr() == ("", "")


class OnePass:
    """Gives its batches to the first pass only."""

    def __init__(self):
        self.batches = iter(_nets.data((12,)))

    def __iter__(self):
        yield from self.batches


def test_a_loader_for_one_pass_is_named_as_such():
    with pytest.raises(UsageError, match="it must begin anew each time it is iterated"):
        checking.check(evidence.Case(_nets.mlp(), _nets.loss_fn, OnePass()))


def test_a_scripted_model_is_refused():
    with quiet():  # torch's notice that tracing is on its way out
        model = torch.jit.trace(_nets.mlp(), torch.ones(4, 12), check_trace=False)
    with pytest.raises(UsageError, match="give the module it is made of"):
        evidence.Case(model, _nets.loss_fn, [1])


def test_a_model_that_is_frozen_as_a_whole_drifts_all_the_same():
    model = _nets.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.requires_grad_(False)
    found = checking.check(evidence.Case(model, _nets.loss_fn, _nets.data((12,)), optimizer))
    assert [finding.code for finding in found] == ["NS101"]


@pytest.mark.parametrize("inner", [False, True])
def test_a_compiled_model_is_checked_as_it_is_written(inner, capfd):
    model = _nets.case(_nets.mlp).model
    if inner:
        model[0] = torch.compile(model[0], backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    before = Snapshot(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    found = checking.check(evidence.Case(model, _nets.loss_fn, _nets.data((12,), seed=1), optimizer))
    assert [finding.code for finding in found] == ["NS123"]
    assert before.differences() == []
    assert capfd.readouterr().err == ""


def test_steps_without_an_update_do_not_count_as_accumulation():
    case = _nets.case(_nets.mlp)
    case.step = lambda model, batch: _nets.loss_fn(model, batch).backward()
    assert not checking.check(case, ["NS112", "NS113"])
