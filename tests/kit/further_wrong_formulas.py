"""Wrong formulas of many layers, written to try the verification on what it was not written for, and kept.

They were written in four rounds, each before the tool was changed for it; then 13 of 20, 8 of 15, 9 of 15 and 12 of 15
were explained.
"""

import numpy as np
import torch
import torch.nn.functional as F

#: Name, forward function, wrong formula, inputs.
CASES = []
RANDOM = np.random.default_rng(5)


def case(name, forward, backward, *inputs):
    CASES.append((name, forward, backward, inputs))


def N(*shape):
    return RANDOM.normal(size=shape)


def T(*shape):
    return torch.tensor(N(*shape))


def S(a, axes=None):
    return a.sum(axes, keepdims=True)


def M(a, axes):
    return a.mean(axes, keepdims=True)


def sg(x):
    return 1 / (1 + np.exp(-x))


def sm(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / S(raised, -1)


def dyt(x, alpha, gamma, beta):
    return gamma * np.tanh(alpha * x) + beta


case(
    "DyT: g_alpha lacks x",
    dyt,
    lambda g, x, alpha, gamma, beta: {"alpha": (g * gamma * (1 - np.tanh(alpha * x) ** 2)).sum()},
    N(5, 4),
    np.array(0.7),
    N(4),
    N(4),
)
case(
    "DyT: g_x lacks alpha",
    dyt,
    lambda g, x, alpha, gamma, beta: {"x": g * gamma * (1 - np.tanh(alpha * x) ** 2)},
    N(5, 4),
    np.array(0.7),
    N(4),
    N(4),
)


def wn(v, s):
    return s * v / np.sqrt(S(v * v, 1))


case("weight norm: no projection", wn, lambda g, v, s: {"v": s * g / np.sqrt(S(v * v, 1))}, N(4, 6), N(4, 1))
case("weight norm: v for v/|v| in g_s", wn, lambda g, v, s: {"s": S(g * v, 1)}, N(4, 6), N(4, 1))


def grn(x, gamma, beta):
    n = np.sqrt(S(x * x, (1, 2)))
    return gamma * (x * n / M(n, -1)) + beta + x


case("GRN: g_x keeps the residual only", grn, lambda g, x, gamma, beta: {"x": g}, N(2, 3, 2, 4), N(4), N(4))


def at(x, a, b):
    return a * (x - M(x, -1)) / (x.std(-1, keepdims=True, ddof=1) + 1e-2) + b


def at_b(g, x, a, b):
    s = x.std(-1, keepdims=True) + 1e-2
    h = (x - M(x, -1)) / s
    u = a * g
    return {"x": (u - M(u, -1) - h * M(h * u, -1)) / s}


case("LN with std: biased std", at, at_b, N(4, 7), N(7), N(7))


def inorm(x):
    return (x - M(x, (2, 3))) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)


def in_b(g, x):
    s = np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)
    h = (x - M(x, (2, 3))) / s
    return (g - M(g, (0, 2, 3)) - h * M(h * g, (0, 2, 3))) / s


case("IN: couplings over the batch", inorm, in_b, N(3, 4, 3, 2))


def bn(x, a, b):
    return a * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + b


def bnr(x, a, b):
    return np.maximum(bn(x, a, b), 0)


def bnb(g, x, a, b):
    s = np.sqrt(x.var(0) + 1e-5)
    h = (x - x.mean(0)) / s
    return {"x": a / s * (g - g.mean(0) - h * (g * h).mean(0)), "a": (g * h).sum(0), "b": g.sum(0)}


case("BN+ReLU: no mask", bnr, bnb, N(8, 3), N(3), N(3))
case(
    "BN+ReLU: rescale only",
    bnr,
    lambda g, x, a, b: {"x": a / np.sqrt(x.var(0) + 1e-5) * g * (bn(x, a, b) > 0)},
    N(8, 3),
    N(3),
    N(3),
)


def gem(x, w):
    return x / np.sqrt(M(x * x, -1) + 1e-6) * (1 + w)


def gemb(g, x, w):
    rr = 1 / np.sqrt(M(x * x, -1) + 1e-6)
    h = x * rr
    u = w * g
    return rr * (u - h * M(h * u, -1)), (g * h).sum(0)


