"""Residual streams that reach the head without a norm."""

from collections.abc import Iterable
from functools import partial

from torch import nn

from normscope.evidence import Evidence, Finding, NotShownError, Severity, example_transformers as nets, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_GROWTH = 2.0
_small = partial(nets.transformer, embedding=0.1)


class MissingFinalNorm(AbstractRule):
    r"""The stream of a pre-norm network reaches the head without a norm.

    ## Finds
    A layer that reads the last sum of a residual stream whose branches begin with a norm ($x + f(\mathrm{norm}(x))$),
    without a norm between, where the mean square of that sum is more than twice that of the values to which the first
    branch was added: more than half of what the head reads comes from the branches. ``torch.nn.TransformerEncoder``
    with ``norm_first=True`` and its default ``norm=None`` is such a network. Sums and norms are followed through the
    user's own forward pass; a norm may be a function, or of a class of its own. Where nothing was seen to read the last
    sum, the rule does not judge; where another function reads it, an activation say, nothing is found. Streams that do
    not grow, as with branches scaled to near 0, are left alone.

    Calibrated over six seeds on decoders by hand and torch's encoders, new and trained: planted defects found, 36 of
    36; findings on the same networks with a final norm, norms behind the sums, or branches scaled by .03, 0 of 42.

    ## Why it hurts
    Each branch adds about as much as the last, so that the stream's variance grows with depth and with training. A norm
    within a branch does not feel it, the head does: its outputs, and the gradient of its weights, grow with the depth,
    and from one token to another, so that the rate that suits the blocks may be too large for the head. With norms
    before the branches the published architectures (GPT-2, ViT, Llama) therefore have one more norm behind the last
    block.

    No harm was measured on a small network: eight blocks of width 64 that learn text by its letters ended 120 steps at
    a loss of 2.49 and 2.51 without the norm, and of 2.55 and 2.58 with it, at a rate of .001 (two seeds); at .01, of
    2.49 without and 2.56 with it. Hence only an information.

    ## Fix
    None that is mechanical, since a norm has parameters that a checkpoint lacks: put one before the head,
    ``nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width))``.
    """

    CODE = "NS139"
    SLUG = "missing-final-norm"
    SEVERITY = Severity.INFO
    SOURCES = (
        "Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv:2002.04745",
        "NVIDIA-NeMo/Speech#2197",
    )
    SICK = (
        examples.Planted(partial(_small, final=False), ["head"]),
        examples.Planted(partial(_small, nets.Encoder, final=False), ["head"]),
        examples.Planted(partial(_small, placement="parallel", final=False, tied=True), [""]),
        examples.Planted(partial(_small, norm=nn.RMSNorm, final=False, fused=False), ["head"]),
    )
    WELL = (
        _small,
        partial(_small, nets.Encoder),
        partial(_small, placement="post", final=False),
        partial(_small, final=False, branch=0.03),
        partial(examples.healthy, examples.mlp),
    )
    NEAR = (
        examples.Near(lambda branch: _small(final=False, branch=branch), found=0.33, quiet=0.3),
        examples.Near(lambda final: _small(final=final), found=False, quiet=True),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look up what reads the last sums."""
        seen = evidence.residuals
        grown = [head for head in seen.heads if head.size > _GROWTH * head.begin]
        if not seen.heads and seen.unread:
            raise NotShownError(
                f"what reads the last of {counted(seen.unread, 'residual sum')} was not seen: no norm and no layer does"
            )
        if not grown:
            return
        worst = max(grown, key=lambda head: head.size / head.begin if head.begin else 0.0)
        ratio = worst.size / max(worst.begin, 1e-30)
        yield self.finding(
            f"{worst.place or 'the model'} reads a stream of {counted(worst.sums, 'residual sum')} without a norm: its "
            f"mean square is {worst.size:.3g} there, and was {worst.begin:.3g} before the first block",
            [head.place for head in grown],
            quantity="mean square of the stream at its end over that at its beginning",
            measured=ratio,
            bound=_GROWTH,
            cost="outputs, and gradients of the head, grow with depth and with what the blocks learn",
            fix="put a norm before the head, as nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width))",
            details={"sums": float(worst.sums), "size": worst.size, "begin": worst.begin},
        )
