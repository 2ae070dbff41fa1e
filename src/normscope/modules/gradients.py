"""Calls without gradient, but for functions that take gradients themselves."""

from collections.abc import Callable
from typing import Any

import torch


class WithoutGradient:
    """Calls functions without gradient; with it, once one has been seen to need it.

    A loss with a gradient penalty, of physics or of forces takes gradients inside itself, and cannot do so under
    ``torch.no_grad()``. For all others a pass without gradient keeps no activations.

    Attributes:
        needed: Whether gradients are recorded.
        sure: Whether a call has shown that.
    """

    def __init__(self) -> None:
        self.needed, self.sure = False, False

    def __call__(self, function: Callable[..., Any], *args: Any, again: Callable[[], Any] | None = None) -> Any:
        """Call a function, and return what it returns.

        Args:
            function: The function.
            args: Its arguments.
            again: Called before it is called a second time: takes back what the first left.

        Raises:
            Exception: Whatever the function raises with gradients as well as without.
        """
        if not self.needed:
            try:
                with torch.no_grad():
                    found = function(*args)
            except Exception:
                if self.sure:
                    raise
            else:
                self.sure = True
                return found
        if again is not None and not self.needed:
            again()
        with torch.enable_grad():
            found = function(*args)
        self.needed = self.sure = True
        return found
