"""Arms that stand beside the others for one question: they decide nothing, and have no number where none is asked."""

import torch
from torch import nn
from torch.nn import functional

import normscope as ns


def make_case():
    """A dense network with one batch norm on random data."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return ns.Case(model, lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]), batches, optimizer)


def test_an_arm_that_is_not_watched_decides_nothing(tmp_path):
    found = ns.compare(
        make_case,
        ["own", "population", "none"],
        seeds=1,
        steps=2,
        workers=1,
        questions=["units", "affine", "gap", "cost"],
        out=tmp_path / "run",
    )
    assert [pair.second for pair in found.pairs] == ["none", "population"]
    numbers = {answer.question.CODE: found.numbers(answer) for answer in found.answers_in_order}
    given = {code: [arm for arm, number in of_arms.items() if number] for code, of_arms in numbers.items()}
    assert given == {
        "units": ["own", "none"],
        "affine": ["own"],
        "gap": ["own", "population", "none"],
        "cost": ["own", "none"],
    }
