"""What all layers share: each has a page, is one node to a tracer, and is refused by TorchScript in a line."""

import warnings
from typing import Any, Never

import torch
from torch.fx import Proxy
from torch.nn import Module

from normscope._errors import UsageError, shown
from normscope._unit import Unit


class AbstractLayer(Module, Unit):
    """A torch module with a page."""

    HEADINGS = ("Formula", "Statistics", "Invariances")

    def recorded(self, input: Any, **options: Any) -> Any:
        """Record a call of this layer in the graph of the tracer that runs it, in place of a forward.

        A tracer of ``torch.fx`` takes the layers of ``torch.nn`` as they are, by the name of their module, and runs
        all others with proxies, whatever they inherit from. A layer that records itself needs nobody to name it: it is
        one node to every tracer, the user's own included, and does in the traced module what it does in the model.

        Args:
            input: The first argument of the forward: a proxy of the tracer's.
            **options: The others; None is left out.

        Returns:
            The proxy of the output.

        Raises:
            UsageError: ``input`` is no proxy; or the layer is all that is traced.
        """
        if not isinstance(input, Proxy):
            raise UsageError(f"{type(self).__name__} takes a tensor, not {shown(input)}")
        path = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
        if not path:
            raise UsageError(f"{type(self).__name__} is one node to torch.fx: trace a model that has it as a part")
        given = {name: value for name, value in options.items() if value is not None}
        return input.tracer.create_proxy("call_module", path, (input,), given)

    def _slow_forward(self, *input: Any, **kwargs: Any) -> Any:
        """Run the forward under ``torch.jit.trace``, the only caller, without its warnings of checks.

        What the layers look at besides values are shapes, to refuse an input that does not fit; the example does.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return super()._slow_forward(*input, **kwargs)

    def __prepare_scriptable__(self) -> Never:
        """Tell ``torch.jit.script``, which asks here first, that it cannot have this layer.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"{type(self).__name__} of normscope is not written in TorchScript: script a copy of the model with "
            'torch\'s own layers (surgery.convert(model, to="torch-batch") for batch norms), or use torch.jit.trace, '
            "torch.compile or torch.export"
        )