case("Gemma RMS: w for 1+w", gem, gemb, N(4, 7), N(7))


def cos(x, t):
    return (x * t).sum(1) / np.sqrt((x * x).sum(1) * (t * t).sum(1))


case(
    "cosine: no projection",
    cos,
    lambda g, x, t: {"x": g[:, None] * t / np.sqrt(S(x * x, 1) * S(t * t, 1))},
    N(5, 4),
    N(5, 4),
)
case(
    "softmax(x/3): no 1/3", lambda x: sm(x / 3.0), lambda g, x: (lambda y: y * (g - S(y * g, -1)))(sm(x / 3.0)), N(4, 5)
)
case(
    "q k^T/sqrt(d): no sqrt(d) for k",
    lambda q, k: q @ k.T / np.sqrt(7),
    lambda g, q, k: (g @ k / np.sqrt(7), g.T @ q),
    N(4, 7),
    N(5, 7),
)


def gn(x):
    v = x.reshape(2, 3, -1)
    return ((v - M(v, -1)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)).reshape(x.shape)


def gnb(g, x):
    v = x.reshape(2, 3, -1)
    s = np.sqrt(v.var(-1, keepdims=True) + 1e-5)
    h = (v - M(v, -1)) / s
    u = g.reshape(v.shape)
    return ((u - M(u, (1, 2)) - h * M(h * u, -1)) / s).reshape(x.shape)


case("GN: mean over all groups", gn, gnb, N(2, 6, 2, 2))
case(
    "l1: y for sign in coupling",
    lambda x: x / S(abs(x), 1),
    lambda g, x: (g - x / S(abs(x), 1) * S(g * x / S(abs(x), 1), 1)) / S(abs(x), 1),
    N(4, 6),
)


def ln2(x, a):
    return a * (x - M(x, (1, 2))) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)


case(
    "LN 2 axes: g_a unsummed",
    ln2,
    lambda g, x, a: {"a": g * (x - M(x, (1, 2))) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)},
    N(3, 4, 2),
    N(4, 2),
)


def bnT(x, a, b):
    return a * (x - M(x, 1)) / np.sqrt(x.var(1, keepdims=True) + 1e-8) + b


case(
    "BN features first: g_b over features",
    bnT,
    lambda g, x, a, b: {"b": g.sum(0, keepdims=True)},
    N(4, 6),
    N(4, 1),
    N(4, 1),
)
case(
    "linear: bias over the wrong axis",
    lambda x, w, b: x @ w + b,
    lambda g, x, w, b: {"b": g.sum(1)},
    N(4, 5),
    N(5, 4),
    N(4),
)
case(
    "BCE: sign",
    lambda x, t: -(t * np.log(sg(x)) + (1 - t) * np.log(1 - sg(x))).mean(),
    lambda g, x, t: {"x": g * (t - sg(x)) / x.size},
    N(5, 4),
    (N(5, 4) > 0).astype(float),
)
case(
    "BN, textbook: dvar lacks 1/2",
    bn,
    lambda g, x, a, b: (
        lambda c, v, m: {
            "x": a * g / np.sqrt(v) + 2 * c / m * (a * g * c * -1 * v**-1.5).sum(0) + (-a * g / np.sqrt(v)).sum(0) / m
        }
    )(x - x.mean(0), x.var(0) + 1e-5, len(x)),
    N(8, 3),
    N(3),
    N(3),
)


