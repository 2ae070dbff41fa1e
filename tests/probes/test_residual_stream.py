"""The residual stream against the formulas, block by block and token by token, and what cannot be read of it."""

import pytest
import torch
from torch import nn

from kit.readings import read
from normscope.evidence import example_transformers as nets
from normscope.probes import ResidualStream, get
from normscope.probes.remarks import Readings

PLACES = {"": slice(None), "@first": slice(0, 1), "@middle": slice(4, 5), "@last": slice(7, 8)}


def by_formula(x, y):
    """Return mean variance, mean share of the mean, and mean cosine over tokens ``(..., C)``, by their definitions."""
    x, y = x.double().flatten(0, -2), y.double().flatten(0, -2)
    variance = ((y - y.mean(1, keepdim=True)) ** 2).mean(1)
    share = y.mean(1) ** 2 / (y**2).mean(1)
    cosine = (x * y).sum(1) / ((x**2).sum(1) * (y**2).sum(1)).sqrt()
    return {"variance": variance.mean(), "mean_share": share.mean(), "cosine": cosine.mean()}


def flows(model, batch, loss, sites):
    """Return what each site reads and makes."""
    found, handles = {}, []
    for site in sites:

        def look(_module, args, output, site=site):
            found[site] = args[0].detach(), (output[0] if isinstance(output, tuple) else output).detach()

        handles.append(model.get_submodule(site).register_forward_hook(look))
    loss(model, batch)
    for handle in handles:
        handle.remove()
    return found


def expected(model, batch, loss, sites, length_axis=1):
    values = {}
    for site, (x, y) in flows(model, batch, loss, sites).items():
        x, y = x.movedim(length_axis, 1), y.movedim(length_axis, 1)
        for end, picked in PLACES.items():
            for name, value in by_formula(x[:, picked], y[:, picked]).items():
                values[site, f"{name}{end}"] = float(value)
    return values


def shifted(model):
    """Give norms, which start alike, and the stream other values than those at the start."""
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=stream) + 0.05
    return model


NETS = {
    "by hand, tied": (lambda: nets.Decoder(tied=True, groups=1), "blocks"),
    "by hand, RMS, norms behind": (lambda: nets.Decoder(nn.RMSNorm, "post"), "blocks"),
    "torch's": (nets.Encoder, "encoder.layers"),
}


@pytest.mark.parametrize("name", NETS)
def test_each_block_at_all_tokens_and_at_three_positions(name):
    make, blocks = NETS[name]
    torch.manual_seed(0)
    model, batch = shifted(make()), nets.walks()[0]
    sites = [f"{blocks}.{index}" for index in range(3)]
    reading = read(model, nets.next_words, batch, ResidualStream())
    reading = {key: value for key, value in reading.items() if key[0] in sites}
    assert reading == pytest.approx(expected(model, batch, nets.next_words, sites), rel=1e-5)


def test_positions_are_on_the_first_axis_where_attention_says_so():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 12, 0.0, norm_first=True)
    model, x = shifted(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)), torch.randn(8, 3, 6)
    reading = read(model, lambda m, x: m(x).square().mean(), x, ResidualStream())
    wanted = expected(model, x, lambda m, x: m(x), ["layers.0", "layers.1"], length_axis=0)
    assert reading == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_models_of_transformers(kind):
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = library.GPT2LMHeadModel(library.GPT2Config(n_positions=8, n_embd=16, n_layer=2, n_head=2, **sizes))
        sites = ["transformer.h.0", "transformer.h.1"]
    else:
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
        model = library.LlamaForCausalLM(library.LlamaConfig(hidden_size=16, max_position_embeddings=8, **sizes))
        sites = ["model.layers.0", "model.layers.1"]

    def loss(model, batch):
        return nets.next_words(lambda words: model(words).logits, batch)

    reading = read(model, loss, nets.walks()[0], ResidualStream())
    assert reading == pytest.approx(expected(model, nets.walks()[0], loss, sites), rel=1e-4)


class Branch(nn.Module):
    def __init__(self, inner, add=True):
        super().__init__()
        self.inner, self.add = inner, add

    def forward(self, x):
        return x + self.inner(x) if self.add else self.inner(x)


