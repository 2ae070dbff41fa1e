"""In which mode each module is while training steps are made."""

from functools import partial
from typing import Any

import torch
from torch.nn import Module

from normscope.modules.hooks import Hook


class ModesListener:
    """Hooks on all modules of a model, which note the modes in which it is called with gradients.

    A module trains in train mode if it is in train mode in any pass that records gradients: a step may first make an
    attack or guess labels in eval mode.

    Args:
        model: The model, out of its wrappers.

    Attributes:
        modes: By qualified name whether a module that was called with gradients was in train mode.
    """

    def __init__(self, model: Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self.modes: dict[str, bool] = {}

    def attach(self) -> None:
        """Set the hooks."""
        for path, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(Hook(partial(self._note, path))))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        Hook.clear_copies()

    def _note(self, path: str, module: Module, *_: Any) -> None:
        if torch.is_grad_enabled() and not self.modes.get(path):
            self.modes[path] = module.training