def ln(x, a, b):
    return a * (x - M(x, -1)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + b


def lnp(x):
    s = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return s, (x - M(x, -1)) / s


case(
    "1 sigmoid(LN): no mean coupling",
    lambda x, a, b: sg(ln(x, a, b)),
    lambda g, x, a, b: (lambda s, h, u: {"x": (u - h * M(h * u, -1)) / s})(
        *lnp(x), a * g * sg(ln(x, a, b)) * (1 - sg(ln(x, a, b)))
    ),
    N(4, 7),
    N(7),
    N(7),
)
c = np.sqrt(2 / np.pi)
case(
    "2 GELU: second term lost",
    lambda x: 0.5 * x * (1 + np.tanh(c * (x + 0.044715 * x**3))),
    lambda g, x: g * 0.5 * (1 + np.tanh(c * (x + 0.044715 * x**3))),
    N(5, 4),
)
case("3 silu: sigmoid only", lambda x: x * sg(x), lambda g, x: g * sg(x), N(5, 4))
case(
    "4 attention: A for A^T in g_v",
    lambda q, k, v: sm(q @ k.T / 2) @ v,
    lambda g, q, k, v: {"v": sm(q @ k.T / 2) @ g},
    N(5, 4),
    N(5, 4),
    N(5, 3),
)


def bne(x, mu, var):
    return (x - mu) / np.sqrt(var + 1e-5)


case(
    "5 BN in eval: sign of g_mu",
    bne,
    lambda g, x, mu, var: {"mu": (g / np.sqrt(var + 1e-5)).sum(0)},
    N(6, 4),
    N(4),
    N(4) ** 2 + 0.5,
)
case(
    "6 BN in eval: g_var lacks 1/2",
    bne,
    lambda g, x, mu, var: {"var": -(g * (x - mu) * (var + 1e-5) ** -1.5).sum(0)},
    N(6, 4),
    N(4),
    N(4) ** 2 + 0.5,
)
case(
    "7 LayerScale: mean over the batch",
    lambda x, s, res: res + s * x,
    lambda g, x, s, res: {"s": (g * x).mean(0)},
    N(6, 4),
    N(4),
    N(6, 4),
)


def cin(x, a):
    return a * (x - M(x, (2, 3))) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)


case(
    "8 conditional IN: gain summed over the batch too",
    cin,
    lambda g, x, a: {"a": S(g * (x - M(x, (2, 3))) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5), (0, 2, 3))},
    N(3, 4, 3, 2),
    N(3, 4, 1, 1),
)
case(
    "9 pixel norm: sum for mean",
    lambda x: x / np.sqrt(M(x * x, 1) + 1e-8),
    lambda g, x: (lambda s: (g - x / s * S(x / s * g, 1)) / s)(np.sqrt(M(x * x, 1) + 1e-8)),
    N(2, 5, 2, 2),
)


def ghost(x):
    v = x.reshape(2, 4, 3)
    return ((v - M(v, 1)) / np.sqrt(v.var(1, keepdims=True) + 1e-5)).reshape(8, 3)


def ghb(g, x):
    v = x.reshape(2, 4, 3)
    s = np.sqrt(v.var(1, keepdims=True) + 1e-5)
    h = (v - M(v, 1)) / s
    u = g.reshape(2, 4, 3)
    return ((u - M(u, (0, 1)) - h * M(h * u, (0, 1))) / s).reshape(8, 3)


case("10 ghost BN: couplings over the whole batch", ghost, ghb, N(8, 3))
case(
    "11 weighted mean: g_w lacks -y",
    lambda x, w: (w * x).sum(1) / w.sum(1),
    lambda g, x, w: {"w": g[:, None] * x / S(w, 1)},
    N(5, 4),
    N(5, 4) ** 2 + 0.3,
)
case("12 variance: x for x - mean", lambda x: x.var(0), lambda g, x: 2 * g * x / len(x), N(6, 4))
case("13 deviation: no 1/sigma", lambda x: x.std(0), lambda g, x: g * (x - x.mean(0)) / len(x), N(6, 4))
case("14 centring: no mean coupling", lambda x: x - x.mean(0), lambda g, x: g, N(6, 4))
case(
    "15 tanh(BN): 1 - x^2",
    lambda x, a, b: np.tanh(a * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + b),
    lambda g, x, a, b: {"b": (g * (1 - x**2)).sum(0)},
    N(6, 4),
    N(4),
    N(4),
)


# torch, fused functions
def bn3(x, w, b):
    return F.batch_norm(x, None, None, w, b, True, 0.1, 1e-3)


def st(x, ax, eps):
    m = x.mean(ax, keepdim=True)
    s = (x.var(ax, keepdim=True, unbiased=False) + eps).sqrt()
    return s, (x - m) / s


def w4(w):
    return w.reshape(1, -1, 1, 1)


