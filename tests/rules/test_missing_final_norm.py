"""What reads a residual stream without a norm: streams whose sizes are done by hand, and layouts of public code."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kit.findings import finding_of, is_quiet
from kit.own_norms import Root
from normscope import checking
from normscope.evidence import Case, example_transformers as nets

CODE = "NS139"


class Known(nn.Module):
    """Features plus or minus 1, to which each branch adds twice their norm: a stream of 1, 3, 5, 7."""

    def __init__(self, branches=3, end="head", carry=lambda x: x):
        super().__init__()
        self.first, self.end, self.carry = nn.Linear(6, 6, bias=False), end, carry
        self.norms = nn.ModuleList(nn.LayerNorm(6, eps=0.0) for _ in range(branches))
        self.last, self.head = nn.LayerNorm(6), nn.Linear(6, 3)
        nn.init.eye_(self.first.weight)

    def forward(self, x):
        x = self.first(x)
        for norm in self.norms:
            x = x + 2 * norm(x)
        x = self.carry(x)
        if self.end == "function":
            x = F.layer_norm(x, (6,))
        elif self.end == "by hand":
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        elif self.end == "module":
            x = self.last(x)
        return x if self.end == "nothing" else self.head(x)


def case_of(model):
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).expand(4, 5, 6)
    return Case(model.train(), lambda m, x: m(x).square().mean(), [signs] * 3, torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("branches", [1, 3])
def test_the_stream_is_measured_at_its_end_and_at_its_beginning(branches):
    finding = finding_of(case_of(Known(branches)), CODE)
    assert finding.places == ("head",)
    assert finding.measured == pytest.approx((1 + 2 * branches) ** 2)
    assert finding.details == pytest.approx({"sums": branches, "size": (1 + 2 * branches) ** 2, "begin": 1})
    assert finding.bound == 2


@pytest.mark.parametrize(
    "carry",
    [
        lambda x: x[:, -1],
        lambda x: x.mean(1),
        lambda x: F.dropout(x.transpose(0, 1), 0.1).contiguous(),
        lambda x: x.to(torch.float64).float().flatten(0, 1),
        lambda x: x * torch.ones(5, 1),
        lambda x: torch.cat([x[:, :2], x[:, 2:]], 1),
    ],
)
def test_picking_averaging_and_masking_leave_the_stream_what_it_is(carry):
    assert finding_of(case_of(Known(carry=carry)), CODE).measured == pytest.approx(49)


@pytest.mark.parametrize("end", ["module", "function", "by hand"])
def test_a_norm_of_any_kind_before_the_head_ends_the_stream(end):
    assert is_quiet(case_of(Known(end=end)), CODE)
    assert is_quiet(case_of(Known(end=end, carry=lambda x: x.mean(1))), CODE)


def test_it_does_not_judge_where_nothing_was_seen_to_read_the_last_sum():
    found = checking.check(case_of(Known(end="nothing")), [CODE], gap=False)
    assert not list(found)
    assert found.unmeasured == (
        (CODE, "what reads the last of 3 residual sums was not seen: no norm and no layer does"),
    )


def test_a_norm_of_the_users_own_without_a_telling_name_is_a_norm():
    assert finding_of(nets.transformer(norm=Root, final=False, embedding=0.1), CODE).details["sums"] == 6
    assert is_quiet(nets.transformer(norm=Root, embedding=0.1), CODE)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_models_of_transformers_have_their_final_norm_and_miss_it_without(kind):
    library = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    torch.manual_seed(0)
    if kind == "gpt2":
        model = library.GPT2LMHeadModel(library.GPT2Config(n_positions=8, n_embd=16, n_layer=2, n_head=2, **sizes))
        inner, name = model.transformer, "ln_f"
    else:
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
        model = library.LlamaForCausalLM(
            library.LlamaConfig(hidden_size=16, intermediate_size=24, max_position_embeddings=8, **heads, **sizes)
        )
        inner, name = model.model, "norm"

    def loss(model, batch):
        return nets.next_words(lambda words: model(words).logits, batch)

    case = Case(model.train(), loss, nets.walks(), torch.optim.AdamW(model.parameters(), 1e-3))
    assert is_quiet(case, CODE)
    setattr(inner, name, nn.Identity())
    finding = finding_of(case, CODE)
    assert finding.places == ("lm_head",)
    assert finding.details["sums"] == 4
