"""What is noise in training: dropout as a module or a function, and modules that draw random numbers by themselves."""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Module, functional
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from normscope.evidence.case import Case
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.call import modes_kept
from normscope.modules.rng import repr_state, torch_streams
from normscope.modules.sites import is_known_norm
from normscope.modules.state import traceless
from normscope.usercode import users_code

_NAMES = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
_DROPOUTS = {
    function
    for name in (*_NAMES, *(f"{name}_" for name in _NAMES))
    for home in (functional, torch)
    if (function := getattr(home, name, None)) is not None
}
_BY_FLAG = (functional.rrelu, functional.multi_head_attention_forward)


@dataclass(frozen=True, slots=True)
class Noise:
    """What acts as noise while a batch is trained on.

    Attributes:
        modules: Modules to be put into eval mode, each by itself and without its children.
        functions: Whether modules of the user's own call dropout as a function, which is to be left out.
        own: Those among ``modules`` that draw in code of their own: what else they do in eval mode is not known.
    """

    modules: Sequence[Module] = ()
    functions: bool = False
    own: Sequence[Module] = ()

    @property
    def present(self) -> bool:
        """Whether there is any."""
        return bool(self.modules) or self.functions


def noisy_modules(case: Case) -> Noise:
    """Return what acts as noise while a batch is trained on: torch's dropout, and what draws by itself.

    A module draws by itself if a random stream of torch's, NumPy's or Python's own moves while it runs and none of its
    children does. If it no longer draws where dropout as a function is left out, then its mode is left alone: it may do
    more by its mode than to leave out noise. A module that draws in code of its own is left out if the loss cannot be
    had with it in eval mode.

    Args:
        case: The set-up, in the modes of training; left as it was.

    Raises:
        UsageError: The loader or the loss raises.
    """
    known = [m for m in case.model.modules() if isinstance(m, (_DropoutNd, nn.RReLU)) and m.training]
    with sandbox(case):
        (batch,) = batches(case.loader, 1)

        def draw() -> list[Module]:
            with _drawing(case.model) as drawing, users_code("the loss of batch 0 of the loader"):
                case.loss_of(case.model, batch)
            return [m for m in drawing if m not in known and m.training and not is_known_norm(m)]

        drawn = draw()
        own = [m for m in drawn if not type(m).__module__.startswith("torch.nn.")]
        torchs = [m for m in drawn if m not in own]
        functions = False
        if own:
            with traceless(case.model, streams=False), _WithoutDropout():
                left = draw()
            functions = any(m not in left for m in own)
            own = [m for m in own if m in left]
        noise = Noise([*known, *torchs, *own], functions, own)
        if any(next(m.children(), None) is not None for m in own):
            try:
                with traceless(case.model, streams=False), quiet(noise):
                    case.loss_of(case.model, batch)
            except Exception:
                own = [m for m in own if next(m.children(), None) is None]
                noise = Noise([*known, *torchs, *own], functions, own)
    return noise


@contextmanager
def quiet(noise: Noise) -> Iterator[None]:
    """Leave noise out meanwhile."""
    with modes_kept(noise.modules), ExitStack() as functions:
        for module in noise.modules:
            module.training = False
        if noise.functions:
            functions.enter_context(_WithoutDropout())
        yield


def quiet_call(case: Case, noise: Noise) -> Any:
    """Return the loss of training as a function of model and batch, with the modes of training but for noise and norms.

    Made for ``surgery.recalibrate``, which puts the whole model into a mode, and each norm as it is measured: the code
    between is to be that of training, since the statistics are those that training meets.
    """
    modes = [(m, m.training and m not in noise.modules) for m in case.model.modules() if not is_known_norm(m)]

    def call(model: Any, batch: Any) -> Tensor:
        for module, mode in modes:
            module.training = mode
        with ExitStack() as functions:
            if noise.functions:
                functions.enter_context(_WithoutDropout())
            return case.loss_fn(model, batch)

    return call


class _WithoutDropout(TorchFunctionMode):
    """Leaves dropout out wherever it is called as a function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, or hand the input on."""
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func in _BY_FLAG:
            given = signature(func).bind(*args, **kwargs)
            given.arguments["training"] = False
            return func(*given.args, **given.kwargs)
        if func is functional.scaled_dot_product_attention:
            return func(*args[:4], **_without_dropout(args[4:], kwargs))
        return func(*args, **kwargs)


def _without_dropout(rest: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    named = dict(zip(("dropout_p", "is_causal"), rest, strict=False))
    return {**named, **kwargs, "dropout_p": 0.0}


@contextmanager
def _drawing(model: Module) -> Iterator[list[Module]]:
    """Collect the modules that draw from a random stream of torch's, NumPy's or Python's own meanwhile."""
    found: dict[Module, None] = {}
    under_way: list[Module] = []
    last = _streams()

    def note(*_: Any) -> None:
        nonlocal last
        now = _streams()
        if under_way and not (last[1] == now[1] and all(map(torch.equal, now[0], last[0]))):
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


def _streams() -> tuple[list[Tensor], Any]:
    return torch_streams(), (repr_state(np.random.get_state()), random.getstate())  # noqa: NPY002
