r"""What keeps the signal of a deep residual network in bounds: a norm in each branch, or an initialisation.

The *signal* is the mean square of the residual stream over batch, units and positions. A branch's layers are drawn so
that each keeps it (He et al., 2015, eq. 10: variance 2 over the fan-in, for ReLU); then the stream, 1 after the stem,
is after $l$ blocks at

======================  =====================  ===============================================================
scheme                  signal                 because
======================  =====================  ===============================================================
none                    $2^l$            a branch adds as much as the stream has
batch, layer, group     $l + 1$          a branch adds 1 whatever the stream has: a share of 1/(l+1)
fixup, skipinit, rezero 1                      a branch adds 0
nf                      $1 + \alpha^2 l$ a branch adds $\alpha^2$, whatever the stream has
======================  =====================  ===============================================================

in the limit of wide layers (De & Smith, 2020, section 2; Brock, De & Smith, 2021, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the branches of a residual network are built and drawn.

    Attributes:
        title: What it is, in a line.
        source: Where it comes from.
        signal: Predicted signal after a number of blocks, given that number and ``alpha``.
        norm: The norm before each activation: "batch", "layer", "group" or None.
        alpha: What a branch is multiplied by at first, or None where there is no such number.
        learn_alpha: Whether it is learned.
        bias: Whether the branches' layers have biases (where a norm follows, or has a shift, they are redundant).
        scalar_biases: Whether there is a scalar bias before each activation and each layer.
        activation_first: Whether a branch's activations come before its layers; else after them.
        zero_ends: Whether the last layer of each branch, and the classifier, are 0 at first, and the other layers of a
            branch are drawn smaller by $L^{-1/(2m-2)}$, with ``L`` branches of ``m`` layers.
        standardized: Whether the weights of the branches are standardized, each activation is multiplied by the gain
            that gives it variance 1, and each branch's input divided by the predicted standard deviation.
    """

    title: str
    source: str
    signal: Callable[[int, float], float]
    norm: str | None = None
    alpha: float | None = None
    learn_alpha: bool = True
    bias: bool = True
    scalar_biases: bool = False
    activation_first: bool = True
    zero_ends: bool = False
    standardized: bool = False


def _constant(blocks: int, alpha: float) -> float:
    return 1.0


def _one_a_block(blocks: int, alpha: float) -> float:
    return blocks + 1.0


def _doubling(blocks: int, alpha: float) -> float:
    return 2.0**blocks


def _small_steps(blocks: int, alpha: float) -> float:
    return 1.0 + alpha**2 * blocks


SCHEMES = {
    "none": Scheme("He initialisation alone", "arXiv:1502.01852 section 2.2", _doubling),
    "batch": Scheme(
        "Batch normalization before each activation", "arXiv:1502.03167", _one_a_block, norm="batch", bias=False
    ),
    "layer": Scheme(
        "Layer normalization before each activation", "arXiv:1607.06450", _one_a_block, norm="layer", bias=False
    ),
    "group": Scheme(
        "Group normalization before each activation", "arXiv:1803.08494", _one_a_block, norm="group", bias=False
    ),
    "fixup": Scheme(
        "Fixup: branches end in zeros, and start the smaller the more there are",
        "arXiv:1901.09321 section 3",
        _constant,
        alpha=1.0,
        bias=False,
        scalar_biases=True,
        zero_ends=True,
    ),
    "skipinit": Scheme(
        "SkipInit: each branch is multiplied by a number, 0 at first",
        "arXiv:2002.10444 section 4",
        _constant,
        alpha=0.0,
    ),
    "rezero": Scheme(
        "ReZero: as SkipInit, with the activation after each layer, as published",
        "arXiv:2003.04887 section 3",
        _constant,
        alpha=0.0,
        activation_first=False,
    ),
    "nf": Scheme(
        "Normalizer-free: standardized weights, activations of unit variance, known scales divided out",
        "arXiv:2101.08692 section 3 and 4",
        _small_steps,
        alpha=0.2,
        learn_alpha=False,
        standardized=True,
    ),
}
