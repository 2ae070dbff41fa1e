"""What is deployed: an exported program, a scripted, traced or folded module, or an ONNX model."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence.sandbox import sandbox
from normscope.modules.batches import tensors
from normscope.modules.call import modes_kept, set_mode
from normscope.modules.values import Values

_STATISTICS = ("running_mean", "running_var")


class Deployed:
    """What a case says is deployed, whatever its kind.

    Attributes:
        given: What the case has.
        module: It as a module that can be called; None where it cannot (ONNX).
        state: Its parameters and buffers by name.
    """

    def __init__(self, case: Any) -> None:
        self.given, self._case = case.exported, case
        self.is_program = isinstance(self.given, torch.export.ExportedProgram)
        with quiet():
            self.module: Any = self.given.module() if self.is_program else self.given
        if not isinstance(self.module, nn.Module):
            self.module = None
        self.state: dict[str, Tensor] = {}
        if self.module is not None:
            self.state = {_bare(n): t for n, t in (*self.module.named_parameters(), *self.module.named_buffers())}

    def calls(self, inputs: tuple[tuple[Any, ...], dict[str, Any]] | None) -> Iterator[tuple[Any, Any, list[Tensor]]]:
        """Yield arguments that it takes and what it puts out for them: those given, or else those of its export."""
        tried = [inputs] if inputs is not None else []
        if self.is_program and self.given.example_inputs is not None:
            tried.append(self.given.example_inputs)
        for args, kwargs in tried if self.module is not None else ():
            try:
                with quiet(), torch.no_grad():
                    output = self.module(*args, **kwargs)
            except Exception:  # exported for another shape: then it is asked with its own example
                continue
            yield args, kwargs, [tensor.detach().clone() for tensor in tensors(output)]
            return

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have it in eval mode meanwhile, where it has modes."""
        if self.is_program or self.module is None:
            yield
            return
        with modes_kept(self.module.modules()):
            set_mode(self.module, False)
            yield

    def changing(self, inputs: tuple[tuple[Any, ...], dict[str, Any]] | None) -> list[str]:
        """Return the norms whose running statistics a call changes, by name; they are put back."""
        found: list[str] = []
        with sandbox(self._case):
            kept = Values(list(self.state.items()))
            for _ in self.calls(inputs):
                names = [name.rpartition(".") for name, *_ in kept.changed()]
                found = [path for path, _, name in names if name in _STATISTICS]
            kept.restore()
        return list(dict.fromkeys(found))

    def written_in_train_mode(self) -> list[str]:
        """Return the norms that are in train mode by what is written in it; names as far as it has any."""
        if self.is_program:
            return list(dict.fromkeys(_of_program(self.given)))
        graph: Any = getattr(getattr(self.given, "model_proto", self.given), "graph", None)
        if hasattr(graph, "node"):
            return [node.name for node in graph.node if _of_onnx(node)]
        if isinstance(self.module, torch.jit.ScriptModule):
            kinds = {name: getattr(module, "original_name", "") for name, module in self.module.named_modules()}
            modules = dict(self.module.named_modules())
            return [name for name, kind in kinds.items() if "BatchNorm" in kind and modules[name].training]
        return []


def _of_program(program: Any) -> Iterator[str]:
    signature = program.graph_signature
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or "batch_norm" not in schema.name:
            continue
        given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
        mean: Any = given.get("running_mean")
        # Without running statistics the batch's are used in every mode, as instance norm is written too.
        if given.get("training") is True and mean is not None:
            name = signature.inputs_to_buffers.get(getattr(mean, "name", ""), "")
            yield name.rpartition(".")[0]


def _of_onnx(node: Any) -> bool:
    if node.op_type != "BatchNormalization":
        return False
    return any(attribute.name == "training_mode" and attribute.i == 1 for attribute in node.attribute)


def _bare(name: str) -> str:
    return name.removeprefix("module.")


def exported_anew(model: nn.Module, inputs: tuple[tuple[Any, ...], Mapping[str, Any]]) -> Any:
    """Export a model that is in eval mode, for inputs of these shapes."""
    args, kwargs = inputs
    with quiet():
        return torch.export.export(model, args, dict(kwargs), strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Let torch's notices about its own exporters be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
