"""Find batch norms whose scale and shift may be taken into the linear layer before or after them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from normscope.modules.call import run
from normscope.modules.state import traceless
from normscope.surgery._graph import Flow, flow
from normscope.surgery._sites import BATCH, Site, sites, why_hooked, why_opaque
from normscope.surgery.absorb import LINEAR, channels

MISSING = object()


@dataclass(frozen=True)
class Pair:
    """A batch norm and the linear layer that is to take it in.

    Attributes:
        norm: The batch norm.
        linear: The linear or convolutional layer.
        order: Whether the linear layer stands ``"before"`` or ``"after"`` the norm.
        input: What the first of the two was given with the example, if there was one.
    """

    norm: Site
    linear: Site
    order: Literal["before", "after"]
    input: Tensor | None


@dataclass
class Search:
    """The model's flow and what each layer was given.

    Attributes:
        flow: The flow, or None and ``unseen`` says why.
        unseen: Why the flow could not be seen.
        inputs: First input of each module of interest with the example, by name.
    """

    model: nn.Module
    flow: Flow | None
    unseen: str
    inputs: Mapping[str, Tensor]
    by_path: Mapping[str, Site]
    holders: Counter[int]

    def pair(self, norm: Site, order: Literal["before", "after"]) -> Pair | str:
        """Return the pair of a norm and the layer before or after it, or why there is none."""
        seen = self.flow
        if seen is None:
            return self.unseen if self.unseen.startswith("give") else f"what the model does was not seen: {self.unseen}"
        if not seen.calls[norm.path]:
            return f"is not called by the model, or only inside a module of torch's ({seen.seen_by})"
        if seen.calls[norm.path] > 1:
            return f"is called {seen.calls[norm.path]} times in one forward"
        if norm.path in seen.several:
            return "is called with more than its input: a mask, lengths or a population"
        if order == "before":
            first, second = seen.source.get(norm.path, "(nothing)"), norm.path
            if first not in self.by_path or not isinstance(self.by_path[first].module, tuple(LINEAR)):
                return f"its input comes from {_words(first)}, not from a linear layer or convolution"
            other = first
        else:
            readers = seen.readers.get(norm.path, [])
            if len(readers) != 1 or readers[0] not in self.by_path:
                return f"its output goes to {_words(*readers)}, not to one linear layer or convolution alone"
            other = readers[0]
            if not isinstance(self.by_path[other].module, tuple(LINEAR)):
                return f"its output goes to {other}, which is no linear layer or convolution"
            first, second = norm.path, other
        if seen.calls[other] > 1:
            return f"{other} is called {seen.calls[other]} times in one forward"
        if seen.readers.get(first) != [second]:
            return f"the output of {first} is used more than once: by {_words(*seen.readers.get(first, []))}"
        if seen.source.get(second) != first:
            return f"{second} has another input than the output of {first}"
        linear = self.by_path[other]
        return self._fitting(norm, linear, order, self.inputs.get(first)) or Pair(
            norm, linear, order, self.inputs.get(first)
        )

    def _fitting(self, norm: Site, linear: Site, order: str, given: Tensor | None) -> str | None:
        seen, module = self.flow, linear.module
        assert seen is not None
        for site in (norm, linear):
            loose = [name for name in seen.loose if name.rpartition(".")[0] == site.path]
            if loose:
                return f"{', '.join(loose)} is read outside its module"
            held = [n for n, p in site.module.named_parameters(recurse=False) if self.holders[id(p)] > 1]
            if held:
                return f"{site.path}.{held[0]} is tied to a parameter of another module"
            if hooked := why_hooked(site.module):
                return f"{site.path} {hooked}"
        if is_parametrized(module) or set(module._parameters) != {"weight", "bias"}:
            return f"{linear.path} is parametrised or reparametrised: its weight is computed"
        if type(module) not in LINEAR:
            return f"{linear.path} is a {type(module).__name__}, a subclass that may compute something else"
        if type(norm.module) not in BATCH:
            return f"{norm.path} is a {type(norm.module).__name__}, a subclass that may compute something else"
        if channels(module, into=order == "after") != norm.module.num_features:
            return f"{linear.path} and the norm differ in channels: the norm acts on another axis"
        dims, rank = LINEAR[type(module)], BATCH[type(norm.module)]
        if dims and rank not in (None, dims):
            return f"{type(module).__name__} and {type(norm.module).__name__} differ in dimensions"
        if given is None and not dims:
            return (
                f"{linear.path} acts on the last axis, the norm on the second: give an example to show that it is one"
            )
        if given is not None and given.ndim != dims + 2:
            what = "the norm acts on another axis than the linear layer" if not dims else "is not batched"
            return f"the input has {given.ndim} axes: {what}"
        return None


def search(model: nn.Module, example: Any = MISSING) -> Search:
    """See the model's flow and, with an example, what every layer is given; the model is left as it was."""
    found = sites(model)
    chosen = {s.module: s for s in found if isinstance(s.module, (*BATCH, *LINEAR))}
    seen, unseen = flow(model, {module: site.path for module, site in chosen.items()}, example, MISSING)
    inputs: dict[str, Tensor] = {}
    if example is not MISSING:
        with traceless(model):
            for module, site in chosen.items():

                def look(_: nn.Module, args: tuple[Any, ...], path: str = site.path) -> None:
                    if args and isinstance(args[0], Tensor):
                        inputs.setdefault(path, args[0].detach().clone())

                module.register_forward_pre_hook(look)
            run(model, example)
    holders = Counter(id(p) for s in found for p in s.module.parameters(recurse=False))
    return Search(model, seen, unseen, inputs, {site.path: site for site in chosen.values()}, holders)


def why_not_fixed(site: Site) -> str | None:
    """Say why a norm is no fixed scale and shift per channel, or None if it is one."""
    module = site.module
    if not isinstance(module, tuple(BATCH)):
        return f"{type(module).__name__} takes its statistics from each sample: there is no fixed scale to fold"
    if opaque := why_opaque(module):
        return opaque
    if module.running_mean is None or module.running_var is None:
        return "has no running statistics: it normalizes with those of each batch"
    if getattr(module, "use_running", None) is False:
        return "is not to use its running statistics: it normalizes with those of each batch"
    if not site.slots:
        return "is the model itself"
    return None


def _words(*names: str) -> str:
    return " and ".join(name.strip("()") for name in names) or "nothing"
