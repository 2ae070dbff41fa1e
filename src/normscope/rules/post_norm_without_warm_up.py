"""Deep post-norm networks whose first updates are made at the full learning rate."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from normscope.evidence import (
    Case,
    Evidence,
    Finding,
    NotShownError,
    Severity,
    example_transformers as nets,
    examples,
    has_learnt,
    reached_objects,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_SUMS, _CHANGE, _BEGUN = 20, 0.7, 10
_chain = partial(nets.transformer, nets.Chain, norms=22, lr=0.03)


def _looped(factor: float = 1.0, make: Any = _chain, **options: Any) -> Case:
    """A set-up whose step has the optimizer, and multiplies its learning rate by a factor at each step."""
    made: Case = make(**options)
    optimizer = made.optimizer
    assert optimizer is not None

    def step(model: nn.Module, batch: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= factor
        optimizer.zero_grad()
        nets.next_words(model, batch).backward()
        optimizer.step()

    return Case(made.model, made.loss_fn, made.loader, step=step, also=[optimizer])


def _scheduled(**options: Any) -> Case:
    """A set-up with a warm-up."""
    case = _chain(**options)
    assert case.optimizer is not None
    torch.optim.lr_scheduler.LinearLR(case.optimizer, 0.5)
    return case


_encoder = partial(_looped, make=nets.transformer, net=nets.Encoder, depth=11, first=False, final=False, lr=0.03)


def _names(*of: str) -> list[str]:
    return [f"{of[0]}.{index}{end}" for index in range(22 // len(of[1:])) for end in of[1:]]


class PostNormWithoutWarmUp(AbstractRule):
    r"""A deep post-norm network begins at its full learning rate.

    ## Finds
    A network with more than 20 norms behind residual sums in a row, $\mathrm{norm}(x + f(x))$ (10 transformer blocks of
    two sums), that is new, where the first update changes the outputs for its own batch by more than .7 of their length
    and no sign of a warm-up is seen. Signs are a scheduler, a learning rate that a step changes, more than 10 updates
    in the optimizer's state, and a network that has learnt. Sums and norms are followed through the user's own forward
    pass, and the update is made and undone. Norms before the branches are no such network.

    Calibrated on 12 and 16 blocks of width 64 that learn text by its letters, with AdamW, against a warm-up over half
    of 240 or 400 steps: where the first update changed the outputs by .86 to 1.17, the loss without warm-up ended
    higher in 6 of 6 trainings, by .14 to .82; where it changed them by .50, it did not.
    On a task that four blocks learn in 100 steps, twelve blocks trained as well without: the rule tells of a risk. Over
    six seeds planted defects found, 24 of 24; findings on the same networks at a small rate, with fewer blocks, or with
    norms before the branches, 0 of 24.

    ## Why it hurts
    Behind the sum a norm scales the stream anew after every block, so that at the start gradients near the output are
    large whatever the depth (with norms before the branches they fall with it), and a change of every block is passed
    on in full by the next. Steps at the full rate then make the outputs those of one distribution for all inputs, from
    which training does not come back.

    ## Fix
    None that is mechanical: raise the learning rate from near 0 over the first steps
    (``torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=...)``), or put the norms before the branches, and
    one before the head.
    """

    CODE = "NS140"
    SLUG = "post-norm-without-warm-up"
    SEVERITY = Severity.WARNING
    NEEDS = ("loop",)
    SOURCES = (
        "Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv:2002.04745",
        "Liu et al. 2020, Understanding the Difficulty of Training Transformers, arXiv:2004.08249",
    )
    SICK = (
        examples.Planted(_looped, _names("norms", "")),
        examples.Planted(partial(_looped, norm=nn.RMSNorm), _names("norms", "")),
        examples.Planted(_encoder, _names("encoder.layers", ".norm1", ".norm2")),
    )
    WELL = (
        partial(_chain, first=True),
        partial(_chain, norms=8),
        partial(_chain, lr=1e-5),
        _scheduled,
        partial(_looped, 1.01),
        partial(examples.healthy, examples.mlp),
    )
    NEAR = (
        examples.Near(lambda lr: _chain(lr=lr), found=0.0045, quiet=0.0035),
        examples.Near(lambda norms: _chain(norms=norms), found=21, quiet=20),
        examples.Near(_looped, found=1.0, quiet=1.001),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Count the norms on the stream's own way, and measure the first update."""
        case = evidence.case
        if case.optimizer is None and case.step is None:
            return
        norms = evidence.residuals.post
        if len(norms) <= _SUMS or _is_under_way([case.optimizer, *(each for _, each in reached_objects(case))]):
            return
        if evidence.under_way:
            raise NotShownError("judges the first update of a new network: ns.check(...) before the training")
        change, moving = evidence.first_update
        if moving or change <= _CHANGE or has_learnt(case):
            return
        yield self.finding(
            f"{counted(len(norms), 'norm')} in a row stand behind residual sums, and the first update, at the full "
            f"learning rate, changes the outputs by {change:.2g} of their length",
            norms,
            quantity="change of the outputs by the first update, of their length",
            measured=change,
            bound=_CHANGE,
            cost="early steps may make the outputs the same for all inputs, where training stays",
            fix="raise the learning rate from near 0 over the first steps, or put the norms before the branches and "
            "one before the head",
            details={"norms": float(len(norms))},
        )


def _is_under_way(objects: Iterable[Any]) -> bool:
    """Whether a schedule is among the objects of a set-up, or an optimizer has made more than a few updates."""
    for each in objects:
        if isinstance(each, LRScheduler):
            return True
        if not isinstance(each, Optimizer):
            continue
        if any("initial_lr" in group or "max_lr" in group for group in each.param_groups):
            return True
        if any(float(state.get("step", 0)) > _BEGUN for state in each.state.values()):
            return True
    return False
