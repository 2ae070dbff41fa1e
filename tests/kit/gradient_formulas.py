"""Forward functions with their gradient formulas, right and wrong, which work on arrays of NumPy and on tensors."""

from typing import NamedTuple

import numpy as np
import torch

EPS = 1e-5


def mean(x, axes):
    """Return the mean over axes, which stay."""
    return x.mean(axes, keepdim=True) if isinstance(x, torch.Tensor) else x.mean(axes, keepdims=True)


def total(x, axes):
    """Return the sum over axes, which stay."""
    return x.sum(axes, keepdim=True) if isinstance(x, torch.Tensor) else x.sum(axes, keepdims=True)


def exp(x):
    return torch.exp(x) if isinstance(x, torch.Tensor) else np.exp(x)


def log(x):
    return torch.log(x) if isinstance(x, torch.Tensor) else np.log(x)


def tanh(x):
    return torch.tanh(x) if isinstance(x, torch.Tensor) else np.tanh(x)


def positive(x):
    return x * (x > 0)


class Formula(NamedTuple):
    """A forward function, a gradient formula, the shapes of the inputs, and what the answer must name.

    Attributes:
        forward: Of arrays or tensors.
        backward: Of the incoming gradient and the inputs.
        shapes: Shapes of the inputs.
        wrong: Argument whose gradient is wrong; empty if all are right.
        named: Words of which the explanation must hold one or more; all of a tuple.
    """

    forward: object
    backward: object
    shapes: tuple
    wrong: str = ""
    named: tuple = ()


# -- normalizations ---------------------------------------------------------------------------------------------------


def parts(x, axes, eps=EPS, ddof=0):
    """Return the centred input, 1/sigma and the normalized input."""
    centred = x - mean(x, axes)
    count = x.size if isinstance(x, np.ndarray) else x.numel()
    count //= mean(x, axes).size if isinstance(x, np.ndarray) else mean(x, axes).numel()
    r = (total(centred**2, axes) / (count - ddof) + eps) ** -0.5
    return centred, r, centred * r, count


def norm(axes, ddof=0):
    """Return the forward function of a norm over axes with gain and bias."""

    def forward(x, gamma, beta):
        return gamma * parts(x, axes, ddof=ddof)[2] + beta

    return forward


def norm_gradient(axes, over, *, ddof=0, eps=EPS):
    """Return the right gradients of a norm; gain and bias are shared over the axes ``over``."""

    def backward(g, x, gamma, beta):
        _, r, h, count = parts(x, axes, eps, ddof)
        u = gamma * g
        gx = r * (u - mean(u, axes) - h * mean(h * u, axes) * count / (count - ddof))
        return gx, summed(g * h, over, gamma.shape), summed(g, over, beta.shape)

    return backward


def summed(x, axes, shape):
    return (x.sum(axes) if axes else x).reshape(shape)


def rms(x, gamma):
    return gamma * x * (mean(x**2, -1) + EPS) ** -0.5


def rms_gradient(g, x, gamma):
    r = (mean(x**2, -1) + EPS) ** -0.5
    h, u = x * r, gamma * g
    return r * (u - h * mean(h * u, -1)), (g * h).sum(0)


def group(x, gamma, beta):
    """Group norm of (N, 6, H, W) in three groups."""
    grouped = x.reshape(x.shape[0], 3, -1)
    h = parts(grouped, -1)[2].reshape(x.shape)
    return gamma * h + beta


def group_gradient(g, x, gamma, beta):
    grouped = x.reshape(x.shape[0], 3, -1)
    _, r, h, _ = parts(grouped, -1)
    u = (gamma * g).reshape(grouped.shape)
    gx = r * (u - mean(u, -1) - h * mean(h * u, -1))
    return (
        gx.reshape(x.shape),
        summed(g * h.reshape(x.shape), (0, 2, 3), gamma.shape),
        g.sum((0, 2, 3)).reshape(beta.shape),
    )


def standardized(w):
    """Weights (out, in) standardized by an unbiased variance."""
    return parts(w, (1,), 1e-5, 1)[2]


