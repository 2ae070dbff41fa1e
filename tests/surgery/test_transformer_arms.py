"""Arms of transformers: every norm changed, in layers of torch, by hand and of the transformers library."""

import pytest
import torch
from torch import nn

from kit.own_norms import Root
from normscope import layers
from normscope.evidence import Case, case_arm, example_transformers as nets
from normscope.surgery import norm_sites


class ByHand(nn.Module):
    """Takes the logits out of the output of a model of the library."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, words):
        return self.model(words).logits


def of_library(kind):
    library = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = library.GPT2Config(n_positions=8, n_embd=16, n_layer=2, n_head=2, **sizes)
        return ByHand(library.GPT2LMHeadModel(config))
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2, "max_position_embeddings": 8}
    return ByHand(library.LlamaForCausalLM(library.LlamaConfig(hidden_size=16, intermediate_size=24, **heads, **sizes)))


NETS = {
    "encoder": (lambda: nets.Encoder(2), 5),
    "encoder, norms behind": (lambda: nets.Encoder(2, first=False, final=False), 4),
    "by hand": (lambda: nets.Decoder(depth=2, tied=True), 5),
    "by hand, RMS": (lambda: nets.Decoder(Root, depth=2), 5),
    "gpt2": (lambda: of_library("gpt2"), 5),
    "llama": (lambda: of_library("llama"), 5),
}
KINDS = {"rms": ("RMSNorm", "LlamaRMSNorm", "Root"), "layer": ("LayerNorm",), "dyt": ("DynamicTanh",)}


def case_of(name):
    torch.manual_seed(0)
    model = NETS[name][0]().train()
    return Case(model, nets.next_words, nets.walks(), torch.optim.AdamW(model.parameters(), 1e-3))


@pytest.mark.parametrize("arm", ["rms", "layer", "dyt", "none", "batch"])
@pytest.mark.parametrize("name", NETS)
def test_every_norm_is_changed_and_the_weights_stay_and_the_arm_trains_and_evaluates(name, arm):
    case, count = case_of(name), NETS[name][1]
    own = {key: value.detach().clone() for key, value in case.model.named_parameters()}
    report = case_arm(case, arm)
    assert len(report.changes) + len(report.kept) == count
    assert not report.left
    assert not report.functional
    assert report.refuses() is None or len(report.kept) == count
    now = dict(case.model.named_parameters())
    assert all(torch.equal(now[key], own[key]) for key in own.keys() & now.keys())
    assert all(key.endswith(("alpha", "norm.weight", "bias")) for key in now.keys() - own.keys())
    held = {id(p) for group in case.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in case.model.parameters()}
    if arm == "none":
        assert all(isinstance(site.module, nn.Identity) for site in norm_sites(case.model))
    elif arm in KINDS:
        kinds = [type(module).__name__ for module in case.model.modules()]
        assert sum(kinds.count(kind) for kind in KINDS[arm]) == count
    x = case.loader[0][:, :-1]
    with torch.no_grad():
        trained = case.model(x)
        if arm != "batch":
            torch.testing.assert_close(case.model.eval()(x), trained)
        else:
            assert bool(case.model.eval()(x).isfinite().all())


def test_alpha_joins_the_group_of_the_gain_it_came_with():
    case = case_of("by hand")
    norms = [p for site in norm_sites(case.model) for p in site.module.parameters()]
    rest = [p for p in case.model.parameters() if all(p is not each for each in norms)]
    groups = [{"params": rest, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    case = Case(case.model, case.loss_fn, case.loader, torch.optim.AdamW(groups, 1e-3))
    case_arm(case, "dyt")
    alphas = {id(module.alpha) for module in case.model.modules() if isinstance(module, layers.DynamicTanh)}
    assert len(alphas) == 5
    assert alphas <= {id(p) for p in case.optimizer.param_groups[1]["params"]}
    assert len(case.optimizer.param_groups[1]["params"]) == 15


def test_a_norm_that_is_called_as_a_function_is_named_and_stays():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm, self.head = nn.Embedding(11, 16), nn.RMSNorm(16), nn.Linear(16, 11)

        def forward(self, words):
            x = self.words(words)
            x = x + torch.relu(self.norm(x))
            return self.head(torch.nn.functional.rms_norm(x, (16,)))

    model = Functional().train()
    case = Case(model, nets.next_words, nets.walks(), torch.optim.AdamW(model.parameters(), 1e-3))
    report = case_arm(case, "none")
    assert [change.path for change in report.changes] == ["norm"]
    (call,) = report.functional
    assert (call.path, call.function) == ("", "rms_norm")
    assert "the arm none still has (model): calls rms_norm" in report.incomplete()