case(
    "1 torch BN2d: eps 1e-5 for 1e-3",
    bn3,
    lambda g, x, w, b: (
        lambda s, h: {
            "x": w4(w) / s * (g - g.mean((0, 2, 3), keepdim=True) - h * (h * g).mean((0, 2, 3), keepdim=True))
        }
    )(*st(x, (0, 2, 3), 1e-5)),
    T(3, 4, 2, 3),
    T(4),
    T(4),
)
case(
    "2 torch BN2d: means over the batch only",
    bn3,
    lambda g, x, w, b: (
        lambda s, h: {"x": w4(w) / s * (g - g.mean(0, keepdim=True) - h * (h * g).mean(0, keepdim=True))}
    )(*st(x, (0, 2, 3), 1e-3)),
    T(3, 4, 2, 3),
    T(4),
    T(4),
)
case(
    "3 torch BN2d: gain summed over the batch, mean over space",
    bn3,
    lambda g, x, w, b: (lambda s, h: {"w": (g * h).sum(0).mean((1, 2))})(*st(x, (0, 2, 3), 1e-3)),
    T(3, 4, 2, 3),
    T(4),
    T(4),
)
case(
    "4 torch LN over 2 axes: variance term tripled",
    lambda x, w, b: F.layer_norm(x, (3, 4), w, b),
    lambda g, x, w, b: (
        lambda s, h: {
            "x": (w * g - (w * g).mean((1, 2), keepdim=True) - 3 * h * (h * w * g).mean((1, 2), keepdim=True)) / s
        }
    )(*st(x, (1, 2), 1e-5)),
    T(3, 3, 4),
    T(3, 4),
    T(3, 4),
)
case(
    "5 F.normalize: coupling squared norm missing",
    lambda x: F.normalize(x, dim=1),
    lambda g, x: (lambda n: g / n - x * (x * g).sum(1, keepdim=True) / n)(x.norm(dim=1, keepdim=True)),
    T(4, 6),
)
case(
    "6 cross entropy with labels: no one-hot",
    lambda x, y: F.cross_entropy(x, y),
    lambda g, x, y: {"x": g * torch.softmax(x, 1) / len(x)},
    T(6, 4),
    torch.tensor([0, 1, 2, 3, 1, 0]),
)
case(
    "7 log-softmax: softmax over the batch",
    lambda x: F.log_softmax(x, 1),
    lambda g, x: g - torch.softmax(x, 0) * g.sum(1, keepdim=True),
    T(5, 4),
)
case("8 softplus: 1 - sigmoid", lambda x: F.softplus(x), lambda g, x: g * (1 - torch.sigmoid(x)), T(5, 4))
case(
    "9 linear: weight of torch, input transposed",
    lambda x, w: F.linear(x, w),
    lambda g, x, w: {"w": x.T @ g},
    T(6, 4),
    T(3, 4),
)
case(
    "10 huge: mse with 1/N rows only",
    lambda x, t: ((x - t) ** 2).mean(),
    lambda g, x, t: {"x": 2 * g * (x - t) / len(x)},
    T(5, 4),
    T(5, 4),
)
case(
    "11 bilinear x W y: g_W transposed",
    lambda x, w, y: ((x @ w) * y).sum(1),
    lambda g, x, w, y: {"w": (y * g[:, None]).T @ x},
    T(6, 4),
    T(4, 4),
    T(6, 4),
)
case("12 leaky relu: slope 0 for negative", lambda x: F.leaky_relu(x, 0.1), lambda g, x: g * (x > 0), T(5, 4))
case(
    "13 BN without affine, then sum with x: no residual",
    lambda x: x + (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt(),
    lambda g, x: (lambda s, h: (g - g.mean(0) - h * (h * g).mean(0)) / s)(*st(x, 0, 1e-5)),
    T(8, 3),
)
case(
    "14 GN, affine: gain inside after mean",
    lambda x, w, b: F.group_norm(x, 2, w, b),
    lambda g, x, w, b: (
        lambda v, u: (
            lambda s, h: {
                "x": (w4(w) * ((u - u.mean(2, keepdim=True) - h * (h * u).mean(2, keepdim=True)) / s).reshape(x.shape))
            }
        )(*st(v, 2, 1e-5))
    )(x.reshape(3, 2, -1), g.reshape(3, 2, -1)),
    T(3, 4, 2, 2),
    T(4),
    T(4),
)
case(
    "15 p-norm distance: sign lost",
    lambda x, t: (x - t).abs().sum(1),
    lambda g, x, t: {"x": g[:, None].expand_as(x).clone()},
    T(5, 4),
    T(5, 4),
)


def ln_of_tokens(x, a, b):
    return a * (x - M(x, -1)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) + b


def P(x):
    s = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return s, (x - M(x, -1)) / s


case(
    "1 LN of tokens (B,T,D): mean over T and D",
    ln_of_tokens,
    lambda g, x, a, b: (lambda s, h, u: {"x": (u - M(u, (1, 2)) - h * M(h * u, (1, 2))) / s})(*P(x), a * g),
    N(2, 3, 5),
    N(5),
    N(5),
)
case(
    "2 LN of tokens: g_a summed over the batch only",
    ln_of_tokens,
    lambda g, x, a, b: {"a": (g * P(x)[1]).sum(0)},
    N(2, 3, 5),
    N(5),
    N(5),
)
case(
    "3 LN: unbiased sigma in the coupling only",
    ln_of_tokens,
    lambda g, x, a, b: (lambda s, h, u: {"x": (u - M(u, -1) - h * S(h * u, -1) / (x.shape[-1] - 1)) / s})(*P(x), a * g),
    N(4, 6),
    N(6),
    N(6),
)
case(
    "4 relu(LN): derivative >= of the input",
    lambda x, a, b: np.maximum(ln_of_tokens(x, a, b), 0),
    lambda g, x, a, b: {"b": (g * (x > 0)).sum(0)},
    N(6, 5),
    N(5),
    N(5),
)
case(
    "5 RMS: eps added to the root",
    lambda x, w: w * x / np.sqrt(M(x * x, -1) + 1e-3),
    lambda g, x, w: (lambda s, u: {"x": (u - x / s * M(x / s * u, -1)) / s})(np.sqrt(M(x * x, -1)) + 1e-3, w * g),
    N(4, 6),
    N(6),
)
case(
    "6 BN: gain coupled with g_b",
    lambda z, a, b: a * (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) + b,
    lambda g, z, a, b: {"a": (g * ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) + b)).sum(0)},
    N(7, 3),
    N(3),
    N(3),
)
case(
    "7 BN: variance coupling uses g in place of gamma g and sign",
    lambda z, a, b: a * (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) + b,
    lambda g, z, a, b: (lambda s, h: {"z": (a * g - a * g.mean(0) + h * (h * g).mean(0)) / s})(
        np.sqrt(z.var(0) + 1e-5), (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    ),
    N(7, 3),
    N(3),
    N(3),
)
case(
    "8 softmax: one minus y",
    lambda x: torch.softmax(x, -1),
    lambda g, x: g * torch.softmax(x, -1) * (1 - torch.softmax(x, -1)),
    T(4, 5),
)
case("9 sigmoid: no 1 - y", torch.sigmoid, lambda g, input: g * torch.sigmoid(input), T(4, 5))
case(
    "10 linear: g_b from x",
    lambda x, w, b: F.linear(x, w, b),
    lambda g, x, w, b: {"b": x.sum(0)[:3]},
    T(6, 4),
    T(3, 4),
    T(3),
)
case(
    "11 scaled residual: alpha squared",
    lambda x, f, alpha: x + alpha * f,
    lambda g, x, f, alpha: {"f": alpha**2 * g},
    N(5, 4),
    N(5, 4),
    np.array(0.3),
)
case(
    "12 hinge: no mask",
    lambda x, t: np.maximum(0, 1 - x * t).sum(1),
    lambda g, x, t: {"x": -t * g[:, None]},
    N(5, 4),
    np.sign(N(5, 4)),
)
case(
    "13 log-sum-exp: softmax over the batch",
    lambda x: np.log(np.exp(x).sum(1)),
    lambda g, x: g[:, None] * np.exp(x) / np.exp(x).sum(0),
    N(5, 4),
)
case(
    "14 dropout mask given: no 1/p",
    lambda x, mask: x * mask / 0.7,
    lambda g, x, mask: {"x": g * mask},
    N(5, 4),
    (N(5, 4) > -0.5).astype(float),
)
case(
    "15 centred cosine: w lacks the mean",
    lambda x: (x - M(x, 1)) / np.sqrt(S((x - M(x, 1)) ** 2, 1)),
    lambda g, x: (lambda c, n: (g - c / n * S(c / n * g, 1)) / n)(x - M(x, 1), np.sqrt(S((x - M(x, 1)) ** 2, 1))),
    N(4, 6),
)
