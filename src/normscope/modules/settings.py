"""The settings of a process that a user's code may change, and how they are put back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as of_all_modules

_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


class Settings:
    """The working directory, torch's and NumPy's settings, and the hooks of all modules, as they are now.

    Names that imports bind, the environment and ``sys.path`` are no part of it: later imports may rest on them.
    """

    def __init__(self) -> None:
        self._folder = _working_directory()
        self._dtype = torch.get_default_dtype()
        self._device = torch.get_default_device()
        self._threads = torch.get_num_threads()
        self._grad = torch.is_grad_enabled()
        self._anomaly = (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
        self._deterministic = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        self._precision = torch.get_float32_matmul_precision()
        self._cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
        self._numpy = np.geterr()
        self._hooks: dict[str, Any] = {name: dict(getattr(of_all_modules, name, {})) for name in _GLOBAL_HOOKS}

    def restore(self) -> None:
        """Put back what differs."""
        for name, hooks in self._hooks.items():
            now = getattr(of_all_modules, name, {})
            for added in [key for key in now if key not in hooks]:
                del now[added]
        if self._folder and _working_directory() != self._folder:
            with suppress(OSError):  # the folder may be gone
                os.chdir(self._folder)
        torch.set_default_dtype(self._dtype)
        if torch.get_default_device() != self._device:
            torch.set_default_device(self._device)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        torch.set_grad_enabled(self._grad)
        torch.autograd.set_detect_anomaly(*self._anomaly)
        torch.use_deterministic_algorithms(self._deterministic[0], warn_only=self._deterministic[1])
        if torch.get_float32_matmul_precision() != self._precision:
            torch.set_float32_matmul_precision(self._precision)
        if (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) != self._cudnn:
            with suppress(RuntimeError):  # where torch has been told to keep these flags as they are
                torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = self._cudnn
        np.seterr(**self._numpy)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Put the settings of the process back as they are now when the block ends."""
    settings = Settings()
    try:
        yield
    finally:
        settings.restore()


def _working_directory() -> str:
    """Return the working directory; empty if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""
