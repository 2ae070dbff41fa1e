"""How gradients fare on their way through the layers."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from normscope._errors import UsageError
from normscope.probes._probe import AbstractProbe, Step
from normscope.probes._sites import chosen, own_parameters, weight_layers
from normscope.records import Record


class GradientFlow(AbstractProbe):
    r"""Gradient norm by layer, and growth of the gradient per layer.

    ## Measures
    From the user's own pass, for each layer that bears weight (Linear, Conv, ...):

    - ``norm``: :math:`\lVert \partial L / \partial W_l \rVert_2` over the layer's own parameters, right before the
      optimizer's update (without optimizer: as the step ends);
    - ``output_norm``: root mean square of :math:`\partial L / \partial h_l` over all elements of the layer's output
      :math:`h_l`, its pre-activation; over all of its calls if it is called several times.

    For the whole model, ``growth``: :math:`\lambda = \exp(-b)`, with :math:`b` the least-squares slope of the log mean
    square of :math:`\partial L / \partial h_l` on the layer index :math:`l`: the factor by which the squared gradient
    grows per layer on its way to the input. Layers are counted in the order of their first use. For batch norm and
    ReLU, Gaussian weights and a large batch it is :math:`\pi/(\pi-1) = 1.467` at initialization.

    ## Cost
    One reduction for each layer's output gradient and parameter gradient, one copy to the host.

    ## Reads wrongly when
    Gradients carry a loss scale (mixed precision), or were clipped before the update: then ``norm`` has it too. With
    several backward passes through one forward pass, squares are pooled over the passes. ``growth`` assumes that
    layers follow one another: with branches or skips the order of first use is not a depth.

    Args:
        sites: Qualified names of the layers; all that bear weight if None.
        trim: How many layers to leave out of ``growth`` at each end, or at the (input, output) end. The first
            layers see the input's and the last the loss's own distribution.
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "gradient_flow"
    SOURCES = (
        "Yang et al. 2019, A Mean Field Theory of Batch Normalization, theorems 7-9 (arXiv:1902.08129)",
        "Luther 2020, Why Batch Norm Causes Exploding Gradients",
    )

    def __init__(
        self,
        sites: Sequence[str] | None = None,
        *,
        trim: int | tuple[int, int] = 0,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        self.sites = None if sites is None else tuple(sites)
        self.trim = (trim, trim) if isinstance(trim, int) else tuple(trim)
        if min(self.trim) < 0:
            raise UsageError(f"{self.CODE}: trim={trim} must not be negative")

    def watch(self, step: Step) -> None:
        """Count calls of the layers, and reduce each output gradient as it passes."""
        layers = step.modules(weight_layers) if self.sites is None else chosen(step.model, self.sites)
        notes = step.notes(self)
        notes["layers"], notes["norms"] = layers, {}
        squares: dict[str, list[tuple[Tensor, int]]] = {}
        notes["squares"] = squares
        for site, module in layers.items():
            self._watch_site(step, site, module, squares)

    def _watch_site(self, step: Step, site: str, module: Module, squares: dict[str, list[tuple[Tensor, int]]]) -> None:
        # The key is made at the first forward call: the dict's order is the order of first use.
        def called(_: Tensor) -> None:
            squares.setdefault(site, [])

        step.on_output(self, module, called)
        step.on_output_gradient(
            self,
            module,
            lambda gradient: squares.setdefault(site, []).append((_norm(gradient), gradient.numel())),
        )

    def before_update(self, step: Step, parameters: Mapping[int, Parameter]) -> None:
        """Take the norms of the gradients that this optimizer is about to use."""
        notes = step.notes(self)
        self._take_norms(
            [
                parameter
                for module in notes["layers"].values()
                for _, parameter in own_parameters(module)
                if id(parameter) in parameters
            ],
            notes["norms"],
        )

    @staticmethod
    def _take_norms(parameters: Sequence[Parameter], norms: dict[int, Tensor]) -> None:
        held = {id(parameter): parameter.grad for parameter in parameters if parameter.grad is not None}
        norms.update({key: _norm(gradient.detach()) for key, gradient in held.items()})

    def read(self, step: Step) -> Iterator[Record]:
        """Yield ``norm`` and ``output_norm`` by layer, in the order of first use, and ``growth``."""
        notes = step.notes(self)
        layers: dict[str, Module] = notes["layers"]
        squares: dict[str, list[tuple[Tensor, int]]] = notes["squares"]
        norms: dict[int, Tensor] = notes["norms"]
        unread = [p for module in layers.values() for _, p in own_parameters(module) if id(p) not in norms]
        self._take_norms(unread, norms)
        means: list[float] = []
        for site in [*squares, *(site for site in layers if site not in squares)]:
            own = [norms[id(p)] for _, p in own_parameters(layers[site]) if id(p) in norms]
            if own:
                yield self.record(step, site, "norm", math.hypot(*map(float, own)))
            passes = squares.get(site)
            if passes:
                total = math.fsum(float(root) ** 2 for root, _ in passes)
                means.append(total / sum(count for _, count in passes))
                yield self.record(step, site, "output_norm", math.sqrt(means[-1]))
        yield self.record(step, "", "growth", self._growth(means))

    def _growth(self, means: Sequence[float]) -> float:
        first, last = self.trim
        logs = [math.log(mean) if mean > 0 else -math.inf for mean in means[first : len(means) - last]]
        if len(logs) < 2 or not all(map(math.isfinite, logs)):
            return math.nan
        centre = (len(logs) - 1) / 2
        slope = sum((index - centre) * log for index, log in enumerate(logs))
        return math.exp(-slope / sum((index - centre) ** 2 for index in range(len(logs))))


def _norm(gradient: Tensor) -> Tensor:
    if gradient.layout != torch.strided:
        gradient = gradient.coalesce().values()
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32  # a half would overflow in the sum
    return torch.linalg.vector_norm(gradient, dtype=wide)
