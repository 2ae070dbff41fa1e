"""What a set-up does in its first step, as a short text: a run of another set-up is not taken for this one."""

import hashlib
from typing import Any

import torch

from normscope.comparing.training import Steps
from normscope.evidence import Case
from normscope.modules.batches import tensors

_LENGTH = 16


def first_step(case: Case, seed: int) -> str:
    """Make the first training step, and return a digest of the weights and the batch before it, and the weights after.

    It tells apart what no text of a file tells: other imported files, captured variables, other data.

    Args:
        case: The set-up; it is trained by a step.
        seed: Of the batch, and of what the step draws.

    Raises:
        UsageError: The user's code raises.
    """
    steps = Steps(case, seed)
    batch = steps.next_batch()
    found = hashlib.sha256()
    _take(found, [*case.model.parameters(), *case.model.buffers()])
    _take(found, tensors(batch))
    with torch.enable_grad():
        steps.step(batch)
    _take(found, list(case.model.parameters()))
    return found.hexdigest()[:_LENGTH]


def _take(digest: Any, values: Any) -> None:
    for value in values:
        if value.layout is torch.strided:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
