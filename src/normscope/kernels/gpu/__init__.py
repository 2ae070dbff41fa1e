"""Batch norm on a GPU: Triton kernels for the forward and the backward in training.

Memory is what they cost: the forward reads ``x`` twice and writes ``y``; the backward reads the output's gradient and
``x`` twice and writes the input's. A channel that fits one program is read once. Activation and residual add nothing
but the residual's own reads. All sums are float32, shifted and merged in a fixed order: right at any offset that the
type of ``x`` resolves, and the same bits on every run.

Triton is imported when it is first needed; importing this package without it costs nothing and fails nowhere.
"""

import os
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["backward", "forward", "takes", "why_not"]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(device: torch.device) -> str | None:
    """Say why the kernels cannot run on a device, or None if they can.

    On the CPU they run under Triton's interpreter alone, which is there for tests: whoever chooses kernels for speed
    asks for CUDA devices only.

    Args:
        device: Where the tensors are.

    Returns:
        One line, or None. The answer for a device does not change and is kept.
    """
    return _why_not(device.type, device.index)


@lru_cache
def _why_not(kind: str, index: int | None) -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"Triton is not installed ({error})"
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes"):
        return None
    if kind != "cuda":
        return f"the tensors are on {kind}, and Triton's interpreter is off"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < (8, 0):
        return "the CUDA device is older than compute capability 8.0"
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever it is, a missing C compiler say, training should go on without the kernels
        return f"Triton does not run here ({' '.join(str(error).split())})"
    return None


def takes(x: Tensor) -> bool:
    """Say whether the kernels take values of this type: float32, bfloat16 or float16."""
    return x.dtype in _TYPES


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int,
    slope: float,
    residual: Tensor | None,
    running: tuple[Tensor, Tensor, float] | None,
) -> tuple[Tensor, Tensor]:
    """Normalize each channel by its batch statistics, scale and shift it, add a residual, activate.

    Ioffe & Szegedy (2015), algorithm 1.

    Args:
        x: Values ``(N, C, *)``, float32, bfloat16 or float16; more than one a channel. Contiguous and channels_last
            (also of one and three spatial axes) are read as they lie, any other layout is copied.
        weight: Gain of each channel ``(C,)`` of any floating type, or None for 1.
        bias: Shift of each channel ``(C,)`` of any floating type, or None for 0.
        eps: Added to the variance, in squared units of ``x``.
        activation: 0 for none, 1 for ReLU, 2 for leaky ReLU. NaN passes as in torch.
        slope: Of the leaky ReLU below zero.
        residual: Added before the activation, of the shape of ``x``; or None.
        running: Mean and variance ``(C,)`` of any floating type, and the share of this batch in them: moved in place
            toward the batch's mean and unbiased variance. Their version counters are the caller's to raise. Or None.

    Returns:
        ``y`` in the type and layout of ``x``; and what the backward needs, float32 ``(3, C)``: the mean as a high and a
        low part, and the reciprocal standard deviation. A channel with a value that is not finite has NaN in there.

    Raises:
        ImportError: Triton is not installed.
    """
    from normscope.kernels.gpu import _launch

    return _launch.forward(x, weight, bias, eps, activation, slope, residual, running)


def backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    activation: int,
    slope: float,
    residual: Tensor | None,
    wanted: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of what `forward` took.

    The mask of the activation is computed again from ``x``, to the same bits. Ioffe & Szegedy (2015), section 3.

    Args:
        g: Gradient of ``y``, of any layout.
        x: What the forward was given; and so on.
        weight: Likewise.
        bias: Likewise.
        saved: What the forward returned beside ``y``.
        activation: As in the forward.
        slope: As in the forward.
        residual: As in the forward.
        wanted: Whether the gradients of ``x``, weight, bias and residual are wanted.

    Returns:
        Those of ``x`` and of the residual in their own types, those of weight and bias in float32; None for what is not
        wanted or was None itself. Without an activation the residual's gradient is ``g`` itself.

    Raises:
        ImportError: Triton is not installed.
    """
    from normscope.kernels.gpu import _launch

    return _launch.backward(g, x, weight, bias, saved, activation, slope, residual, wanted)
