"""Three formulas for the gradient of batch norm, from a lecture note: are they right? `normscope verify note.py` says.

The note gives the gradients of gamma, beta and the input z (Deshmukh 2020, section 1) and asks whether anyone gets the
same expressions. The first is right, the second lacks a sum, the third lacks two terms. Put your own function and
formula in their place.
"""

import numpy as np

Array = np.ndarray
EPS = 1e-5


def forward(z: Array, gamma: Array, beta: Array) -> Array:
    """Return the function whose gradient is in question: batch norm of z (batch, features)."""
    z_hat = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + EPS)
    return gamma * z_hat + beta


def backward(g_y: Array, z: Array, gamma: Array, beta: Array) -> dict[str, Array]:
    """Return the formulas: a gradient for each argument of forward, from the gradient g_y at its output."""
    sigma = np.sqrt(z.var(axis=0) + EPS)
    z_hat = (z - z.mean(axis=0)) / sigma
    return {
        "gamma": (z_hat * g_y).sum(axis=0),
        "beta": g_y,
        "z": gamma / sigma * g_y,
    }


def inputs() -> tuple[Array, Array, Array]:
    """Return where the formulas are tried: the arguments of forward."""
    random = np.random.default_rng(0)
    return random.normal(size=(16, 4)), random.normal(size=4), random.normal(size=4)


if __name__ == "__main__":
    import normscope as ns

    print(ns.verify(forward, backward, *inputs()))
