"""The texts whose sentences the studies judge: which study answers which sentence, and what the texts get wrong."""

from typing import NamedTuple

#: The four source texts by key, and how a reader knows them.
TEXTS = {
    "gradient": "Q&A: What effect does batch norm have on the gradient?",
    "review": "Review of Santurkar et al. 2018",
    "note": "Lecture note: batch norm, gradients and the Taylor argument (Deshmukh 2020)",
    "layer": "Q&A: How does a batch normalization layer work?",
}


class Sentence(NamedTuple):
    """What a text says, in short, and the studies that put it to the test.

    Attributes:
        text: Key of ``TEXTS``.
        says: The sentence in short.
        studies: Slugs.
    """

    text: str
    says: str
    studies: tuple[str, ...]


class Erratum(NamedTuple):
    """What a text or paper states wrongly or leaves open.

    Attributes:
        where: The text or paper.
        stated: What is stated.
        correct: What holds instead.
        studies: Slugs of those whose figures show it.
    """

    where: str
    stated: str
    correct: str
    studies: tuple[str, ...]


SENTENCES = (
    Sentence(
        "gradient",
        "Does it help with the exploding gradient problem, since activations are rescaled and their variance held?",
        ("exploding-gradient-at-init", "exploding-gradient-in-training"),
    ),
    Sentence(
        "gradient",
        "The aim is to shorten training by reducing covariate shift, the variation between the values of two layers.",
        ("stable-activation-distributions", "noisy-batchnorm", "ics-gradient-shift"),
    ),
    Sentence(
        "gradient",
        "Inputs in different units make training slow; they are standardized, and so should hidden values be.",
        ("conditioning",),
    ),
    Sentence(
        "gradient",
        "Normalizing is not a linear transformation; gamma and beta restore what the layer could represent.",
        ("identity-recoverable",),
    ),
    Sentence(
        "gradient",
        "Beta can increase overfitting: remove the bias of the layer before.",
        ("beta-overfits", "bias-before-bn-redundant"),
    ),
    Sentence(
        "gradient",
        "Hidden values reach stable ranges after few iterations.",
        ("stable-activation-distributions",),
    ),
    Sentence(
        "gradient",
        "High accuracy comes in fewer iterations; eventually it is the same without.",
        ("fewer-iterations",),
    ),
    Sentence(
        "gradient",
        "The only help to the gradient is the noise of the mini-batch, which regularizes like dropout.",
        ("bn-noise-regularises", "landscape-smoothness", "learning-rate-tolerance", "dropout-variance-shift"),
    ),
    Sentence(
        "review",
        "Training becomes robust to the choice of learning rate and of initial parameters.",
        ("learning-rate-tolerance", "init-tolerance"),
    ),
    Sentence(
        "review",
        "Internal covariate shift is not a good predictor of performance; the gain is not from reducing it.",
        ("noisy-batchnorm", "ics-gradient-shift"),
    ),
    Sentence(
        "review",
        "Internal covariate shift often makes gradients vanish or explode.",
        ("exploding-gradient-at-init", "ics-gradient-shift"),
    ),
    Sentence(
        "review",
        "The landscape is smoother, the gradient more predictive, larger steps are possible.",
        (
            "landscape-smoothness",
            "beta-smoothness-is-edge-of-stability",
            "lp-normalisation",
            "learning-rate-tolerance",
            "output-moments-hessian",
        ),
    ),
    Sentence("review", "Batch norm leads to flat minima and so to better generalization.", ("flat-minima",)),
    Sentence(
        "note",
        "The gradients of gamma, beta and the input are upstream gradients times one factor each.",
        ("bn-backward-three-terms",),
    ),
    Sentence(
        "note",
        "The multiplicative factor is what helps: gamma cures vanishing gradients, one over sigma exploding ones.",
        ("gamma-cures-vanishing", "taylor-quadratic-term", "scale-invariance-auto-rate"),
    ),
    Sentence(
        "note",
        "The negative gradient is no descent direction if the quadratic term wins; with batch norm it cannot, so the "
        "step size needs no care.",
        ("taylor-quadratic-term",),
    ),
    Sentence(
        "layer",
        "The layer can become an identity; in practice gamma and beta do not become the old spread and mean.",
        ("identity-recoverable",),
    ),
    Sentence("layer", "It reduces high-order effects between layers.", ("high-order-effects",)),
    Sentence(
        "layer",
        "Its many entangled effects: covariate shift, learning rates, initialization, conditioning.",
        (
            "stable-activation-distributions",
            "noisy-batchnorm",
            "ics-gradient-shift",
            "learning-rate-tolerance",
            "normaliser-free-competitors",
            "conditioning",
        ),
    ),
    Sentence(
        "layer",
        "Tanh and the rectifier saturate where inputs are spread too far; batch norm before them prevents it, and "
        "gamma and beta choose how far.",
        ("tanh-saturation",),
    ),
    Sentence(
        "layer",
        "A mean of zero before a rectifier has half of the inputs saturated; a positive beta stops it.",
        ("relu-half-saturated",),
    ),
    Sentence("layer", "It belongs after the activation.", ("norm-before-or-after-activation",)),
    Sentence(
        "layer",
        "Gamma and beta are useless before a linear layer; about convolutions the author is not sure.",
        ("affine-before-linear-useless",),
    ),
)

