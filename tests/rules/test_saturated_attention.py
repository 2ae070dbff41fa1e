"""What a softmax passes on, against the formula of its Jacobian, for every way to call attention."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kit.findings import finding_of, is_quiet
from normscope import checking
from normscope.evidence import Case, Evidence, example_transformers as nets

CODE = "NS141"


def expected(logits):
    """Return queries, largest logit, mean trace and mean entropy, each of the latter over its most, by definition."""
    rows = [row[row > -math.inf] for row in logits.double().flatten(0, -2)]
    rows = [row for row in rows if len(row) > 1]
    traces, entropies = [], []
    for row in rows:
        weights = torch.softmax(row, 0)
        jacobian = torch.autograd.functional.jacobian(lambda z: torch.softmax(z, 0), row)
        traces.append(float(jacobian.trace()) / (1 - 1 / len(row)))
        entropies.append(float(-(weights * weights.log()).sum()) / math.log(len(row)))
    return len(rows), max(float(row.abs().max()) for row in rows), sum(traces), sum(entropies)


class Calls(nn.Module):
    """Queries and keys that are the input, and attention called in one way."""

    def __init__(self, way):
        super().__init__()
        self.way, self.head = way, nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.way(x))


def seen(way, x):
    model = Calls(way)
    case = Case(model, lambda m, b: m(b).square().mean(), [x] * 3, torch.optim.SGD(model.parameters(), 0.1))
    (found,) = Evidence(case, batches=1).attention.values()
    return found.queries, found.largest, found.passed, found.entropy


CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


def by_hand(x, mask=None, scale=6**-0.5):
    logits = x @ x.transpose(-2, -1) * scale
    return logits if mask is None else logits.masked_fill(~mask, -math.inf)


WAYS = {
    "fused": (lambda x: F.scaled_dot_product_attention(x, x, x), by_hand),
    "causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), lambda x: by_hand(x, CAUSAL)),
    "masked": (
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=CAUSAL, scale=2.0),
        lambda x: by_hand(x, CAUSAL, 2.0),
    ),
    "by hand": (lambda x: torch.softmax(by_hand(x, CAUSAL), -1) @ x, lambda x: by_hand(x, CAUSAL)),
    "einsum and a cap": (
        lambda x: (4 * torch.tanh(torch.einsum("nld,nsd->nls", x, x) / 4)).float().softmax(dim=2) @ x,
        lambda x: 4 * torch.tanh(by_hand(x, scale=1.0) / 4),
    ),
    "a mask of large numbers": (
        lambda x: F.softmax(x @ x.mT + torch.where(CAUSAL, 0.0, -1e9), -1, dtype=torch.float32) @ x,
        lambda x: by_hand(x, CAUSAL, 1.0),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_queries_logits_trace_and_entropy_are_those_of_the_definition(way):
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    call, logits = WAYS[way]
    assert seen(call, x) == pytest.approx(expected(logits(x)), rel=1e-4)


@pytest.mark.parametrize("hidden", [None, "padding", "causal"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_multi_head_attention_is_looked_at_through_its_projections(hidden, batch_first):
    torch.manual_seed(1)
    layer = nn.MultiheadAttention(6, 2, batch_first=batch_first)
    x = torch.randn(3, 5, 6) * 4
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    masks = {"padding": {"key_padding_mask": padding}, "causal": {"attn_mask": ~CAUSAL}}.get(hidden, {})

    def way(x):
        x = x if batch_first else x.transpose(0, 1)
        return layer(x, x, x, need_weights=False, **masks)[0]

    q, k, _ = (
        part.unflatten(2, (2, 3)).transpose(1, 2)
        for part in F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, 2)
    )
    logits = q @ k.mT / math.sqrt(3)
    if hidden == "padding":
        logits = logits.masked_fill(padding[:, None, None], -math.inf)
    elif hidden == "causal":
        logits = logits.masked_fill(~CAUSAL, -math.inf)
    assert seen(way, x) == pytest.approx(expected(logits.detach()), rel=1e-4)


def test_keys_that_heads_share_are_repeated():
    torch.manual_seed(2)
    x = torch.randn(3, 4, 5, 6)

    def way(x):
        return F.scaled_dot_product_attention(x, x[:, ::2], x[:, ::2], enable_gqa=True)

    logits = x @ x[:, ::2].repeat_interleave(2, 1).mT / math.sqrt(6)
    assert seen(way, x) == pytest.approx(expected(logits), rel=1e-4)


def test_a_softmax_over_the_outputs_of_a_layer_is_no_attention():
    model = nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1), nn.Linear(4, 2))
    x = torch.randn(3, 5, 6)
    case = Case(model, lambda m, b: m(b).square().mean(), [x] * 3, torch.optim.SGD(model.parameters(), 0.1))
    assert Evidence(case).attention == {}


def test_a_finding_names_the_share_and_the_largest_logit():
    finding = finding_of(nets.one_hot_attention(30.0), CODE)
    assert finding.measured == 0.75
    assert finding.details["largest_logit"] == pytest.approx(30)
    assert finding.details["passed"] == pytest.approx(
        0.25 * float(expected(torch.eye(8)[:1])[2]), rel=1e-4
    )  # three quarters pass nothing, a quarter as a logit of 1 beside seven of 0
    assert "one-hot for 75% of the queries, with logits up to 30" in finding.message


def test_attention_that_cannot_be_followed_is_not_judged():
    class FlashAttention(nn.Linear):
        pass

    model = nn.Sequential(FlashAttention(6, 6), nn.Linear(6, 2))
    case = Case(
        model, lambda m, b: m(b).square().mean(), [torch.randn(4, 6)] * 3, torch.optim.SGD(model.parameters(), 0.1)
    )
    ((code, why),) = checking.check(case, [CODE], gap=False).unmeasured
    assert code == CODE
    assert why.startswith("the softmax of 0 was not seen")


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_llama_with_either_attention_of_the_library(kind):
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "bos_token_id": 0}
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 8}
    config = library.LlamaConfig(**sizes, **heads, eos_token_id=0, attn_implementation=kind)
    model = library.LlamaForCausalLM(config).train()

    def loss(model, batch):
        return nets.next_words(lambda words: model(words).logits, batch)

    case = Case(model, loss, nets.walks(), torch.optim.AdamW(model.parameters(), 1e-3))
    assert is_quiet(case, CODE)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight *= 1e7
    assert finding_of(case, CODE).places == ("model.layers.1.self_attn",)
