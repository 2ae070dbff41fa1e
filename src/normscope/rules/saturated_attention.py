"""Attention whose softmax is one-hot to rounding."""

from collections.abc import Iterable
from functools import partial

from normscope.evidence import Evidence, Finding, NotShownError, Severity, example_transformers as nets, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_SHARE = 0.5
_NAMES = ("attention", "attn")


class SaturatedAttention(AbstractRule):
    r"""Attention logits are so large that the softmax passes no gradient.

    ## Finds
    Attention of which more than half of the queries, over heads, samples and positions, have a softmax that is one-hot
    to the rounding of float32: the trace of its Jacobian, $1 - \sum_j p_j^2$, is below $2^{-20}$, as where one logit
    is 15 above one other. Queries that see one key alone do not count. Looked at are
    ``scaled_dot_product_attention``, ``torch.nn.MultiheadAttention`` and every softmax over the last axis of a product
    of two tensors, with their masks and scales. A head that attends to one token by .999 is far from the bound. Where a
    module is named an attention and none of these was called, as with a kernel of another library, the rule does not
    judge.

    Calibrated over six seeds on decoders by hand (both ways) and torch's encoders: planted defects found, 18 of 18;
    findings on the same networks, new and trained until they predict, 0 of 24.

    ## Why it hurts
    The gradient of the logits is the softmax's Jacobian times the gradient of the weights: of a one-hot softmax it is
    0, and queries and keys no longer learn which token to attend to. Logits are a product of two activations, and
    nothing bounds their size: at high learning rates they grow, attention becomes one-hot, and training diverges.

    ## Fix
    None that is mechanical: a layer or RMS norm of queries and keys before their product bounds the logits, so does a
    cap ($c\tanh(z/c)$); a lower learning rate or a warm-up keeps them from growing. Queries or keys that were scaled
    twice, or not by $1/\sqrt{d}$, are mended where they are scaled.
    """

    CODE = "NS141"
    SLUG = "saturated-attention"
    SEVERITY = Severity.WARNING
    SOURCES = (
        "Dehghani et al. 2023, Scaling Vision Transformers to 22 Billion Parameters, arXiv:2302.05442",
        "Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities, "
        "arXiv:2309.14322",
    )
    SICK = (
        examples.Planted(partial(nets.transformer, logits=2000.0, depth=1), ["blocks.0.attention"]),
        examples.Planted(partial(nets.transformer, logits=2000.0, depth=1, fused=False), ["blocks.0.attention"]),
        examples.Planted(
            partial(nets.transformer, nets.Encoder, depth=1, change=partial(nets.scale_queries, factor=2000.0)),
            ["encoder.layers.0.self_attn"],
        ),
    )
    WELL = (
        nets.transformer,
        partial(nets.transformer, nets.Encoder, trained=30),
        partial(nets.transformer, fused=False, groups=1, trained=30),
        partial(examples.healthy, examples.mlp),
    )
    NEAR = (
        examples.Near(nets.one_hot_attention, found=17.0, quiet=16.0),
        examples.Near(lambda share: nets.one_hot_attention(20.0, share), found=0.625, quiet=0.5),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look at the share of queries that pass no gradient, place by place."""
        seen = {place: each for place, each in evidence.attention.items() if each.queries}
        named = [path for path, module in evidence.modules.items() if _is_named(type(module).__name__)]
        if not seen and named:
            raise NotShownError(f"the softmax of {named[0]} was not seen: it is computed in a way that is not followed")
        dead = {place: each for place, each in seen.items() if each.dead > _SHARE * each.queries}
        if not dead:
            return
        worst = max(dead.values(), key=lambda each: each.dead / each.queries)
        largest = max(each.largest for each in dead.values())
        yield self.finding(
            f"{counted(len(dead), 'attention')} of {len(seen)}: the softmax is one-hot for "
            f"{worst.dead / worst.queries:.0%} of the queries, with logits up to {largest:.3g}",
            list(dead),
            quantity="share of queries whose softmax passes no gradient",
            measured=worst.dead / worst.queries,
            bound=_SHARE,
            cost="queries and keys of these heads do not learn",
            fix="put a layer or RMS norm on queries and keys, lower the learning rate, or look up how logits are "
            "scaled",
            details={
                "largest_logit": largest,
                "entropy": worst.entropy / worst.queries,
                "passed": worst.passed / worst.queries,
            },
        )


def _is_named(name: str) -> bool:
    return any(part in name.lower() for part in _NAMES)
