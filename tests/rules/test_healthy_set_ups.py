"""Healthy set-ups are left in peace by every rule: no error, no warning; an information may be."""

import healthy_loops  # noqa: F401
import healthy_networks  # noqa: F401
import pytest
import torch
from healthy import HEALTHY

from normscope import checking, evidence, rules
from normscope.modules.state import Snapshot
from normscope.records import Severity


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_in_a_healthy_set_up(name):
    torch.manual_seed(0)
    case = HEALTHY[name]()
    before = Snapshot(case.model)
    found = checking.check(case)
    assert [f"{one.code} {one.message}" for one in found if one.severity is not Severity.INFO] == []
    assert before.differences() == []
    assert len(found.rules) == len(rules.all())


def test_there_are_many_healthy_set_ups():
    assert len(HEALTHY) >= 25


@pytest.mark.parametrize("kind", ["resnet", pytest.param("mobilenet_v2", marks=pytest.mark.long), "vit", "bert"])
def test_models_of_transformers_built_from_a_config(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"num_labels": 4}
    if kind == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], **small)
        model = transformers.ResNetForImageClassification(config)
    elif kind == "mobilenet_v2":
        config = transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.25, **small)
        model = transformers.MobileNetV2ForImageClassification(config)
    elif kind == "vit":
        layers = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.ViTConfig(image_size=32, patch_size=8, **layers, **small)
        model = transformers.ViTForImageClassification(config)
    else:
        layers = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **layers, **small))

    def batch():
        images, words = {"pixel_values": torch.randn(32, 3, 32, 32)}, {"input_ids": torch.randint(50, (32, 12))}
        inputs = words if kind == "bert" else images
        return inputs | {"labels": torch.randint(4, (len(next(iter(inputs.values()))),))}

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = [batch() for _ in range(6)]
    model.train()
    for _ in range(4):
        for one in loader:
            optimizer.zero_grad()
            model(**one).loss.backward()
            optimizer.step()
    found = checking.check(evidence.Case(model, lambda model, one: model(**one).loss, loader, optimizer))
    said = [f"{one.code} {one.message}" for one in found if one.severity is not Severity.INFO]
    if kind == "mobilenet_v2":  # its norms have another framework's momentum, 0.997: that one is no false alarm
        assert [line[:5] for line in said] == ["NS108"]
        return
    assert said == []
