"""Arms of networks in the style of public code: what they are, from which weights they begin, what is refused."""

import copy

import pytest
import torch
from torch import nn

from kit.public_networks import NETWORKS, FunctionalNorms, network
from kit.small_convnets import assert_same_state, state_of
from normscope import layers, surgery
from normscope._errors import UsageError
from normscope.surgery.foreign import read
from normscope.surgery.functional import NAMES, watched

KINDS = ["batch", "layer", "group", "rms", "noisy", "population", "frozen"]


def norms_left(model):
    return [site.path for site in surgery.norm_sites(model) if read(site.module).is_norm]


def weights_outside(model, norms):
    inside = {id(p) for norm in norms for p in norm.parameters()}
    return {name: p.detach().clone() for name, p in model.named_parameters() if id(p) not in inside}


def own_norms(model):
    return [site.module for site in surgery.norm_sites(model)]


@pytest.mark.parametrize("name", NETWORKS)
def test_without_norms_none_is_left_and_every_weight_is_the_same(name):
    model, x = network(name)
    before = weights_outside(model, own_norms(model))
    bare, report = surgery.arm(model, "none", example=x)
    assert not report.left, str(report)
    assert not report.functional
    assert len(report.changes) == len(own_norms(model))
    assert norms_left(bare) == []
    with watched(bare) as functions:
        out = bare(x)
    assert [call for call in functions if call.function in NAMES] == []
    assert out.isfinite().all()
    assert bare.eval()(x).isfinite().all()
    assert report.relation == "different"
    assert report.difference > 0
    after = dict(bare.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_on_every_network(name, kind):
    model, x = network(name)
    before = weights_outside(model, own_norms(model))
    state = copy.deepcopy(model.state_dict())
    changed, report = surgery.arm(model, kind, example=x)
    assert len(report.changes) + len(report.kept) + len(report.left) == len(own_norms(model)), str(report)
    assert not report.left, str(report)
    assert changed.train()(x).isfinite().all()
    with torch.no_grad():
        assert changed.eval()(x).isfinite().all()
    values = dict(changed.named_parameters())
    assert all(torch.equal(values[key], value) for key, value in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    changed.train()(x).square().mean().backward()
    dead = [key for key, p in changed.named_parameters() if p.requires_grad and p.grad is None]
    assert not dead


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_changes_nothing_and_says_what_the_arm_does(name):
    model, x = network(name)
    before = state_of(model)
    for kind in ("none", "rescaled", *KINDS):
        planned = surgery.plan(model, kind, example=x)
        assert_same_state(before, state_of(model))
        assert planned.changes == surgery.arm(model, kind, example=x)[1].changes


@pytest.mark.parametrize("name", ["resnet", "densenet", "pre-norm", "tcn", "generator"])
def test_rescaled_weights_differ_by_one_factor_a_layer_and_keep_the_scale(name):
    model, x = network(name)
    bare, report = surgery.arm(model, "rescaled", example=x)
    assert report.relation == "rescaled"
    assert norms_left(bare) == []
    old, new = dict(model.named_parameters()), dict(bare.named_parameters())
    for key, value in new.items():
        layer = key.replace(".parametrizations.weight.original0", ".weight").rpartition(".")[0]
        scaled = report.scaled.get(layer, 1.0)
        if "original1" not in key:
            torch.testing.assert_close(value, old[key] * scaled, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        plain = surgery.arm(model, "none", example=x)[0].eval()(x).std()
        own, kept = model.train()(x).std(), bare.eval()(x).std()
    assert abs(kept / own - 1) < max(0.35, 0.8 * abs(plain / own - 1))


def test_functions_are_named_with_module_and_line():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), FunctionalNorms())
    found = surgery.plan(model, "none").functional
    assert [(norm.path, norm.function) for norm in found] == [("2", "group_norm")]
    assert "public_networks.py:" in found[0].line
    seen = surgery.plan(model, "none", example=torch.randn(4, 3, 8, 8))
    assert [norm.function for norm in seen.functional] == ["group_norm", "layer_norm"]
    assert [change.path for change in seen.changes] == ["1"]
    assert "2: calls group_norm at public_networks.py" in seen.incomplete()


def test_what_can_not_be_an_arm_is_said_in_one_line():
    x = torch.randn(4, 3, 8, 8)
    assert surgery.plan(nn.Sequential(nn.Conv2d(3, 3, 1)), "none", example=x).refuses() == "none: a model without norms"
    assert "only as functions" in surgery.plan(FunctionalNorms(), "none", example=x).refuses()
    assert "put it into a Sequential" in surgery.plan(nn.BatchNorm2d(3), "none", example=x).refuses()
    own = surgery.plan(network("resnet")[0], "batch")
    assert own.is_own
    assert "of this kind already" in own.refuses()
    for wrong in ("None", 3, nn.Linear(1, 1)):
        with pytest.raises(UsageError, match=r"^an arm is one of own, none"):
            surgery.plan(nn.BatchNorm2d(3), wrong)
    with pytest.raises(UsageError, match="give an example"):
        surgery.arm(network("resnet")[0], "rescaled")
    with pytest.raises(UsageError, match="the model, called with the example, raised"):
        surgery.plan(network("resnet")[0], "none", example=torch.randn(4, 7))


@pytest.mark.parametrize("by_hooks", [False, True])
def test_weight_norm_stays_and_is_told(by_hooks):
    model, x = network("tcn")
    if by_hooks:
        model = nn.Sequential(nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6), model)
        torch.nn.utils.spectral_norm(model[0])
    _, report = surgery.arm(model, "none", example=x)
    first = "0, 2.0.conv1, 2.0.conv2 ..." if by_hooks else "0.conv1, 0.conv2, 1.conv1 ..."
    assert report.notes == (f"weight or spectral norm stays, as it normalizes weights: {first}",)


