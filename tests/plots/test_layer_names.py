"""Labels of layers: short, and no two the same."""

import pytest
from hypothesis import given, strategies as st
from torch import nn

from normscope.plots import short_names


def test_a_short_name_stays_and_a_long_one_loses_its_beginning():
    names = short_names(["", "fc", "backbone.stages.3.blocks.11.convolution"])
    assert names[""] == "the whole model"
    assert names["fc"] == "fc"
    assert names["backbone.stages.3.blocks.11.convolution"] == "…3.blocks.11.convolution"


def test_encoder_and_decoder_are_told_apart():
    model = nn.Transformer(8, 2, 2, 2, 16, batch_first=True)
    names = short_names([name for name, _ in model.named_modules()])
    assert names["encoder.layers.0.self_attn"] != names["decoder.layers.0.self_attn"]
    assert "encoder" in names["encoder.layers.0.self_attn.out_proj"]
    assert names["decoder.layers.0.self_attn.out_proj"].endswith("out_proj")
    assert len(set(names.values())) == len(names)
    assert not any("(" in label for label in names.values())  # all are told apart by words of their names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.text_tower.layers.0.attention.output", "model.image_tower.layers.0.attention.output"),
        ("a_branch_with_a_very_long_name_of_its_own", "another_branch_with_a_very_long_name_of_its_own"),
        ("net.stages.1.blocks.attention.projection", "net.stages.11.blocks.attention.projection"),
        ("student.module.module.head.projection", "student.module.module.module.head.projection"),
    ],
)
def test_what_tells_two_names_apart_stays(one, other):
    names = short_names([one, other])
    assert names[one] != names[other]
    assert all(len(label) <= 24 for label in names.values())


WORDS = st.sampled_from(["encoder", "decoder", "layers", "0", "1", "self_attention", "projection", "a"])


@given(st.sets(st.lists(WORDS, min_size=1, max_size=7).map(".".join), max_size=12))
def test_no_two_labels_are_the_same(sites):
    names = short_names(sorted(sites))
    assert len(set(names.values())) == len(sites)
    assert all(len(label) <= 24 for label in names.values())
