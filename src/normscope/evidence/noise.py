"""Which modules of a model are noise in training: dropout, and whatever else draws random numbers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.modules.dropout import _DropoutNd

from normscope.evidence.case import Case
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.call import modes_kept
from normscope.modules.rng import torch_streams
from normscope.modules.sites import is_known_norm
from normscope.modules.state import traceless
from normscope.usercode import users_code


def noisy_modules(case: Case) -> list[Module]:
    """Return the modules that act as noise while a batch is trained on: torch's dropout, and what draws by itself.

    A module draws by itself if a random stream of torch moves while it runs and none of its children does. A module is
    left out if the loss cannot be had with it in eval mode: what it does there is more than to leave out noise.

    Args:
        case: The set-up, in the modes of training; left as it was.

    Raises:
        UsageError: The loader or the loss raises.
    """
    known = [m for m in case.model.modules() if isinstance(m, (_DropoutNd, nn.RReLU)) and m.training]
    with sandbox(case):
        (batch,) = batches(case.loader, 1)
        with _drawing(case.model) as drawing, users_code("the loss of batch 0 of the loader"):
            case.loss_of(case.model, batch)
        drawn = [m for m in drawing if m not in known and m.training and not is_known_norm(m)]
        if any(next(m.children(), None) is not None for m in drawn):
            try:
                with traceless(case.model, streams=False), quiet([*known, *drawn]):
                    case.loss_of(case.model, batch)
            except Exception:
                drawn = [m for m in drawn if next(m.children(), None) is None]
    return [*known, *drawn]


@contextmanager
def quiet(noise: list[Module]) -> Iterator[None]:
    """Have modules in eval mode meanwhile, each by itself and without its children."""
    with modes_kept(noise):
        for module in noise:
            module.training = False
        yield


def quiet_call(case: Case, noise: list[Module]) -> Any:
    """Return the loss of training as a function of model and batch, with the modes of training but for noise and norms.

    Made for ``surgery.recalibrate``, which puts the whole model into a mode, and each norm as it is measured: the code
    between is to be that of training, since the statistics are those that training meets.
    """
    modes = [(m, m.training and m not in noise) for m in case.model.modules() if not is_known_norm(m)]

    def call(model: Any, batch: Any) -> Tensor:
        for module, mode in modes:
            module.training = mode
        return case.loss_fn(model, batch)

    return call


@contextmanager
def _drawing(model: Module) -> Iterator[list[Module]]:
    """Collect the modules that draw from a random stream of torch meanwhile."""
    found: dict[Module, None] = {}
    under_way: list[Module] = []
    last = torch_streams()

    def note(*_: Any) -> None:
        nonlocal last
        now = torch_streams()
        if under_way and not all(map(torch.equal, now, last)):
            found[under_way[-1]] = None
        last = now

    def enter(module: Module, *_: Any) -> None:
        note()
        if module is model:
            under_way.clear()  # a pass before may have ended with an exception
        under_way.append(module)

    def leave(module: Module, *_: Any) -> None:
        note()
        if under_way and under_way[-1] is module:
            under_way.pop()

    drawing: list[Module] = []
    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield drawing
    drawing += found
