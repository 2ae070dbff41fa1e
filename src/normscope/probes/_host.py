"""From the device to the host: all values of a step in one transfer."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_floats(scalars: Sequence[Tensor]) -> list[float]:
    """Return the values of tensors of one element each; of those on an accelerator in one transfer a device."""
    if all(scalar.device.type == "cpu" for scalar in scalars):
        return [float(scalar) for scalar in scalars]  # an accelerator would be waited for at each of them
    found = [0.0] * len(scalars)
    for device in {scalar.device for scalar in scalars}:
        here = [index for index, scalar in enumerate(scalars) if scalar.device == device]
        wide = torch.float32 if device.type == "mps" else torch.float64  # which has no doubles
        values = torch.stack([scalars[index].detach().reshape(()).to(wide) for index in here]).tolist()
        for index, value in zip(here, values, strict=True):
            found[index] = value
    return found
