"""Running statistics with too few digits."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from normscope.evidence import Case, Evidence, Finding, Severity, convert_places, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_LOW = (torch.bfloat16, torch.float16)


def _low(net: Any, *, momentum: float = 0.1, only_norms: bool = False) -> Case:
    case = examples.healthy(net)
    for norm in examples.norms(case.model):
        norm.momentum = momentum
    if only_norms:
        for norm in examples.norms(case.model):
            norm.running_mean.data = norm.running_mean.data.bfloat16()
            norm.running_var.data = norm.running_var.data.bfloat16()
        return case
    case.model.to(torch.bfloat16)
    case.optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)

    def widened(loader: Any) -> list[Any]:
        return [(x.bfloat16(), y) for x, y in loader]

    case.loader, case.eval_loader = widened(case.loader), widened(case.eval_loader)
    return case


def _kept_in(dtype: torch.dtype) -> Case:
    norm = examples.batch_norm()
    norm.running_mean, norm.running_var = norm.running_mean.to(dtype), norm.running_var.to(dtype)
    return examples.alone(norm, [examples.two_values(1.0, 2.0)] * 4)


class LowPrecisionStatistics(AbstractRule):
    r"""Running statistics are kept in half precision while they are being averaged.

    ## Finds
    A norm that updates running statistics whose buffers are bfloat16 or float16.

    ## Why it hurts
    A moving average adds a small share of a difference: with momentum 0.001 the step is below what eight bits of
    mantissa hold as soon as the average is within a quarter of the truth, and the buffer stops moving (a variance stuck
    at 4 for a true 9 was measured). The average looks converged and is not.

    ## Fix
    Safe: the norms become this library's with ``float32_statistics=True``, which keeps the two buffers in float32
    whatever happens to the rest. What the network computes in training stays.
    """

    CODE = "NS118"
    SLUG = "low-precision-statistics"
    SEVERITY = Severity.ERROR
    SAFE = True
    KEEPS = ("training", "evaluation")
    SOURCES = ("pytorch/pytorch#75478", "facebookresearch/fairscale#442")
    SICK = (
        partial(_low, examples.mlp),
        partial(_low, examples.cnn, momentum=0.01),
        partial(_low, examples.residual),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn),
    )
    NEAR = (
        examples.Near(_kept_in, found=torch.bfloat16, quiet=torch.float32),
        examples.Near(_kept_in, found=torch.float16, quiet=torch.float64),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look at the type of the buffers."""
        places = [path for path, module in evidence.updating.items() if module.running_var.dtype in _LOW]
        if not places:
            return
        module = evidence.updating[places[0]]
        digits = torch.finfo(module.running_var.dtype).eps
        momentum = module.momentum or 0.0
        yield self.finding(
            f"{counted(len(places), 'norm averages its', 'norms average their')} running statistics in "
            f"{str(module.running_var.dtype)[6:]}",
            places,
            quantity="relative spacing of the numbers that the buffer can hold, over momentum",
            measured=digits / momentum if momentum else float("inf"),
            bound=torch.finfo(torch.float32).eps / max(momentum, 1e-12),
            cost=f"an average stops moving within {min(1.0, digits / max(momentum, 1e-12)):.0%} of the data's",
            fix="keep the buffers in float32: normscope.surgery.convert(model, 'batch', float32_statistics=True)",
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Convert the norms of the finding and widen their buffers."""
        done = convert_places(case, finding, "batch", float32_statistics=True)
        return f"converted {counted(done, 'norm')} to keep statistics in float32"