def standardized_gradient(g, w):
    _, r, h, count = parts(w, (1,), 1e-5, 1)
    return r * (g - mean(g, (1,)) - h * total(h * g, (1,)) / (count - 1))


def unit(x):
    return x / total(x**2, -1) ** 0.5


def unit_gradient(g, x):
    size = total(x**2, -1) ** 0.5
    y = x / size
    return (g - y * total(y * g, -1)) / size


def eps_outside(x, gamma, beta):
    centred = x - mean(x, (0,))
    return gamma * centred / (mean(centred**2, (0,)) ** 0.5 + 1e-3) + beta


def eps_outside_gradient(g, x, gamma, beta):
    centred = x - mean(x, (0,))
    sigma = mean(centred**2, (0,)) ** 0.5
    u = gamma * g
    h = centred / (sigma + 1e-3)
    gx = (u - mean(u, (0,))) / (sigma + 1e-3) - h * mean(h * u, (0,)) / sigma
    return gx, (g * h).sum(0), g.sum(0)


# -- others -----------------------------------------------------------------------------------------------------------


def softmax(x):
    raised = exp(x - x.max())
    return raised / total(raised, -1)


def softmax_gradient(g, x):
    y = softmax(x)
    return y * (g - total(y * g, -1))


def log_softmax(x):
    return x - log(total(exp(x), -1))


def log_softmax_gradient(g, x):
    return g - softmax(x) * total(g, -1)


def linear(x, w, b):
    return x @ w + b


def linear_gradient(g, x, w, b):
    return g @ w.T, x.T @ g, g.sum(0)


def layer(x, w):
    return tanh(x @ w)


def layer_gradient(g, x, w):
    inner = g * (1 - tanh(x @ w) ** 2)
    return inner @ w.T, x.T @ inner


def squared(x, t):
    return ((x - t) ** 2).mean()


def squared_gradient(g, x, t):
    count = x.shape[0] * x.shape[1]
    return 2 * g * (x - t) / count, -2 * g * (x - t) / count


def cross_entropy(x, t):
    return -(t * log_softmax(x)).sum() / x.shape[0]


def cross_entropy_gradient(g, x, t):
    return g * (softmax(x) * total(t, -1) - t) / x.shape[0], -g * log_softmax(x) / x.shape[0]


def silu(x):
    return x / (1 + exp(-x))


def silu_gradient(g, x):
    s = 1 / (1 + exp(-x))
    return g * s * (1 + x * (1 - s))


BATCH = ((8, 3), (3,), (3,))
LAYER = ((4, 7), (7,), (7,))
IMAGE = ((3, 4, 3, 2), (1, 4, 1, 1), (1, 4, 1, 1))
RIGHT = {
    "batch norm": Formula(norm((0,)), norm_gradient((0,), (0,)), BATCH),
    "batch norm of images": Formula(norm((0, 2, 3)), norm_gradient((0, 2, 3), (0, 2, 3)), IMAGE),
    "layer norm": Formula(norm((1,)), norm_gradient((1,), (0,)), LAYER),
    "instance norm": Formula(norm((2, 3)), norm_gradient((2, 3), (0, 2, 3)), IMAGE),
    "group norm": Formula(group, group_gradient, ((2, 6, 2, 2), (6, 1, 1), (6, 1, 1))),
    "rms norm": Formula(rms, rms_gradient, ((4, 7), (7,))),
    "weight standardization": Formula(standardized, standardized_gradient, ((5, 6),)),
    "unbiased batch norm": Formula(norm((0,), ddof=1), norm_gradient((0,), (0,), ddof=1), BATCH),
    "eps outside": Formula(eps_outside, eps_outside_gradient, BATCH),
    "l2 normalize": Formula(unit, unit_gradient, ((4, 5),)),
    "softmax": Formula(softmax, softmax_gradient, ((4, 5),)),
    "log-softmax": Formula(log_softmax, log_softmax_gradient, ((4, 5),)),
    "linear": Formula(linear, linear_gradient, ((5, 4), (4, 3), (3,))),
    "tanh layer": Formula(layer, layer_gradient, ((5, 4), (4, 3))),
    "squared error": Formula(squared, squared_gradient, ((5, 4), (5, 4))),
    "cross entropy": Formula(cross_entropy, cross_entropy_gradient, ((5, 4), (5, 4))),
    "silu": Formula(silu, silu_gradient, ((5, 4),)),
}


