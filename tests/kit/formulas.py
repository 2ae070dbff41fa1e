"""What each layer computes, written out from its paper in float64: sums and roots alone, one set of values at a time.

Nothing of the package is used here. Autograd differentiates the formulas, so they are the oracle of the backward too.
"""

import math
from typing import Any

import torch
from scipy import integrate, special
from torch import Tensor, nn

F64 = torch.float64


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """View ``(C,)`` so that it broadcasts over ``(N, C, *)``."""
    return values.view(1, -1, *(1,) * (x.ndim - 2))


class Formula:
    """A layer's parameters and buffers in float64, and what it does with them.

    Args:
        layer: The layer, as it is before its first forward.
        case: The options that it was made with.
    """

    #: Where the last output is so near the kink of its activation that rounding decides its derivative.
    at_kink: Tensor | None = None

    def __init__(self, layer: nn.Module, case: dict[str, Any]) -> None:
        self.case = case
        self.parameters = {n: p.detach().to(F64).clone().requires_grad_() for n, p in layer.named_parameters()}
        self.buffers = {n: b.detach().to(F64).clone() for n, b in layer.named_buffers() if n != "pending"}

    def __call__(self, x: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def affine(self, xhat: Tensor) -> Tensor:
        """Scale and shift, each channel by its own."""
        for name, combine in (("weight", torch.mul), ("bias", torch.add)):
            if name in self.parameters:
                xhat = combine(xhat, per_channel(self.parameters[name], xhat))
        return xhat

    def average(self, name: str, batch: Tensor, share: float) -> None:
        """Move a running average."""
        self.buffers[name] = (1 - share) * self.buffers[name] + share * batch.detach()

    def share(self) -> float:
        """Return the share of the newest batch: the momentum, or one over the number of batches."""
        momentum = self.case["momentum"]
        return 1 / (float(self.buffers["num_batches_tracked"]) + 1) if momentum is None else momentum


class BatchNormFormula(Formula):
    """Batch norm with every option."""

    eps = 0.05

    def __init__(self, layer: nn.Module, case: dict[str, Any]) -> None:
        super().__init__(layer, case)
        self.waiting: list[list[Tensor]] = []

    def __call__(self, x: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
        counts = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand_as(x)
        x = torch.where(counts, x, 0.0)
        tracks = self.case["track_running_stats"]
        use = self.case["use_running"]
        if tracks and (not training if use is None else use):
            y = self.standardized(x, self.buffers["running_mean"], self.buffers["running_var"])
        else:
            y = self.by_batch(x, counts, training)
        if training and tracks and self.case["update_statistics"]:
            self.track([x[:, c][counts[:, c]] for c in range(x.shape[1])])
        y = torch.where(counts, self.affine(y), 0.0)
        self.at_kink = counts & (y.abs() < 1e-3 * y.abs().max()) if self.case["activation"] else None
        slope = {None: 1.0, "relu": 0.0, "leaky_relu": self.case["negative_slope"]}[self.case["activation"]]
        return torch.where(y > 0, y, slope * y)

    def standardized(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return (x - per_channel(mean, x)) / per_channel(var + self.eps, x).sqrt()

    def by_batch(self, x: Tensor, counts: Tensor, training: bool) -> Tensor:
        if not (training and self.case["statistics"] == "ghost"):
            mean, var = self.moments(x, counts)
            xhat = self.standardized(x, mean, var)
            return self.renormed(xhat, mean, var) if training and self.case["statistics"] == "renorm" else xhat
        size, positions = self.case["group_size"], x[0, 0].numel()
        starts = list(range(0, len(x), size))
        if len(starts) > 1 and (len(x) - starts[-1]) * positions == 1:  # one value has no variance
            starts.pop()
        groups = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(x)], strict=True)]
        return torch.cat([self.standardized(x[g], *self.moments(x[g], counts[g])) for g in groups])

    def moments(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        means, variances = [], []
        for c in range(x.shape[1]):
            values = x[:, c][counts[:, c]]
            n = max(len(values), 1)
            means.append(values.sum() / n)
            variances.append(((values - means[-1]) ** 2).sum() / n)
        return torch.stack(means), torch.stack(variances)

    def renormed(self, xhat: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Correct toward the running statistics: bounds 2 and 1, risen in two updates."""
        risen = min(float(self.buffers["num_batches_tracked"]) / 2, 1.0)
        running = (self.buffers["running_var"] + self.eps).sqrt()
        r = ((var.detach() + self.eps).sqrt() / running).clamp(1 / (1 + risen), 1 + risen)
        d = ((mean.detach() - self.buffers["running_mean"]) / running).clamp(-risen, risen)
        return xhat * per_channel(r, xhat) + per_channel(d, xhat)

    def track(self, values: list[Tensor]) -> None:
        if any(len(v) < 2 for v in values):
            return
        self.waiting.append(values)
        if len(self.waiting) < self.case["accumulate"]:
            return
        union = [torch.cat(parts) for parts in zip(*self.waiting, strict=True)]
        self.waiting = []
        share = self.share()
        mean = torch.stack([v.sum() / len(v) for v in union])
        m2 = torch.stack([((v - m) ** 2).sum() for v, m in zip(union, mean, strict=True)])
        count = torch.tensor([len(v) - int(self.case["unbiased_variance"]) for v in union])
        self.average("running_mean", mean, share)
        self.average("running_var", m2 / count, share)
        self.buffers["num_batches_tracked"] += 1


class RowNormFormula(Formula):
    """Layer, group and RMS norm: each row of a sample by itself, in training and outside it."""

    eps = 0.05

    def __call__(self, x: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
        kind = self.case["kind"]
        groups = self.case["groups"] if kind == "group" else math.prod(x.shape[: x.ndim - len(self.case["shape"])])
        rows = x.reshape(x.shape[0] * groups if kind == "group" else groups, -1)
        mean = 0.0 if kind == "rms" else rows.sum(1, keepdim=True) / rows.shape[1]
        eps = torch.finfo(torch.promote_types(self.case["dtype"], torch.float32)).eps
        eps = eps if kind == "rms" and self.case["eps"] is None else self.eps
        centred = rows - mean
        xhat = (centred / ((centred**2).sum(1, keepdim=True) / rows.shape[1] + eps).sqrt()).view(x.shape)
        if kind == "group":
            return self.affine(xhat)
        xhat = xhat * self.parameters.get("weight", 1.0)
        return xhat + self.parameters.get("bias", 0.0)


class InstanceNormFormula(Formula):
    """Instance norm: each channel of each sample; outside training by running statistics, if there are some."""

    eps = 0.05

    def __call__(self, x: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
        n = x[0, 0].numel()
        tracks = self.case["track_running_stats"]
        if tracks and not training:
            mean, var = (per_channel(self.buffers[name], x) for name in ("running_mean", "running_var"))
        else:
            flat = x.reshape(*x.shape[:2], -1)
            mean = flat.sum(2) / n
            var = ((flat - mean[..., None]) ** 2).sum(2) / n
            if tracks:
                share = self.share()
                self.average("running_mean", mean.mean(0), share)
                self.average("running_var", (var * n / (n - 1)).mean(0), share)
                self.buffers["num_batches_tracked"] += 1
            mean, var = (v.view(*x.shape[:2], *(1,) * (x.ndim - 2)) for v in (mean, var))
        return self.affine((x - mean) / (var + self.eps).sqrt())


class LpNormFormula(Formula):
    """Lp norm: the mean taken off, divided by an average of the absolute values."""

    eps = 0.05

    def __call__(self, x: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
        tracks = self.case["track_running_stats"]
        if tracks and not training:
            mean, size = self.buffers["running_mean"], self.buffers["running_norm"]
        else:
            columns = x.movedim(1, 0).reshape(x.shape[1], -1)
            mean = columns.sum(1) / columns.shape[1]
            size = self.size(columns - mean[:, None] if self.case["centred"] else columns)
            if tracks:
                share = self.share()
                self.average("running_mean", mean, share)
                self.average("running_norm", size, share)
                self.buffers["num_batches_tracked"] += 1
        return self.affine((x - per_channel(mean, x)) / per_channel(size**2 + self.eps, x).sqrt())

    def size(self, values: Tensor) -> Tensor:
        p, n = self.case["p"], values.shape[1]
        factor = 1.0
        if self.case["gaussian"] and p == 1:
            factor = math.sqrt(math.pi / 2)
        if self.case["gaussian"] and p == math.inf:  # one over the expected maximum of n absolute Gaussian values
            factor = 1 / integrate.quad(lambda t: 1 - special.erf(t / math.sqrt(2)) ** n, 0, 12)[0]
        if p == math.inf:
            return factor * values.abs().amax(1)
        return factor * ((values.abs() ** p).sum(1) / n) ** (1 / p)


class DynamicTanhFormula(Formula):
    """A hyperbolic tangent by exponentials, each value by itself."""

    def __call__(self, x: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
        up = (2 * self.parameters["alpha"] * x).exp()
        squashed = (up - 1) / (up + 1)
        return squashed * self.parameters.get("weight", 1.0) + self.parameters.get("bias", 0.0)


class ScalarFormula(Formula):
    """One number times, or plus, everything."""

    def __call__(self, x: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
        value = {**self.parameters, **self.buffers}["value"]
        return x * value if self.case["kind"] == "gain" else x + value


class WeightStandardizationFormula(Formula):
    """Each unit's weights less their mean, over their norm or standard deviation, times gain and factor."""

    eps = 0.05

    def __call__(self, x: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
        units = x.movedim(self.case["axis"], 0)
        rows = units.reshape(len(units), -1)
        n = rows.shape[1]
        centred = rows - rows.sum(1, keepdim=True) / n
        # With N the fan-in: g (w - mean) / sqrt(N var + eps), and N var is the sum of squares; unscaled, times root N.
        y = 1.7 * centred / ((centred**2).sum(1, keepdim=True) + self.eps).sqrt()
        y = y if self.case["scaled"] else y * math.sqrt(n)
        if "factor" in self.parameters:
            y = y * self.parameters["factor"][:, None]
        return y.view(units.shape).movedim(0, self.case["axis"])
