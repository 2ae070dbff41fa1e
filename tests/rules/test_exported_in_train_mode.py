"""What is deployed in train mode: which norms, found by a call or by what is written."""

import copy
from types import SimpleNamespace

import pytest
import torch

from kit.findings import finding_of, is_quiet, repaired
from normscope import checking, rules
from normscope.evidence import examples
from normscope.records.numbers import counted


@pytest.mark.parametrize("training", [["1"], ["4", "7"]])
def test_the_norms_in_train_mode_are_counted_and_put_into_eval_mode(training):
    case = examples.healthy(examples.mlp, trained=0)
    case.exported = copy.deepcopy(case.model).eval()
    for path in training:
        case.exported.get_submodule(path).train()
    finding = finding_of(case, "NS128")
    assert list(finding.places) == training
    assert finding.measured == len(training)
    assert finding.message.startswith(f"{counted(len(training), 'norm')} of what is deployed")
    assert "running statistics change with every call" in finding.message
    repaired(case, "NS128")
    assert not any(norm.training for norm in examples.norms(case.exported))


def test_an_export_is_made_anew_in_eval_mode():
    case = rules.get("NS128").SICK[0]()
    assert "exported the model anew" in repaired(case, "NS128")
    x = case.loader[0][0]
    expected = copy.deepcopy(case.model).eval()(x)
    torch.testing.assert_close(case.exported.module()(x), expected, rtol=1e-5, atol=1e-6)


def test_an_onnx_model_is_judged_by_its_training_mode():
    def model(*modes):
        nodes = [SimpleNamespace(op_type="Conv", name="c", attribute=[])]
        for index, mode in enumerate(modes):
            given = [SimpleNamespace(name="epsilon", i=0), SimpleNamespace(name="training_mode", i=mode)]
            nodes.append(SimpleNamespace(op_type="BatchNormalization", name=f"/{index}/bn", attribute=given))
        return SimpleNamespace(graph=SimpleNamespace(node=nodes))

    case = examples.healthy(examples.mlp, trained=0)
    case.exported = model(0, 0)
    assert not checking.check(case, ["NS128", "NS119"], gap=False)
    for modes in ((1, 0), (1, 1)):
        case.exported = model(*modes)
        (finding,) = checking.check(case, ["NS128", "NS119"], gap=False)
        assert (finding.code, finding.measured, finding.fixable) == ("NS128", sum(modes), False)


def test_an_export_is_left_as_it_was():
    case = rules.get("NS128").SICK[4]()
    before = {key: value.clone() for key, value in case.exported.state_dict().items()}
    assert not is_quiet(case, "NS128")
    assert case.exported.training
    assert all(torch.equal(before[key], value) for key, value in case.exported.state_dict().items())
