"""Weight decay on gain and shift."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from normscope.evidence import Case, Evidence, Finding, Severity, examples, is_known_norm, modules_of, take_out
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule


def _decayed(
    net: Any, kind: Any = torch.optim.SGD, *, apart: bool = False, decay: float = 1e-2, **options: Any
) -> Case:
    case = examples.healthy(net, **options)
    parameters = dict(case.model.named_parameters())
    of_norms = {
        id(p) for module in case.model.modules() if is_known_norm(module) for p in module.parameters(recurse=False)
    }
    if not apart:
        case.optimizer = kind(parameters.values(), lr=0.01, weight_decay=decay)
        return case
    groups = [
        {"params": [p for p in parameters.values() if id(p) not in of_norms], "weight_decay": decay},
        {"params": [p for p in parameters.values() if id(p) in of_norms], "weight_decay": 0.0},
    ]
    case.optimizer = kind(groups, lr=0.01)
    return case


class DecayedAffine(AbstractRule):
    r"""Weight decay pulls gains and shifts of norms towards zero.

    ## Finds
    Gain or shift of a norm (batch, group, layer, instance, RMS), with a gradient, in a group of the optimizer whose
    ``weight_decay`` is not zero.

    Calibrated over six seeds: planted defects found, 24 of 24; on healthy set-ups that come near, none.

    ## Why it hurts
    On weights before a norm, decay does not shrink the function: the norm undoes their scale, and decay only sets the
    step size. On the gain it does shrink what comes out of the layer, and on the shift it pulls the operating point of
    the activation to zero; channels whose gain is hardly used die. Many recipes do it on purpose, hence only an
    information.

    ## Fix
    Unsafe: gains and shifts move into groups of their own without decay. Do it before a learning-rate scheduler is
    made: one counts groups when it is made.
    """

    CODE = "NS123"
    SLUG = "decayed-affine"
    SEVERITY = Severity.INFO
    KEEPS = ("training", "evaluation")
    SOURCES = ("pytorch/pytorch#1402", "He et al. 2019, Bag of Tricks, section 3.1")
    SICK = (
        partial(_decayed, examples.mlp),
        partial(_decayed, examples.cnn, torch.optim.AdamW),
        partial(_decayed, examples.residual, torch.optim.Adam),
        examples.Planted(partial(_decayed, examples.cnn, norm=partial(torch.nn.GroupNorm, 4)), ["1", "5"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_decayed, examples.cnn, apart=True),
        partial(_decayed, examples.residual, torch.optim.AdamW, apart=True),
    )
    NEAR = (examples.Near(lambda decay: _decayed(examples.mlp, decay=decay, trained=0), found=1e-9, quiet=0.0),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look up each gain and shift in the optimizer's groups."""
        if evidence.case.optimizer is None:
            return
        decays: dict[int, float] = {
            id(p): float(group.get("weight_decay") or 0.0)
            for group in evidence.case.optimizer.param_groups
            for p in group["params"]
            if p.requires_grad
        }
        places, worst, numbers = [], 0.0, 0
        for path, module in evidence.modules.items():
            if not is_known_norm(module):
                continue
            decayed = [p for p in module.parameters(recurse=False) if decays.get(id(p), 0.0) > 0]
            if decayed:
                places.append(path)
                worst = max(worst, *(decays[id(p)] for p in decayed))
                numbers += sum(p.numel() for p in decayed)
        if not places:
            return
        yield self.finding(
            f"gain and shift of {counted(len(places), 'norm')} are under a weight decay of {worst:g}",
            places,
            quantity="weight decay of gain and shift",
            measured=worst,
            bound=0.0,
            cost="gains shrink with every step; with weights it only sets the size of steps",
            fix="put gains and shifts in a group of the optimizer with weight_decay=0",
            details={"numbers": float(numbers)},
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Move the parameters of the finding into groups without decay."""
        assert case.optimizer is not None
        mine = [p for module in modules_of(case, finding) for p in module.parameters(recurse=False)]
        taken = take_out(case.optimizer, mine)
        groups = case.optimizer.param_groups
        groups[:] = [group for group in groups if group["params"]]
        groups.extend(group | {"weight_decay": 0.0} for group in taken)
        return f"moved {counted(len(mine), 'parameter')} into groups without weight decay"
