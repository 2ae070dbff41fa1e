"""From the device to the host: all values of a step in one transfer."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_floats(scalars: Sequence[Tensor | float]) -> list[float]:
    """Return the values of numbers and one-element tensors; of those on an accelerator in one transfer a device."""
    away: dict[torch.device, list[int]] = {}
    found = [0.0] * len(scalars)
    for index, scalar in enumerate(scalars):
        if isinstance(scalar, Tensor) and scalar.device.type != "cpu":
            away.setdefault(scalar.device, []).append(index)  # an accelerator would be waited for at each of them
        else:
            found[index] = float(scalar)
    for device, here in away.items():
        wide = torch.float32 if device.type == "mps" else torch.float64  # which has no doubles
        values = torch.stack([torch.as_tensor(scalars[index]).reshape(()).to(wide) for index in here]).tolist()
        for index, value in zip(here, values, strict=True):
            found[index] = value
    return found