def test_a_group_has_two_channels_at_least():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 128, 1), nn.BatchNorm2d(128))
    changed, _ = surgery.arm(model, "group", example=torch.randn(2, 3, 4, 4))
    assert (changed[1].num_groups, changed[3].num_groups) == (4, 32)


def test_a_group_of_vectors_in_an_arm_has_eight_values_and_a_norm_of_fewer_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 48), nn.BatchNorm1d(48))
    changed, report = surgery.arm(model, "group", example=torch.randn(5, 3))
    assert changed[3].num_groups == 6
    assert [skip.path for skip in report.left] == ["1"]
    assert "6 values" in report.left[0].why


def test_outputs_in_a_data_class_are_compared():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network("resnet")[0]

        def forward(self, x):
            return Output(self.inner(x))

    _, x = network("resnet")
    _, report = surgery.arm(Wrapped(), "none", example=x)
    assert report.difference > 0.01


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_layers_with_a_padding_mask_run_in_evaluation():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 3:] = True
    example = {"src": torch.randn(3, 5, 8), "src_key_padding_mask": mask}
    for kind in surgery.ARMS:
        changed, report = surgery.arm(encoder, kind, example=example)
        assert not report.left
        with torch.no_grad():
            assert changed(**example).isfinite().all()


@pytest.mark.parametrize("kind", surgery.ARMS)
def test_no_arm_draws_from_the_random_streams(kind):
    model, x = network("resnet")
    before = torch.get_rng_state()
    surgery.arm(model, kind, example=x)
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_of_one_sample_is_looked_at_in_evaluation():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
    _, report = surgery.arm(model, "none", example=torch.randn(1, 6))
    assert 0 < report.difference < 1


def test_a_model_that_has_no_shape_yet_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d())
    with pytest.raises(UsageError, match="has no shape yet: run a batch through"):
        surgery.plan(model, "none")


def test_a_norm_that_is_called_with_a_mask_goes_and_is_not_converted():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = nn.Linear(6, 8), layers.BatchNorm1d(8)

        def forward(self, x):
            return self.bn(self.fc(x).transpose(1, 2), mask=torch.ones(len(x), 7, dtype=torch.bool))

    x = torch.randn(4, 7, 6)
    bare, report = surgery.arm(Masked(), "none", example=x)
    assert report.changes
    torch.testing.assert_close(bare(x), bare.fc(x).transpose(1, 2))
    assert "called with a mask" in surgery.plan(Masked(), "group", example=x).refuses()


def test_a_parametrised_norm_is_taken_out_whole_and_not_converted():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
    torch.nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    x = torch.randn(4, 6)
    assert "remove the parametrisation first" in surgery.plan(model, "group", example=x).refuses()
    bare, report = surgery.arm(model, "none", example=x)
    assert len(report.changes) == 1
    torch.testing.assert_close(bare(x), model[0](x).relu())


