from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    name: str
    shape: tuple[int, ...]
    format: torch.memory_format = torch.contiguous_format

    def put(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.format)


LAYOUTS = [
    Layout("2d", (64, 10)),
    Layout("2d-tall", (4096, 8)),
    Layout("3d", (16, 8, 50)),
    Layout("4d", (16, 8, 12, 12)),
    Layout("4d-channels-last", (16, 8, 12, 12), torch.channels_last),
    Layout("4d-channels-last-many", (9, 4, 128, 128), torch.channels_last),
    Layout("5d", (8, 4, 4, 6, 6)),
    Layout("5d-channels-last", (8, 4, 4, 6, 6), torch.channels_last_3d),
]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.name)
def layout(request) -> Layout:
    return request.param


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)
