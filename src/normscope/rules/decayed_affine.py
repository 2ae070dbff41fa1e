"""Weight decay on gain and shift."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from normscope.evidence.case import Case
from normscope.evidence.evidence import Evidence
from normscope.evidence.passes import take_out
from normscope.modules.sites import is_known_norm
from normscope.records import Finding, Severity
from normscope.rules import _nets
from normscope.rules._rule import AbstractRule


def _decayed(net: Any, kind: Any = torch.optim.SGD, *, apart: bool = False, **options: Any) -> Case:
    case = _nets.case(net, **options)
    parameters = dict(case.model.named_parameters())
    of_norms = {
        id(p) for module in case.model.modules() if is_known_norm(module) for p in module.parameters(recurse=False)
    }
    if not apart:
        case.optimizer = kind(parameters.values(), lr=0.01, weight_decay=1e-2)
        return case
    groups = [
        {"params": [p for p in parameters.values() if id(p) not in of_norms], "weight_decay": 1e-2},
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
    SOURCES = ("pytorch/pytorch#1402", "He et al. 2019, Bag of Tricks, section 3.1")
    SICK = (
        partial(_decayed, _nets.mlp),
        partial(_decayed, _nets.cnn, torch.optim.AdamW),
        partial(_decayed, _nets.residual, torch.optim.Adam),
        partial(_decayed, _nets.cnn, norm=partial(torch.nn.GroupNorm, 4)),
    )
    WELL = (
        partial(_nets.case, _nets.mlp),
        partial(_decayed, _nets.cnn, apart=True),
        partial(_decayed, _nets.residual, torch.optim.AdamW, apart=True),
    )

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
            f"gain and shift of {len(places)} norms are under a weight decay of {worst:g}",
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
        modules = dict(case.model.named_modules())
        mine = [p for path in finding.places for p in modules[path].parameters(recurse=False)]
        taken = take_out(case.optimizer, mine)
        groups = case.optimizer.param_groups
        groups[:] = [group for group in groups if group["params"]]
        groups.extend(group | {"weight_decay": 0.0} for group in taken)
        return f"moved {len(mine)} parameters into groups without weight decay"