# -- wrong formulas ---------------------------------------------------------------------------------------------------


def norm_with(axes, over, change):
    """Return gradients of a norm whose input gradient is made by another formula.

    Args:
        axes: What is normalized.
        over: What gain and bias are shared over.
        change: From g, x, gain, centred input, 1/sigma, normalized input and count to the input gradient.
    """
    right = norm_gradient(axes, over)

    def backward(g, x, gamma, beta):
        centred, r, h, count = parts(x, axes)
        return change(g, x, gamma, centred, r, h, count), *right(g, x, gamma, beta)[1:]

    return backward


def affine_with(axes, over, gain=None, bias=None):
    """Return gradients of a norm whose gain or bias gradient is made by another formula."""
    right = norm_gradient(axes, over)

    def backward(g, x, gamma, beta):
        found = list(right(g, x, gamma, beta))
        centred, r, h, count = parts(x, axes)
        for place, change in ((1, gain), (2, bias)):
            if change is not None:
                found[place] = change(g, x, gamma, centred, r, h, count)
        return tuple(found)

    return backward


def only(place, make):
    """Return a formula that gives a result for one argument and none for the others."""

    def backward(g, *inputs):
        return tuple(make(g, *inputs) if at == place else None for at in range(len(inputs)))

    return backward


def _batch(change):
    return norm((0,)), norm_with((0,), (0,), change), BATCH, "x"


def _layer(change):
    return norm((1,)), norm_with((1,), (0,), change), LAYER, "x"


def _m(u, axes=(0,)):
    return mean(u, axes)


def _wrong_sigma(x, axes=(0,), eps=EPS, ddof=0):
    return parts(x, axes, eps, ddof)


def _eps_moved(g, x, gamma, c, r, h, m):
    s = 1 / (mean(c**2, (0,)) ** 0.5 + EPS)
    u = gamma * g
    return s * (u - _m(u) - c * s * _m(c * s * u))


def _eps_left_out(g, x, gamma, c, r, h, m):
    _, r, h, _ = _wrong_sigma(x, eps=0.0)
    u = gamma * g
    return r * (u - _m(u) - h * _m(h * u))


def _unbiased(g, x, gamma, c, r, h, m):
    _, r, h, _ = _wrong_sigma(x, ddof=1)
    u = gamma * g
    return r * (u - _m(u) - h * _m(h * u))


def _rms(make):
    def change(g, x, gamma):
        r = (mean(x**2, -1) + EPS) ** -0.5
        return make(g, x, gamma, r, x * r)

    return rms, only(0, change), ((4, 7), (7,)), "x"


def _image(make):
    axes = (0, 2, 3)
    return norm(axes), norm_with(axes, axes, make), IMAGE, "x"


def _standardized_by_m(g, w):
    _, r, h, _ = parts(w, (1,), 1e-5, 1)
    return r * (g - mean(g, (1,)) - h * mean(h * g, (1,)))