#: Studies of what users ask beyond the texts.
EXTENSIONS = ("bn-only-training", "adversarial-vulnerability", "train-test-statistics-gap")

ERRATA = (
    Erratum(
        TEXTS["note"],
        "The input gradient of batch norm is gamma over sigma times the output gradient.",
        "Two terms are missing, through the mean and through the variance; the gradient of beta lacks its sum over the "
        "batch. In all layers of a network the omission is of order one and does not vanish with the batch size.",
        ("bn-backward-three-terms",),
    ),
    Erratum(
        TEXTS["note"],
        "If the quadratic term wins, the negative gradient is not a descent direction.",
        "It always is where it is not zero: the step is too long, beyond 2|g|^2 / g'Hg.",
        ("taylor-quadratic-term",),
    ),
    Erratum(
        TEXTS["note"],
        "Batch norm divides gradient and Hessian by sigma, so the quadratic term can no longer be larger.",
        "With sigma a constant the Hessian scales by one over sigma squared; where sigma is below one that raises the "
        "ratio of the two terms, and no step size is safe for all.",
        ("taylor-quadratic-term",),
    ),
    Erratum(
        TEXTS["note"],
        "Gamma cures vanishing gradients.",
        "Scaling gamma and beta of a layer behind which a rectifier and another batch norm follow changes no gradient "
        "of earlier layers.",
        ("gamma-cures-vanishing",),
    ),
    Erratum(
        TEXTS["review"],
        "Batch norm has a higher Lipschitzness.",
        "The paper means a smaller Lipschitz constant.",
        ("landscape-smoothness",),
    ),
    Erratum(
        TEXTS["review"],
        "The paper concludes that batch norm leads to flat minima.",
        "It only says that this could be so, and leaves it to later work.",
        ("flat-minima",),
    ),
    Erratum(
        TEXTS["gradient"],
        "Covariate shift is the variation between the values of two layers.",
        "Ioffe & Szegedy define it as the change of the distribution of a layer's inputs because of the updates of the "
        "layers before.",
        ("stable-activation-distributions", "ics-gradient-shift"),
    ),
    Erratum(
        TEXTS["gradient"],
        "The only help is the noise of the mini-batch.",
        "Batch norm without that noise, by the statistics of all data, trains as fast.",
        ("bn-noise-regularises",),
    ),
    Erratum(
        TEXTS["gradient"],
        "Beta beside a bias overfits.",
        "A bias before batch norm is inert: its gradient is zero exactly.",
        ("bias-before-bn-redundant", "beta-overfits"),
    ),
    Erratum(
        TEXTS["gradient"],
        "Fewer iterations by a factor of 14.",
        "That figure of the first paper bundles seven other changes; batch norm alone takes 2.3 times fewer there.",
        ("fewer-iterations",),
    ),
    Erratum(
        TEXTS["layer"],
        "The layer can become an identity.",
        "With population statistics only: in training a noise of 1.5 sigma squared over m remains.",
        ("identity-recoverable",),
    ),
    Erratum(
        TEXTS["layer"],
        "Half of a rectifier's inputs saturated means vanishing gradients.",
        "The gain of the weights makes up for it; the half that is cut off is the non-linearity.",
        ("relu-half-saturated",),
    ),
    Erratum(
        TEXTS["layer"],
        "Gamma and beta are useless before a linear layer.",
        "Not before a zero-padded convolution, where beta makes a border; and the dynamics of training differ.",
        ("affine-before-linear-useless",),
    ),
    Erratum(
        "Santurkar et al. 2018 (arXiv:1805.11604)",
        "The effective smoothness is much better with batch norm (Figures 4c, 10c).",
        "All arms settle at 2 over the learning rate, which is the edge of stability; close to the point the network "
        "with batch norm is often the sharper one. Figure 4b shows about one order of magnitude where the text says "
        "close to two. Single runs, no seeds.",
        ("beta-smoothness-is-edge-of-stability", "landscape-smoothness"),
    ),
    Erratum(
        "Santurkar et al. 2018 (arXiv:1805.11604)",
        "The standard deep linear network has almost no covariate shift; normalization by any lp norm does as well.",
        "The first holds in the panel with a learning rate of 1e-7 only; l-infinity is worse than batch norm in the "
        "paper's own figure. Whether the last layer is normalized, and by what the loss is divided, is not stated. "
        "Theorem 4.4 squares g_j twice.",
        ("ics-gradient-shift", "lp-normalisation"),
    ),
    Erratum(
        "Ioffe & Szegedy 2015 (arXiv:1502.03167)",
        "The network of section 4.1.",
        "Its learning rate and the spread of its initial weights are not given.",
        ("stable-activation-distributions",),
    ),
    Erratum(
        "Yang et al. 2019 (arXiv:1902.08129)",
        "Sigma after equation 9 is defined with the width.",
        "It is the batch size there, a slip of the pen in the version on OpenReview.",
        ("exploding-gradient-at-init",),
    ),
)


def texts_of(slug: str) -> tuple[str, ...]:
    """Return the keys of the texts that a study answers to, in the order of ``TEXTS``; none for an extension."""
    found = {sentence.text for sentence in SENTENCES if slug in sentence.studies}
    return tuple(key for key in TEXTS if key in found)
