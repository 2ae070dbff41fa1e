"""The state with which a training step begins, its parameters laid out in flat buffers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from normscope.modules.reach import Reach
from normscope.modules.rewind import Rewind
from normscope.modules.rng import RngState
from normscope.modules.tree import walk
from normscope.probes._pass_conditions import PassConditions

_ALIGN = 64  # bytes: each parameter begins at a cache line, as it would on its own


@dataclass(eq=False, slots=True)
class Slot:
    """Where one parameter lies in the flat buffers.

    Attributes:
        name: Qualified name under which the parameter is first registered.
        parameter: The user's own parameter.
        places: Every module and attribute that holds it; more than one if the weight is shared.
        kind: Index of the flat buffer.
        at: First element in that buffer.
        trainable: Whether it required a gradient when the step began.
    """

    name: str
    parameter: Parameter
    places: list[tuple[Module, str]]
    kind: int
    at: int
    trainable: bool

    def padding(self) -> int:
        """Number of unused elements up to the next parameter."""
        return -self.parameter.numel() % _line(self.parameter)

    def of(self, flat: Sequence[Tensor]) -> Tensor:
        """View this parameter, in its own shape and memory layout, in flat buffers."""
        part = flat[self.kind][self.at : self.at + self.parameter.numel()]
        if self.parameter.is_contiguous():
            return part.view(self.parameter.shape)
        # A dense layout such as channels_last: the same strides over the same number of elements.
        return part.as_strided(self.parameter.shape, _dense_strides(self.parameter), part.storage_offset())


def homes(layer: Module) -> set[Module]:
    """Return the modules that hold a layer's own parameters: the layer, and its parametrizations."""
    hidden = layer._modules.get("parametrizations")
    return {layer, *(hidden.modules() if hidden is not None else ())}


