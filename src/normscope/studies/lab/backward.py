"""The backward pass of batch norm, measured on the gradients that really arrive in a network."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope import ops
from normscope.records import Record
from normscope.studies.lab.data import Split
from normscope.studies.lab.train import loss_fn


def measure(cell: str, step: int, model: nn.Module, note: nn.Module, data: Split, picked: Tensor) -> Iterator[Record]:
    """Compare, on one batch, the rescaling rule, the full formula and automatic differentiation in every layer.

    Records, probe ``backward_terms``, one site a normalization: ``error`` and ``cosine`` of the rescaling rule against
    the exact input gradient; ``full_error`` of the sum of the three terms; ``difference_error`` of automatic
    differentiation against a central difference along one direction; ``norm_error`` of the identity for the gradient's
    length (Santurkar et al. 2018, theorem 4.1); ``mean_share`` and ``variance_share`` of the gradient's energy that the
    terms remove; ``weight_error`` and ``weight_cosine`` of the weight gradient in front, if all layers follow the rule.

    Args:
        cell: Name of the run in its records.
        step: Steps taken.
        model: A network of blocks with batch norm; left as it was.
        note: One of the same shape whose normalizations follow the rescaling rule; takes the weights of ``model``.
        data: Where the batch comes from.
        picked: Indices of the batch (m,).
    """
    batch = (data.x_train[picked], data.y_train[picked])
    note.load_state_dict(model.state_dict())
    model, arriving = _arriving(model, batch)
    note.zero_grad()
    loss_fn(note.train(), batch).backward()
    for site, (x, upstream) in arriving.items():
        norm = model.get_submodule(f"{site}.norm")
        assert isinstance(norm, _BatchNorm)
        values = errors_of_layer(x, upstream, norm.weight.detach(), norm.eps)
        exact, wrong = (net.get_parameter(f"{site}.linear.weight").grad for net in (model, note))
        assert exact is not None
        assert wrong is not None
        values["weight_error"] = _relative(wrong, exact)
        values["weight_cosine"] = _cosine(wrong, exact)
        for name, value in values.items():
            yield Record(cell, step, "backward_terms", f"{site}.norm", name, value)


def measure_affine(cell: str, model: nn.Module, data: Split, picked: Tensor) -> Iterator[Record]:
    """Compare, on one batch, what the note says of the gradients of gamma and beta with automatic differentiation.

    Records, probe ``backward_terms``, one site a normalization: those of ``errors_of_affine``.

    Args:
        cell: Name of the run in its records.
        model: A network of blocks with batch norm; left as it was.
        data: Where the batch comes from.
        picked: Indices of the batch (m,).
    """
    model, arriving = _arriving(model, (data.x_train[picked], data.y_train[picked]))
    for site, (x, upstream) in arriving.items():
        norm = model.get_submodule(f"{site}.norm")
        assert isinstance(norm, _BatchNorm)
        for name, value in errors_of_affine(x, upstream, norm.weight.detach(), norm.bias.detach(), norm.eps).items():
            yield Record(cell, 0, "backward_terms", f"{site}.norm", name, value)


def _arriving(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]:
    """Return a copy of a model with gradients, and by block what its norm is given and the gradient that arrives."""
    model = copy.deepcopy(model).train()  # running statistics move in a forward pass
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[0].retain_grad()
            output.retain_grad()
            seen[name] = (inputs[0], output)

        return hook

    sites = [name.removesuffix(".norm") for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for site in sites:
        model.get_submodule(f"{site}.norm").register_forward_hook(look(site))
    loss_fn(model, batch).backward()
    arriving = {}
    for site in sites:
        x, y = seen[site]
        assert y.grad is not None
        arriving[site] = (x.detach(), y.grad)
    return model, arriving


def errors_of_layer(x: Tensor, upstream: Tensor, weight: Tensor, eps: float) -> dict[str, float]:
    """Return what one layer shows; ``x`` and ``upstream`` of shape (N, C, *), float64."""
    axes = [0, *range(2, x.dim())]
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    leaf = x.clone().requires_grad_()

    def forward(z: Tensor) -> Tensor:
        centred = z - z.mean(axes, keepdim=True)
        scale = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
        return centred * scale * weight.view(per_channel)

    (exact,) = torch.autograd.grad(forward(leaf), leaf, upstream)
    terms = ops.batch_norm_backward_terms(upstream, x, weight, eps)
    total = terms.rescale + terms.mean_coupling + terms.variance_coupling
    # A direction of its own for every layer's shape, the same in every run.
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.shape[0]), dtype=x.dtype).to(x.device)
    h = 1e-5 * float(x.std()) / float(direction.std())
    slope = float((upstream * (forward(x + h * direction) - forward(x - h * direction))).sum()) / (2 * h)
    count = x.numel() // x.shape[1]
    variance = x.var(axes, correction=0, keepdim=True)
    normalized = (x - x.mean(axes, keepdim=True)) * (variance + eps).rsqrt()
    gain = (weight.view(per_channel) ** 2 / (variance + eps)).expand_as(x).amax(axes)
    energy = (gain * upstream.square().sum(axes)).sum()
    by_mean = (gain * upstream.sum(axes).square() / count).sum()
    along = (normalized * upstream).sum(axes).square() / count
    by_variance = (gain * along).sum()
    # Theorem 4.1 has epsilon = 0; with it the squared length of the normalized values is m var / (var + eps).
    shortfall = 2 - (variance / (variance + eps)).amax(axes)
    length = energy - by_mean - (gain * along * shortfall).sum()
    return {
        "error": _relative(terms.rescale, exact),
        "cosine": _cosine(terms.rescale, exact),
        "full_error": float((total - exact).abs().max() / exact.abs().max()),
        "difference_error": abs(slope - float((exact * direction).sum())) / float(exact.norm() * direction.norm()),
        "norm_error": float(abs(length - exact.square().sum()) / exact.square().sum()),
        "mean_share": float(by_mean / energy),
        "variance_share": float(by_variance / energy),
    }


def errors_of_affine(x: Tensor, upstream: Tensor, weight: Tensor, bias: Tensor, eps: float) -> dict[str, float]:
    """Return how far formulas for the gradients of gamma and beta are from automatic differentiation.

    ``gamma_error`` of the sum over the batch of normalized values times output gradient; ``beta_error`` of the sum of
    the output gradient; ``beta_row_error`` of the output gradient without a sum, as the root mean square over its rows.

    Args:
        x: Input (N, C, *), float64.
        upstream: Gradient of the output, of the same shape.
        weight: Gamma (C,).
        bias: Beta (C,).
        eps: That of the layer.
    """
    axes = [0, *range(2, x.dim())]
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    gamma, beta = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    centred = x - x.mean(axes, keepdim=True)
    normalized = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    out = normalized * gamma.view(per_channel) + beta.view(per_channel)
    of_gamma, of_beta = torch.autograd.grad(out, (gamma, beta), upstream)
    rows = upstream.transpose(0, 1).flatten(1)
    off = (rows - of_beta[:, None]).square().sum(0).mean().sqrt()
    return {
        "gamma_error": _relative((normalized * upstream).sum(axes), of_gamma),
        "beta_error": _relative(rows.sum(1), of_beta),
        "beta_row_error": float(off / of_beta.norm()),
    }


def _relative(wrong: Tensor, right: Tensor) -> float:
    return float((wrong - right).norm() / right.norm())


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))