def test_a_compiled_model_and_a_model_in_a_wrapper_have_the_same_norms():
    model, x = network("resnet")
    wrapped = nn.parallel.DataParallel(model)
    paths = [change.path for change in surgery.plan(model, "none", example=x).changes]
    assert [change.path for change in surgery.plan(wrapped, "none").changes] == [f"module.{path}" for path in paths]
    compiled = torch.compile(model, backend="eager")
    for kind in ("none", "rescaled"):
        changes = surgery.plan(compiled, kind, example=x).changes
        assert [change.path for change in changes] == [f"_orig_mod.{path}" for path in paths]
    compiled(x)
    surgery.make_arm(compiled, "none", example=x)
    torch.testing.assert_close(compiled(x), model(x))
    assert norms_left(model) == []


def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch):
    model, x = network("resnet")
    before = state_of(model)
    monkeypatch.setattr(surgery.arms, "freeze", lambda norm: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        surgery.make_arm(model, "frozen", example=x)
    assert_same_state(before, state_of(model))


def test_own_is_equal_bit_for_bit():
    model, x = network("resnet")
    twin, report = surgery.arm(model, "own", example=x)
    assert report.relation == "equal"
    assert report.difference == 0
    assert torch.equal(model(x), twin(x))


def test_frozen_begins_where_batch_statistics_of_the_example_do():
    model, x = network("resnet")
    model.double()
    x = x.double()
    frozen, _ = surgery.arm(model, "frozen", example=x)
    # Running variances are the unbiased ones: n / (n - 1) of those that normalize the batch.
    torch.testing.assert_close(frozen.train()(x), copy.deepcopy(model).train()(x), rtol=0.05, atol=0.05)
    assert torch.equal(frozen.train()(x), frozen.eval()(x))


def test_population_normalizes_by_the_population_and_is_trained_through_it():
    model, x = network("resnet")
    model.double()
    x = x.double()
    changed, _ = surgery.arm(model, "population", example=x)
    model.train(), changed.train()
    # With the batch as population the arm is batch norm; a part of the batch is normalized as within the whole.
    torch.testing.assert_close(changed(x), model(x))
    torch.testing.assert_close(changed(x[:3]), model(x)[:3])
    changed(x).square().sum().backward()
    model(x).square().sum().backward()
    torch.testing.assert_close(changed.conv1.weight.grad, model.conv1.weight.grad)
    assert changed.bn1.running_mean.abs().sum() > 0
    twin = copy.deepcopy(changed)
    torch.testing.assert_close(twin(x[:2]), changed(x[:2]))


def test_noise_is_drawn_by_the_seed():
    model, x = network("resnet")
    first, second, other = (surgery.arm(model, "noisy", seed=seed)[0].train()(x) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_fixed_gains_do_not_learn_and_the_function_is_equal():
    model, x = network("timm")
    fixed, report = surgery.arm(model, "fixed-affine", example=x)
    assert report.relation == "equal"
    learning = {name for name, p in fixed.named_parameters() if p.requires_grad}
    assert learning == {"0.weight", "2.weight", "6.weight", "6.bias"}


def test_the_activation_of_a_norm_of_another_library_stays():
    model, x = network("timm")
    bare, report = surgery.arm(model, "none", example=x)
    expected = nn.functional.silu(model[0](x))
    torch.testing.assert_close(bare[1](bare[0](x)), expected)
    assert "SiLU" in report.changes[0].detail
    torch.testing.assert_close(bare[3](bare[2](expected)), model[2](expected))


def test_activations_that_are_called_as_functions_are_named_by_their_lines():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.act = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()

        def forward(self, x):
            x = nn.functional.relu(self.norm(self.first(x)))
            return self.act(torch.sigmoid(x) + x.tanh())

    for example in (None, torch.randn(3, 4)):
        report = surgery.plan(Net(), "none", example=example)
        # A method of a tensor is seen in a forward alone; the module Tanh is heard by probes, and is not meant.
        expected = {"relu", "sigmoid"} | ({"tanh"} if example is not None else set())
        assert {call.function for call in report.activations} == expected
        assert "not heard by probes: (model): calls relu at test_arms.py:" in report.unheard()
        assert not report.functional
    assert surgery.plan(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()), "none").unheard() is None