def _line(tensor: Tensor) -> int:
    return max(1, _ALIGN // tensor.element_size())


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty_like(tensor, device="meta").stride()


def _kind(parameter: Parameter | None) -> tuple[torch.dtype, torch.device, bool] | None:
    return None if parameter is None else (parameter.dtype, parameter.device, parameter.requires_grad)


class Layout:
    """Modules and parameters of a model, and where each parameter lies in flat buffers.

    A layout is valid as long as ``fits`` returns True, so it is made once and not at every step.

    Attributes:
        modules: Every module once.
        slots: Where each parameter lies.
        sizes: Number of elements of each flat buffer, by dtype, device and whether its parameters are trainable.
        trainable_kinds: Indices of the flat buffers of trainable parameters.
    """

    def __init__(self, model: Module) -> None:
        self._named = walk(model)
        self.modules = [module for _, module in self._named]
        self._parameters = [
            (module, key, parameter, _kind(parameter))
            for module in self.modules
            for key, parameter in module._parameters.items()
        ]
        self.slots, self.sizes = self._lay_out()
        self.trainable_kinds = [index for index, (_, _, trainable) in enumerate(self.sizes) if trainable]

        self._padded = [slot.padding() > 0 for slot in self.slots]
        self._splits: list[list[int]] = [[] for _ in self.sizes]
        for slot in self.slots:
            self._splits[slot.kind] += [slot.parameter.numel(), *([slot.padding()] if slot.padding() else ())]

    def fits(self, model: Module) -> bool:
        """Whether the model still has these modules and parameters, of the same kinds."""
        now = walk(model)
        return (
            len(now) == len(self._named)
            and all(a is b for (_, a), b in zip(now, self.modules, strict=True))
            and sum(len(module._parameters) for module in self.modules) == len(self._parameters)
            and all(
                module._parameters.get(key) is parameter and _kind(parameter) == kind
                for module, key, parameter, kind in self._parameters
            )
        )

    def _lay_out(self) -> tuple[list[Slot], dict[tuple[torch.dtype, torch.device, bool], int]]:
        slots: dict[int, Slot] = {}
        sizes: dict[tuple[torch.dtype, torch.device, bool], int] = {}
        for name, module in self._named:
            for key, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in slots:
                    kind = (parameter.dtype, parameter.device, parameter.requires_grad)
                    at = sizes.setdefault(kind, 0)
                    sizes[kind] = at + parameter.numel() + -parameter.numel() % _line(parameter)
                    slots[id(parameter)] = Slot(
                        f"{name}.{key}".lstrip("."), parameter, [], list(sizes).index(kind), at, kind[2]
                    )
                slots[id(parameter)].places.append((module, key))
        return list(slots.values()), sizes

    def views(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """View every parameter in flat buffers."""
        parts = [iter(whole.split(sizes)) for whole, sizes in zip(flat, self._splits, strict=True)]
        found = []
        for slot, padded in zip(self.slots, self._padded, strict=True):
            part = next(parts[slot.kind])
            if padded:
                next(parts[slot.kind])
            found.append(part.view(slot.parameter.shape) if slot.parameter.is_contiguous() else slot.of(flat))
        return found


class StartState:
    """Parameters, buffers, random streams, modes and autocast settings as they are when a step begins.

    Cost: one copy of parameters and buffers, and of what the loss reaches beside them.

    Args:
        model: The model.
        layout: Its layout if it is known to fit.
        reach: What the loss reaches.

    Attributes:
        layout: Where the parameters lie.
        rng: The random streams.
        buffers: Each buffer's places (module and key) with a copy of its value.
        slots: The parameters, in the order of registration.
        trainable_kinds: Indices of the flat buffers that hold trainable parameters.
        flat: Copies of all parameters in flat buffers.
        conditions: Modes and autocast settings, as they are now until they hear the user's forward pass.
        reach: As given; a reach of nothing if None.
        beside: What the loss reaches beside parameters and buffers.

    Raises:
        UsageError: The loss takes from an iterator, which cannot be put back.
    """

    def __init__(self, model: Module, layout: Layout | None = None, reach: Reach | None = None) -> None:
        self.reach = reach if reach is not None else Reach({})
        self.beside = Rewind(self.reach, model)
        self.layout = layout = layout if layout is not None else Layout(model)
        self.rng = RngState(model)
        self.buffers: list[tuple[list[tuple[Module, str]], Tensor]] = []
        shared: dict[int, list[tuple[Module, str]]] = {}
        for module in layout.modules:
            for key, buffer in module._buffers.items():
                if buffer is None:
                    continue
                if id(buffer) not in shared:
                    shared[id(buffer)] = []
                    self.buffers.append((shared[id(buffer)], buffer.detach().clone()))
                shared[id(buffer)].append((module, key))
        self.slots, self.trainable_kinds = layout.slots, layout.trainable_kinds
        self.flat = [torch.zeros(size, dtype=dtype, device=device) for (dtype, device, _), size in layout.sizes.items()]
        copy_all(layout.views(self.flat), [slot.parameter for slot in self.slots])
        self.conditions = PassConditions(layout.modules, {device.type for _, device, _ in layout.sizes})

    def gather(self, slots: Sequence[Slot], parts: Sequence[Tensor | None]) -> list[Tensor]:
        """Join the gradients of all trainable parameters, in the layout of the flat buffers."""
        pieces: list[list[Tensor]] = [[] for _ in self.flat]
        for slot, part in zip(slots, parts, strict=True):
            whole = dense(None if part is None else part.detach(), slot.parameter)
            if slot.parameter.is_contiguous():
                pieces[slot.kind].append(whole.reshape(-1))
            else:
                laid_out = torch.empty_like(slot.parameter).copy_(whole)
                pieces[slot.kind].append(laid_out.as_strided((whole.numel(),), (1,)))
            if rest := slot.padding():
                pieces[slot.kind].append(whole.new_zeros(rest))
        return [torch.cat(pieces[kind]) for kind in self.trainable_kinds]

    def gathered(self, gradients: Mapping[int, Tensor]) -> list[Tensor]:
        """Lay out gradients, keyed by ``id`` of the user's parameter, as ``gather`` does."""
        slots = [slot for slot in self.slots if slot.trainable]
        return self.gather(slots, [gradients.get(id(slot.parameter)) for slot in slots])


def dense(part: Tensor | None, like: Tensor) -> Tensor:
    """Return a gradient as a strided tensor, zeros where there is none."""
    if part is None:
        return torch.zeros_like(like)
    return part if part.layout == torch.strided else part.to_dense()


@torch.no_grad()
def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensor by tensor, in one call where the kinds allow it."""
    if targets:
        torch._foreach_copy_(list(targets), [source.detach() for source in sources])