WRONG = {
    # the note's kind
    "rescale only": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * g), ("mean coupling", "variance coupling", "missing")
    ),
    "no mean coupling": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - h * _m(h * g))), ("mean coupling", "missing")
    ),
    "no variance coupling": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - _m(g))), ("variance coupling", "missing")
    ),
    "no rescale": Formula(
        *_batch(lambda g, x, a, c, r, h, m: -a * r * (_m(g) + h * _m(h * g))), ("rescale term", "missing")
    ),
    "sign of the mean": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g + _m(g) - h * _m(h * g))), ("mean coupling", "wrong sign")
    ),
    "sign of the variance": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - _m(g) + h * _m(h * g))), ("variance coupling", "wrong sign")
    ),
    "variance doubled": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - _m(g) - 2 * h * _m(h * g))), ("variance coupling", "doubled")
    ),
    "mean doubled": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - 2 * _m(g) - h * _m(h * g))), ("mean coupling", "doubled")
    ),
    "sum for mean": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - m * _m(g) - h * _m(h * g))),
        ("mean coupling", "lacks the factor 1/8"),
    ),
    "sum for both means": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - m * _m(g) - m * h * _m(h * g))),
        ("1/8", "mean coupling", "variance coupling"),
    ),
    "m - 1 in the variance": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - _m(g) - h * _m(h * g) * m / (m - 1))),
        ("variance coupling", "1/(m-1)"),
    ),
    "m - 1 in sigma": Formula(*_batch(_unbiased), ("m - 1",)),
    "no gain": Formula(*_batch(lambda g, x, a, c, r, h, m: r * (g - _m(g) - h * _m(h * g))), ("factor gamma",)),
    "gain twice": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a**2 * r * (g - _m(g) - h * _m(h * g))), ("gamma", "twice|too many")
    ),
    "no 1/sigma": Formula(*_batch(lambda g, x, a, c, r, h, m: a * (g - _m(g) - h * _m(h * g))), ("lacks", "1/sigma")),
    "variance for sigma": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r**2 * (g - _m(g) - h * _m(h * g))), ("1/sigma too many",)
    ),
    "centred for normalized": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - _m(g) - c * _m(h * g))),
        ("variance coupling", "1/sigma|(x - mean)"),
    ),
    "no outer factor": Formula(
        *_batch(lambda g, x, a, c, r, h, m: a * r * (g - _m(g) - _m(h * g))), ("variance coupling", "xhat")
    ),
    "eps outside of the root": Formula(*_batch(_eps_moved), ("eps", "outside of the root")),
    "eps left out": Formula(*_batch(_eps_left_out), ("eps", "leaves out")),
    "sign of all": Formula(*_batch(lambda g, x, a, c, r, h, m: -a * r * (g - _m(g) - h * _m(h * g))), ("wrong sign",)),
    "gain in one term only": Formula(
        *_batch(lambda g, x, a, c, r, h, m: r * (a * g - _m(g) - a * h * _m(h * g))), ("mean coupling", "gamma")
    ),
    # layer, RMS, images
    "layer: rescale only": Formula(
        *_layer(lambda g, x, a, c, r, h, m: a * r * g), ("mean coupling", "variance coupling", "missing")
    ),
    "layer: gain outside": Formula(
        *_layer(lambda g, x, a, c, r, h, m: a * r * (g - _m(g, (1,)) - h * _m(h * g, (1,)))), ("gamma outside",)
    ),
    "layer: wrong axis": Formula(
        *_layer(lambda g, x, a, c, r, h, m: r * (a * g - _m(a * g, (0,)) - h * _m(h * a * g, (1,)))),
        ("mean coupling", "over axis 0"),
    ),
    "layer: no gain": Formula(
        *_layer(lambda g, x, a, c, r, h, m: r * (g - _m(g, (1,)) - h * _m(h * g, (1,)))), ("lacks the factor gamma",)
    ),
    "rms: rescale only": Formula(*_rms(lambda g, x, a, r, h: r * a * g), ("scale coupling", "missing")),
    "rms: mean coupling too many": Formula(
        *_rms(lambda g, x, a, r, h: r * (a * g - _m(a * g, (-1,)) - h * _m(h * a * g, (-1,)))), ("mean(",)
    ),
    "rms: x for xhat": Formula(
        *_rms(lambda g, x, a, r, h: r * (a * g - x * _m(x * a * g, (-1,)))), ("scale coupling", "x")
    ),
    "image: wrong axes": Formula(
        *_image(lambda g, x, a, c, r, h, m: a * r * (g - _m(g, (2, 3)) - h * _m(h * g, (0, 2, 3)))),
        ("mean coupling", "axes 2, 3"),
    ),
    # gain and bias
    "bias without a sum": Formula(
        norm((0,)),
        affine_with((0,), (0,), bias=lambda g, x, a, c, r, h, m: g),
        BATCH,
        "beta",
        ("lacks the sum over axis 0",),
    ),
    "gain without a sum": Formula(
        norm((0,)),
        affine_with((0,), (0,), gain=lambda g, x, a, c, r, h, m: g * h),
        BATCH,
        "gamma",
        ("lacks the sum over axis 0",),
    ),
    "bias by a mean": Formula(
        norm((0,)), affine_with((0,), (0,), bias=lambda g, x, a, c, r, h, m: g.mean(0)), BATCH, "beta", ("1/8", "mean")
    ),
    "gain from centred": Formula(
        norm((0,)),
        affine_with((0,), (0,), gain=lambda g, x, a, c, r, h, m: (g * c).sum(0)),
        BATCH,
        "gamma",
        ("1/sigma",),
    ),
    "gain from x, layer": Formula(
        norm((1,)),
        affine_with((1,), (0,), gain=lambda g, x, a, c, r, h, m: (g * x).sum(0)),
        LAYER,
        "gamma",
        ("g", "xhat", "x "),
    ),
    "bias times gain": Formula(
        norm((0,)),
        affine_with((0,), (0,), bias=lambda g, x, a, c, r, h, m: (a * g).sum(0)),
        BATCH,
        "beta",
        ("gamma", "too many"),
    ),
    "gain and bias swapped": Formula(
        norm((0,)),
        affine_with((0,), (0,), gain=lambda g, x, a, c, r, h, m: g.sum(0)),
        BATCH,
        "gamma",
        ("gradient of beta",),
    ),
    "gain, output for xhat": Formula(
        norm((0,)), lambda g, x, a, b: (None, (g * norm((0,))(x, a, b)).sum(0), None), BATCH, "gamma", ("output",)
    ),
    # others
    "softmax without coupling": Formula(softmax, lambda g, x: softmax(x) * g, ((4, 5),), "x", ("coupling", "missing")),
    "softmax, wrong axis": Formula(
        softmax, lambda g, x: softmax(x) * (g - total(softmax(x) * g, 0)), ((4, 5),), "x", ("axis 0",)
    ),
    "log-softmax without softmax": Formula(log_softmax, lambda g, x: g - total(g, -1), ((4, 5),), "x", ("softmax",)),
    "unit without coupling": Formula(
        unit, lambda g, x: g / total(x**2, -1) ** 0.5, ((4, 5),), "x", ("scale coupling", "missing")
    ),
    "linear, not transposed": Formula(
        lambda x, w: x @ w, lambda g, x, w: (g @ w, x.T @ g), ((5, 4), (4, 4)), "x", ("w.T|w belongs",)
    ),
    "linear, transposed": Formula(
        lambda x, w: x @ w, lambda g, x, w: (g @ w.T, g.T @ x), ((5, 4), (4, 3)), "w", ("transposed",)
    ),
    "linear, square, transposed": Formula(
        lambda x, w: x @ w, lambda g, x, w: (g @ w.T, g.T @ x), ((5, 4), (4, 4)), "w", ("transposed",)
    ),
    "no incoming gradient": Formula(silu, lambda g, x: silu_gradient(1.0, x), ((5, 4),), "x", ("g = 1",)),
    "squared error, no 2": Formula(
        squared, lambda g, x, t: (g * (x - t) / 20, None), ((5, 4), (5, 4)), "x", ("halved",)
    ),
    "squared error, no mean": Formula(
        squared, lambda g, x, t: (2 * g * (x - t), None), ((5, 4), (5, 4)), "x", ("1/20",)
    ),
    "standardization by m": Formula(standardized, _standardized_by_m, ((5, 6),), "w", ("1/m",)),
    "tanh, no square": Formula(tanh, lambda g, x: g * (1 - tanh(x)), ((5, 4),), "x", ("output",)),
}