def square(model, x):
    return model(x).square().mean()


def test_maps_have_their_features_on_the_second_axis_and_no_positions():
    torch.manual_seed(0)
    block = Branch(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)))
    model, x = nn.Sequential(block), torch.randn(3, 4, 5, 5)
    x_in, y = flows(model, x, square, ["0"])["0"]
    wanted = {("0", name): float(v) for name, v in by_formula(x_in.movedim(1, -1), y.movedim(1, -1)).items()}
    reading = {key: value for key, value in read(model, square, x, ResidualStream()).items() if key[0] == "0"}
    assert reading == pytest.approx(wanted, rel=1e-5)


def test_what_is_not_read_is_named():
    torch.manual_seed(0)
    flat = nn.Sequential(Branch(nn.Linear(6, 6)), Branch(nn.Linear(6, 6)))
    reading = read(flat, square, torch.randn(12, 6), ResidualStream())
    assert reading["0", "unread@positions"] == reading["1", "unread@positions"] == 1
    assert {name for site, name in reading if site == "0"} == {"variance", "mean_share", "cosine", "unread@positions"}
    remarks = ResidualStream.stands_out(
        Readings({name: {site: [(0, v)]} for (site, name), v in reading.items() if site == "0"}, {})
    )
    assert any("not read by position (`0`): its tokens do not lie along an axis" in remark.says for remark in remarks)


def test_a_block_that_changes_the_shape_or_its_input_says_so():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return self.inner(x.mul_(2.0))

    torch.manual_seed(0)
    model = nn.Sequential(Branch(nn.Linear(6, 6)), Branch(nn.Linear(6, 4), add=False), Branch(nn.Linear(4, 4)))
    reading = read(model, square, torch.randn(3, 5, 6), ResidualStream())
    assert {site for site, _ in reading} == {"0", "2"}  # what always changes the shape is no block
    assert {site for site, name in reading if name == "variance"} == {"0", "2"}
    lengths = Branch(nn.Sequential(nn.Linear(6, 6)), add=False)
    lengths.register_forward_hook(lambda _m, args, y: y[:, :1] if len(args[0]) == 2 else None)

    def twice(model, x):
        return model(x).square().mean() + model(x[:2]).square().mean()

    assert read(nn.Sequential(lengths), twice, torch.randn(3, 5, 6), ResidualStream())["0", "unread@shape"] == 1
    model = nn.Sequential(Branch(nn.Linear(6, 6)), Overwrites())
    reading = read(model, square, torch.randn(3, 5, 6), ResidualStream())
    assert reading["1", "unread@overwritten"] == 1
    assert ("1", "cosine") not in reading


def test_a_block_that_is_called_twice_is_averaged_over_its_tokens():
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.ModuleList([Branch(nn.Linear(6, 6))])})
    x, z = torch.randn(2, 8, 6), torch.randn(5, 8, 6)

    def loss(model, batch):
        return model["blocks"][0](x).square().mean() + model["blocks"][0](z).square().mean()

    block, both = model["blocks"][0], torch.cat([x, z])
    wanted = by_formula(both, block(both).detach())
    reading = read(model, loss, None, ResidualStream())
    assert {name: reading["blocks.0", name] for name in wanted} == pytest.approx(
        {name: float(value) for name, value in wanted.items()}, rel=1e-5
    )


def test_a_token_of_zeros_has_no_direction_and_no_mean():
    model = nn.Sequential(Branch(nn.Linear(6, 6, bias=False)))
    reading = read(model, square, torch.zeros(2, 8, 6), get("residual_stream")())
    assert set(reading.values()) == {0.0}


def test_sites_can_be_named():
    torch.manual_seed(0)
    model, batch = nets.Decoder(), nets.walks()[0]
    reading = read(model, nets.next_words, batch, ResidualStream(["final"]))
    assert {site for site, _ in reading} == {"final"}
    assert reading["final", "variance"] == pytest.approx(1, rel=1e-3)
    assert reading["final", "mean_share"] == pytest.approx(0, abs=1e-6)
