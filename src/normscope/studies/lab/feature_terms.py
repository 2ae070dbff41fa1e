"""The backward pass of layer norm and RMS norm, on random gradients and on those that arrive in a network."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normscope import ops
from normscope.studies.lab.streams import generator

#: Whether a norm takes the mean away, by its name.
CENTRED = {"layer": True, "rms": False}


def expected_error(norm: str, width: int) -> float:
    """Return the relative error of the rescaling alone for a gradient that knows nothing of the token.

    The other terms take k of d directions away, those of the ones (not in RMS norm) and of the normalized values, in
    which such a gradient has k/d of its energy: sqrt(k/(d-k)).

    Args:
        norm: ``"layer"`` or ``"rms"``.
        width: Features d.
    """
    taken = 1 + CENTRED[norm]
    return math.sqrt(taken / (width - taken))


def errors_of_tokens(
    x: Tensor, upstream: Tensor, weight: Tensor, bias: Tensor, eps: float, norm: str
) -> dict[str, float]:
    """Return how far formulas of the backward pass are from automatic differentiation, over all tokens together.

    ``error`` and ``cosine`` of the rescaling alone, ``gain * upstream / sigma``; ``full_error`` of the sum of the
    terms; ``outer_error`` of the terms of batch norm, with the gain in front of the means; ``mean_share`` and
    ``variance_share``, the shares of the rescaled gradient's energy that each other term removes; ``gamma_error`` and
    ``beta_error`` of the sums over tokens; ``difference_error`` of automatic differentiation against a central
    difference along one direction.

    Args:
        x: Input of the norm (N, d), float64.
        upstream: Gradient of its output (N, d).
        weight: Its gain (d,).
        bias: Its shift (d,); that of an RMS norm is not used.
        eps: That of the norm.
        norm: ``"layer"`` or ``"rms"``.
    """
    leaf, gain, shift = (tensor.clone().requires_grad_() for tensor in (x, weight, bias))

    def forward(z: Tensor) -> Tensor:
        values = _normalized(z, eps, norm) * gain
        return values + shift if CENTRED[norm] else values

    exact, of_gain = torch.autograd.grad(forward(leaf), (leaf, gain), upstream)
    terms = _terms(upstream, x, weight, eps, norm)
    total = terms.rescale + terms.mean_coupling + terms.variance_coupling
    outer = weight * sum(_terms(upstream, x, torch.ones_like(weight), eps, norm))
    normalized = _normalized(x, eps, norm)
    energy = terms.rescale.square().sum()
    found = {
        "error": _relative(terms.rescale, exact),
        "cosine": float((terms.rescale * exact).sum() / (terms.rescale.norm() * exact.norm())),
        "full_error": float((total - exact).abs().max() / exact.abs().max()),
        "outer_error": _relative(outer, exact),
        "mean_share": float(terms.mean_coupling.square().sum() / energy),
        "variance_share": float(terms.variance_coupling.square().sum() / energy),
        "gamma_error": _relative((normalized * upstream).sum(0), of_gain),
        "difference_error": _difference(forward, x, upstream, exact),
    }
    if CENTRED[norm]:
        (of_shift,) = torch.autograd.grad(forward(leaf), shift, upstream)
        found["beta_error"] = _relative(upstream.sum(0), of_shift)
    return found


def random_tokens(seed: int, tokens: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return input, upstream gradient, gain and shift, of which the gradient knows nothing of the others.

    Tokens have means and sizes of their own, gains lie about one and differ by a factor of e.

    Args:
        seed: Of everything that is drawn.
        tokens: Number of rows.
        width: Features of each.
    """
    source = generator(seed, f"tokens:{width}")

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=source)

    x = draw(tokens, width) * (1 + draw(tokens, 1).abs()) + draw(tokens, 1)
    return x, draw(tokens, width), (0.5 * draw(width)).exp(), draw(width)


def arriving(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], sites: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by module, what it is given and the gradient that arrives at its output, each (N, d) over tokens.

    Args:
        model: Left as it was, but for the ``grad`` of its parameters, which are cleared.
        loss: The loss of the model on a batch.
        sites: Names of the modules.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = (inputs[0].detach(), output)

        return hook

    handles = [model.get_submodule(site).register_forward_hook(look(site)) for site in sites]
    try:
        loss(model).backward()
    finally:
        for handle in handles:
            handle.remove()
    model.zero_grad()
    found = {}
    for site, (x, output) in seen.items():
        assert output.grad is not None
        found[site] = (x.flatten(0, -2), output.grad.flatten(0, -2))
    return found


def errors_in_network(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], norm: str
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the name of each layer or RMS norm of a network with what ``errors_of_tokens`` finds there.

    Args:
        model: In float64; left as it was, but for the ``grad`` of its parameters, which are cleared.
        loss: The loss of the model on a batch.
        norm: ``"layer"`` or ``"rms"``, the kind of its norms.
    """
    norms = {name: each for name, each in model.named_modules() if isinstance(each, nn.LayerNorm | nn.RMSNorm)}
    for site, (x, upstream) in arriving(model, loss, list(norms)).items():
        weight = norms[site].weight.detach()
        bias = getattr(norms[site], "bias", None)
        shift = torch.zeros_like(weight) if bias is None else bias.detach()
        yield site, errors_of_tokens(x, upstream, weight, shift, norms[site].eps or 0.0, norm)


def _terms(upstream: Tensor, x: Tensor, weight: Tensor, eps: float, norm: str) -> ops.GradientTerms:
    split = ops.layer_norm_backward_terms if CENTRED[norm] else ops.rms_norm_backward_terms
    return split(upstream, x, (x.shape[-1],), weight, eps)


def _normalized(x: Tensor, eps: float, norm: str) -> Tensor:
    """Return the normalized values by elementary operations, which automatic differentiation goes through."""
    centred = x - x.mean(-1, keepdim=True) if CENTRED[norm] else x
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()


def _difference(forward: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor, exact: Tensor) -> float:
    # A direction of its own for every shape, the same in every run.
    source = torch.Generator().manual_seed(x.shape[0])
    direction = torch.randn(x.shape, generator=source, dtype=x.dtype).to(x.device)
    with torch.no_grad():
        h = 1e-5 * float(x.std()) / float(direction.std())
        slope = float((upstream * (forward(x + h * direction) - forward(x - h * direction))).sum()) / (2 * h)
    return abs(slope - float((exact * direction).sum())) / float(exact.norm() * direction.norm())


def _relative(wrong: Tensor, right: Tensor) -> float:
    return float((wrong - right).norm() / right.norm())
