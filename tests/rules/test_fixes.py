"""What fixes keep: the function where they say so, the optimizer's hold, what was not meant."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from normscope import checking, layers, rules
from normscope.evidence import examples


def _repaired(case, code):
    made = checking.fix(case, checking.check(case, [code], gap=False), unsafe=True)
    assert [bool(one.done) for one in made] == [True] * len(made) != []
    return made


def _outputs(case, *, training):
    model = copy.deepcopy(case.model).train(training)
    with torch.no_grad():
        return model(case.loader[0][0])


@pytest.mark.parametrize("make", rules.get("NS122").SICK)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_dropping_a_redundant_bias_keeps_function_and_training(make, kind):
    case = make()
    case.optimizer = kind(case.model.parameters(), lr=0.01)
    before = [_outputs(case, training=mode) for mode in (True, False)]
    held = sum(p.numel() for p in case.model.parameters())
    _repaired(case, "NS122")
    for old, mode in zip(before, (True, False), strict=True):
        torch.testing.assert_close(_outputs(case, training=mode), old, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in case.model.parameters()) < held
    known = {id(p) for group in case.optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in case.model.parameters()}
    examples.loss_fn(case.model, case.loader[0]).backward()
    case.optimizer.step()


def test_a_bias_that_a_frozen_norm_uses_is_no_finding_but_dropping_it_would_show():
    case = examples.healthy(examples.cnn, bias=True)
    norm, conv = case.model[1], case.model[0]
    before = _outputs(case, training=False)
    with torch.no_grad():
        conv.bias.add_(1.0)  # the eval function reads it: only the running mean can make up for it
    assert not torch.allclose(_outputs(case, training=False), before)
    norm.running_mean.add_(1.0)
    torch.testing.assert_close(_outputs(case, training=False), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", [False, True])
def test_moving_gain_and_shift_keeps_every_parameter_once_and_every_option(named):
    case = examples.healthy(examples.cnn)
    given = case.model.named_parameters() if named else case.model.parameters()
    case.optimizer = torch.optim.AdamW(given, lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))
    examples.loss_fn(case.model, case.loader[0]).backward()
    case.optimizer.step()
    state = {id(key): value for key, value in case.optimizer.state.items()}
    _repaired(case, "NS123")
    groups = case.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(group["lr"] == 0.02 and group["betas"] == (0.8, 0.9) for group in groups)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in case.model.parameters())
    assert {id(p) for p in groups[1]["params"]} == {id(p) for m in examples.norms(case.model) for p in m.parameters()}
    assert state == {id(key): value for key, value in case.optimizer.state.items()}
    if named:
        names = dict(case.model.named_parameters())
        assert all(names[n] is p for g in groups for n, p in zip(g["param_names"], g["params"], strict=True))
    case.optimizer.step()


def test_pruning_a_channel_that_relu_cuts_off_keeps_the_function():
    case = rules.get("NS121").SICK[0]()
    before = _outputs(case, training=False)
    _repaired(case, "NS121")
    torch.testing.assert_close(_outputs(case, training=False), before, rtol=1e-5, atol=1e-6)


def test_folding_anew_gives_the_function_of_the_model():
    for make in rules.get("NS119").SICK:
        case = make()
        expected = _outputs(case, training=False)
        x = case.loader[0][0]
        with torch.no_grad():
            assert float((case.exported(x) - expected).abs().max()) > 1e-4 * float(expected.abs().max())
            _repaired(case, "NS119")
            torch.testing.assert_close(case.exported(x), expected, rtol=1e-4, atol=1e-5)


def test_precise_norms_do_not_have_the_error_that_is_found():
    case = rules.get("NS124").SICK[1]()
    x = case.loader[0][0]
    exact = nn.functional.batch_norm(x.double(), None, None, training=True)
    found = checking.check(case, ["NS124"], gap=False)[0]
    ours = layers.BatchNorm1d(12, affine=False)(x)
    assert float((ours.double() - exact).abs().max()) < 0.1 * found.measured


def test_dropout_is_a_matter_of_which_variance_the_buffers_have():
    case = rules.get("NS125").SICK[0]()

    def loss():
        model = copy.deepcopy(case.model).eval()
        with torch.no_grad():
            return sum(float(examples.loss_fn(model, batch)) for batch in case.eval_loader)

    before = loss()
    _repaired(case, "NS125")
    assert loss() < before


def test_an_onnx_model_is_judged_by_its_training_mode():
    def model(mode):
        attributes = [SimpleNamespace(name="epsilon", i=0), SimpleNamespace(name="training_mode", i=mode)]
        nodes = [SimpleNamespace(op_type="Conv", name="c", attribute=[])]
        nodes.append(SimpleNamespace(op_type="BatchNormalization", name="/1/BatchNormalization", attribute=attributes))
        return SimpleNamespace(graph=SimpleNamespace(node=nodes))

    case = examples.healthy(examples.cnn)
    case.exported = model(0)
    assert not checking.check(case, ["NS128", "NS119"], gap=False)
    case.exported = model(1)
    found = checking.check(case, ["NS128", "NS119"], gap=False)
    assert [(finding.code, finding.measured, finding.fixable) for finding in found] == [("NS128", 1.0, False)]


def test_an_export_is_left_as_it_was():
    case = rules.get("NS128").SICK[4]()
    before = {key: value.clone() for key, value in case.exported.state_dict().items()}
    assert checking.check(case, ["NS128"], gap=False)
    assert case.exported.training
    assert all(torch.equal(before[key], value) for key, value in case.exported.state_dict().items())


def test_many_layers_are_one_finding():
    deep = partial(examples.healthy, examples.mlp, trained=0, depth=40, bias=True)
    found = checking.check(deep(), ["NS122", "NS126"], gap=False)
    assert [(finding.code, len(finding.places)) for finding in found] == [("NS126", 40), ("NS122", 40)]


def test_a_negative_loss_is_no_gap_and_a_gap_in_it_is_found():
    def below_zero(model, batch):
        return examples.loss_fn(model, batch) - 1.0

    well = examples.healthy(examples.mlp)
    well.loss_fn = below_zero
    assert not checking.check(well, ["NS102"])
    sick = rules.get("NS102").SICK[0]()
    sick.loss_fn = below_zero
    assert [finding.code for finding in checking.check(sick, ["NS102"])] == ["NS102"]


@pytest.mark.parametrize("make", rules.get("NS103").SICK)
def test_repaired_statistics_are_not_called_young(make):
    case = make()
    _repaired(case, "NS103")
    assert [finding.code for finding in checking.check(case, ["NS103", "NS109"], gap=False)] == []


@pytest.mark.parametrize("net", examples.NETS)
def test_an_untrained_network_with_evaluation_data_has_no_gap_to_speak_of(net):
    case = examples.healthy(net, trained=0, change=lambda model: _centred_elsewhere(model))
    assert [finding.code for finding in checking.check(case, ["NS102", "NS109"])] == []
    optimizer = case.optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-4)
    examples.loss_fn(case.model, case.loader[0]).backward()
    optimizer.step()
    for norm in examples.norms(case.model):
        norm.reset_running_stats()
    assert "NS109" in [finding.code for finding in checking.check(case, ["NS109"])]


def _centred_elsewhere(model):
    """Weights of the first layer so large that initial statistics are far from the data's."""
    with torch.no_grad():
        next(model.parameters()).mul_(30)
