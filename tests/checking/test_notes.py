"""What a check says of the set-up as a whole: steps that raise, train nothing, or hang."""

import time

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.evidence import examples


def parts(count=6, last=32):
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    sizes = [*[32] * (count - 1), last]
    loader = [(torch.randn(size, 12), torch.randint(4, (size,))) for size in sizes]
    return model, loader


def test_a_later_step_that_raises_is_told():
    model, loader = parts(count=3, last=1)  # torch refuses a batch norm over one value
    found = ns.check(model, examples.loss_fn, loader, torch.optim.SGD(model.parameters(), 0.1))
    (note,) = found.notes
    assert note.startswith("training step 2 raised ValueError: Expected more than 1 value per channel")
    assert note.endswith(": the check judged by the 2 training steps before it")
    assert note in str(found)


def test_an_optimizer_of_another_model_is_told():
    model, loader = parts()
    found = ns.check(model, examples.loss_fn, loader, torch.optim.SGD(parts()[0].parameters(), 0.1))
    assert found.notes == (
        "4 training steps changed no parameter of the model: no optimizer of the set-up holds a parameter of the model "
        "that learns",
    )


def test_a_step_that_does_nothing_is_told():
    model, loader = parts()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    found = ns.check(ns.Case(model, examples.loss_fn, loader, optimizer))
    assert found.notes == ("4 training steps changed no parameter of the model",)


@pytest.mark.parametrize("step", [True, False])
def test_a_training_that_trains_needs_no_note(step):
    model, loader = parts()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def one_step(model, batch):
        optimizer.zero_grad()
        examples.loss_fn(model, batch).backward()
        optimizer.step()

    case = ns.Case(model, examples.loss_fn, loader, optimizer, step=one_step if step else None)
    assert ns.check(case).notes == ()


@pytest.mark.parametrize("restores", [False, True])
def test_a_step_that_leaves_the_model_in_eval_mode_is_told(restores):
    model, loader = parts()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(model, batch):
        if restores:
            model.train()
        optimizer.zero_grad()
        examples.loss_fn(model, batch).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            examples.loss_fn(model, loader[0])

    found = ns.check(ns.Case(model.train(), examples.loss_fn, loader, optimizer, step=step))
    told = [note for note in found.notes if note.startswith("from training step 1 on all norms ran in eval mode")]
    assert len(told) == (not restores)


def test_a_step_that_hangs_is_given_up():
    model, loader = parts()
    case = ns.Case(model, examples.loss_fn, loader, step=lambda model, batch: time.sleep(20))
    began = time.perf_counter()
    found = ns.check(case, ["NS105"], timeout=0.3)
    assert time.perf_counter() - began < 15
    assert [code for code, _ in found.not_run] == ["NS105"]


@pytest.mark.parametrize("kind", ["nested", "eight bits"])
def test_a_part_of_a_batch_that_has_no_sum_keeps_no_rule_from_judging(kind):
    model, loader = parts()
    if kind == "nested":
        extra = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
    else:
        extra = torch.zeros(3).to(torch.float8_e4m3fn)
    batches = [(*batch, extra) for batch in loader]
    loss_fn = lambda model, batch: examples.loss_fn(model, batch[:2])  # noqa: E731
    found = ns.check(model, loss_fn, batches, torch.optim.SGD(model.parameters(), 0.1))
    assert not [why for _, why in found.unmeasured if "sum" in why]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.GroupNorm])
def test_a_loss_over_samples_one_by_one_is_judged(norm):
    """Under ``vmap`` no tensor has values that a hook could read: hooks stand aside; four rules say what they lack."""
    model = nn.Sequential(nn.Linear(12, 8), norm(8) if norm is nn.LayerNorm else norm(1, 8), nn.Linear(8, 4))
    _, loader = parts()

    def loss_fn(model, batch):
        def of_one(x, y):
            return nn.functional.cross_entropy(model(x[None]), y[None])

        return torch.func.vmap(of_one)(*batch).mean()

    found = ns.check(model, loss_fn, loader, torch.optim.SGD(model.parameters(), 0.1))
    assert {code for code, _ in found.unmeasured} <= {"NS121", "NS127", "NS129", "NS137"}
    assert found.notes == ()
