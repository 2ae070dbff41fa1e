"""Set-ups turned into arms: optimizers, schedulers, averaged weights and teachers follow, or it is refused by name."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import normscope as ns
from kit import far_reaching_loops
from kit.foreign_norms import GemmaRMSNorm
from kit.public_networks import NETWORKS, PreNorm, ResNet, dcgan_discriminator, dcgan_generator
from kit.small_convnets import assert_same_state, state_of
from normscope._errors import UsageError
from normscope.evidence import case_arm, example_of, plan_arm
from normscope.evidence.arms import try_step
from normscope.surgery import norm_sites


def loss_fn(model, batch):
    out = model(batch[0])
    return F.cross_entropy(out.flatten(1), batch[1] % out.flatten(1).shape[1])


def loader(shape=(3, 16, 16), count=3):
    stream = torch.Generator().manual_seed(2)
    return [(torch.randn(8, *shape, generator=stream), torch.randint(2, (8,), generator=stream)) for _ in range(count)]


def held(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(case, steps=2):
    for batch in case.loader[:steps]:
        case.step(case.model, batch)


@pytest.mark.parametrize("arm", ["none", "rescaled", "layer", "noisy"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_moves_exactly_the_parameters_of_the_arm(name, arm):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def step(model, batch):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
        schedule.step()

    case = ns.Case(model, loss_fn, loader(shape), optimizer, step=step)
    old = list(model.parameters())
    case_arm(case, arm)
    assert {id(p) for p in held(optimizer)} == {id(p) for p in model.parameters() if id(p) in map(id, old)}
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    lost = [(p, p.detach().clone()) for p in old if id(p) not in map(id, model.parameters())]
    train(case)
    # A bias that a norm behind it takes out moves only by weight decay, and a bias of zeros not even so.
    still = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    moved = [key for key, p in model.named_parameters() if not torch.equal(p, before[key])]
    assert not still
    assert all(key in moved for key, p in model.named_parameters() if p.ndim > 1)
    assert all(torch.equal(p, value) for p, value in lost)
    assert schedule.last_epoch == 2


def grouped(model):
    norms = {id(p) for site in norm_sites(model) for p in site.module.parameters()}
    named = list(model.named_parameters())
    return [
        {"params": [(n, p) for n, p in named if id(p) not in norms], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in named if id(p) in norms], "weight_decay": 0.0, "lr": 0.5},
    ]


def test_groups_keep_their_options_and_lose_the_norms_that_went():
    model = ResNet()
    optimizer = torch.optim.SGD(grouped(model), lr=0.1, momentum=0.9)
    report = case_arm(ns.Case(model, loss_fn, loader(), optimizer), "none")
    first, second = optimizer.param_groups
    assert {id(p) for p in first["params"]} == {id(p) for p in model.parameters()}
    assert second["params"] == second["param_names"] == []
    assert (first["weight_decay"], second["weight_decay"], second["lr"]) == (0.1, 0.0, 0.5)
    assert "12 parameters of norms dropped from optimizers' groups" in report.notes
    optimizer.step()


def test_new_parameters_go_into_the_group_of_those_that_went():
    model = PreNorm(GemmaRMSNorm)
    optimizer = torch.optim.SGD(grouped(model), lr=0.1)
    report = case_arm(ns.Case(model, loss_fn, loader((7, 6)), optimizer), "batch")
    gains = {name: p for name, p in model.named_parameters() if "norm" in name}
    assert len(gains) == 5
    second = optimizer.param_groups[1]
    assert {id(p) for p in second["params"]} == {id(p) for p in gains.values()}
    assert set(second["param_names"]) == set(gains)
    assert "5 parameters of norms added to optimizers' groups" in report.notes


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_group_left_empty_trains_on(make):
    model = ResNet()
    optimizer = make(grouped(model), lr=1e-3)
    case = ns.Case(model, loss_fn, loader(), optimizer)
    case_arm(case, "none")
    loss_fn(model, case.loader[0]).backward()
    optimizer.step()


def gan(watched="generator"):
    torch.manual_seed(0)
    g, d = dcgan_generator(), dcgan_discriminator()
    opt_g, opt_d = (torch.optim.Adam(m.parameters(), 2e-3, betas=(0.5, 0.999)) for m in (g, d))
    averaged = AveragedModel(g, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def loss_g(model, batch):
        return F.softplus(-d(model(batch[0]))).mean()

    def loss_d(model, batch):
        fake = g(batch[0]).detach()
        return F.softplus(model(fake)).mean() + F.softplus(-model(torch.ones_like(fake))).mean()

    def step(model, batch):
        opt_d.zero_grad()
        loss_d(d, batch).backward()
        opt_d.step()
        opt_g.zero_grad()
        loss_g(g, batch).backward()
        opt_g.step()
        averaged.update_parameters(g)

    latent = loader((10, 1, 1))
    if watched == "generator":
        return ns.Case(g, loss_g, latent, opt_g, step=step, averaged=averaged), g, d
    return ns.Case(d, loss_d, latent, opt_d, step=step), g, d


@pytest.mark.parametrize("arm", ["none", "batch", "layer", "noisy", "population"])
def test_a_gan_trains_on_with_its_generator_changed(arm):
    case, generator, critic = gan()
    report = case_arm(case, arm)
    assert len(norm_sites(critic)) == 1
    train(case)
    if arm == "none":
        assert norm_sites(generator) == []
        assert norm_sites(case.averaged) == []
        assert any("averaged.module is a copy of the model" in note for note in report.notes)
    x = torch.randn(2, 10, 1, 1)
    assert case.averaged.eval()(x).isfinite().all()
    assert not torch.equal(case.averaged.module[0].weight, generator[0].weight)


def test_a_gan_trains_on_with_its_critic_changed():
    case, generator, critic = gan("critic")
    report = case_arm(case, "none")
    assert norm_sites(critic) == []
    assert len(norm_sites(generator)) == 2
    assert report.notes == ("2 parameters of norms dropped from optimizers' groups",)
    train(case)


def mean_teacher(part=False):
    torch.manual_seed(0)
    model = nn.Sequential(ResNet(), nn.Linear(5, 4))
    source = model[0] if part else model
    teacher = [copy.deepcopy(source).requires_grad_(False)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipped = [p for p in model.parameters() if p.requires_grad]

    def step(model, batch):
        optimizer.zero_grad()
        with torch.no_grad():
            wanted = teacher[0](batch[0])
        out = model[0](batch[0]) if part else model(batch[0])
        ((out - wanted).square().mean() + loss_fn(model, batch)).backward()
        assert all(p.grad is not None for p in clipped)
        nn.utils.clip_grad_norm_(clipped, 1.0)
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(teacher[0].parameters(), source.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)

    return ns.Case(model, loss_fn, loader(), optimizer, step=step), teacher


@pytest.mark.parametrize("part", [False, True], ids=["of the model", "of a part"])
@pytest.mark.parametrize("arm", ["none", "rescaled", "group"])
def test_a_teacher_and_a_list_of_parameters_follow(arm, part):
    case, teacher = mean_teacher(part)
    case_arm(case, arm)
    source = case.model[0] if part else case.model
    for mine, theirs in zip(teacher[0].parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad
    assert [type(m) for m in teacher[0].modules()] == [type(m) for m in source.modules()]
    train(case)


@pytest.mark.parametrize("arm", ["none", "layer", "noisy"])
@pytest.mark.parametrize("name", far_reaching_loops.ZOO)
def test_loops_that_reach_far_run_on(name, arm):
    loop = far_reaching_loops.begin(name)
    data = far_reaching_loops.batches()
    case = ns.Case(loop.model, loop.loss_fn, data, loop.optimizer, step=loop.step)
    report = case_arm(case, arm)
    if arm == "none":
        assert norm_sites(loop.model) == []
    assert report.changes or arm == "layer"
    weights = [p.detach().clone() for p in loop.model.parameters()]
    for batch in data:
        loop.step(loop.model, batch)
    moved = [not torch.equal(p, w) for p, w in zip(loop.model.parameters(), weights, strict=True)]
    assert sum(moved) >= len(moved) - 1  # a bias in front of a norm takes no gradient


def test_weights_averaged_by_hand_over_a_list_are_refused_by_name():
    model = ResNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = [p.detach().clone() for p in model.parameters()]

    def step(model, batch):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
        for mine, theirs in zip(shadow, model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 0.1)

    case = ns.Case(model, loss_fn, loader(), optimizer, step=step)
    before, groups = state_of(model), list(optimizer.param_groups[0]["params"])
    with pytest.raises(UsageError, match=r"none: the training step fails with the changed model: .*test_arms.py:\d+"):
        case_arm(case, "none")
    assert_same_state(before, state_of(model))
    assert list(map(id, groups)) == list(map(id, optimizer.param_groups[0]["params"]))


@pytest.mark.parametrize(("arm", "runs"), [("none", True), ("group", True), ("noisy", False)])
def test_weights_averaged_by_hand_under_their_names_run_where_the_names_stay(arm, runs):
    model = ResNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def step(model, batch):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
        for name, p in model.named_parameters():
            shadow[name].lerp_(p.detach(), 0.1)

    case = ns.Case(model, loss_fn, loader(), optimizer, step=step)
    if runs:
        case_arm(case, arm)
        train(case)
    else:
        with pytest.raises(UsageError, match=r"KeyError: 'bn1.norm.weight' \(test_arms.py:\d+\)"):
            case_arm(case, arm)


def test_a_step_that_keeps_the_norms_in_a_list_is_told_that_they_went():
    model = ResNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

    def step(model, batch):
        for norm in norms:
            norm.eval()
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()

    notes = case_arm(ns.Case(model, loss_fn, loader(), optimizer, step=step), "none").notes
    assert notes[-1] == "norms holds norms that are out of the model now (bn1 ...): what is done to them is lost"


def test_lbfgs_trains_the_arm():
    model = ResNet()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2, lr=0.01)

    def step(model, batch):
        def closure():
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)

    case = ns.Case(model, loss_fn, loader(), optimizer, step=step)
    step(model, case.loader[0])  # its count of values is kept from here on
    before = model.conv1.weight.detach().clone()
    case_arm(case, "none")
    train(case)
    assert not torch.equal(before, model.conv1.weight)


def test_random_streams_are_as_they_were_after_an_arm_was_made():
    case, _ = mean_teacher()
    before = torch.get_rng_state()
    case_arm(case, "noisy")
    assert torch.equal(before, torch.get_rng_state())


def test_an_iterator_in_the_step_is_told_and_the_arm_made():
    model = ResNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    feed = iter(loader(count=50))

    def step(model, _):
        optimizer.zero_grad()
        loss_fn(model, next(feed)).backward()
        optimizer.step()

    case = ns.Case(model, loss_fn, loader(), optimizer, step=step)
    example = case.loader[0][0]
    report = case_arm(case, "none", example=example)
    assert "an iterator" in report.notes[0]
    assert len(held(optimizer)) == len(list(model.parameters()))
    train(case)


def test_a_step_that_trains_another_model_is_refused():
    stale = ResNet()
    optimizer = torch.optim.SGD(stale.parameters(), lr=0.1)

    def step(model, batch):
        optimizer.zero_grad()
        loss_fn(stale, batch).backward()
        optimizer.step()

    case = ns.Case(ResNet(), loss_fn, loader(), torch.optim.SGD(stale.parameters(), lr=0.1), step=step)
    with pytest.raises(UsageError, match="the step does not call the model that it is given"):
        case_arm(case, "none")
    model = ResNet()
    case = ns.Case(model, loss_fn, loader(), torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1))
    with pytest.raises(UsageError, match="moves no parameter of the model: its optimizer holds other parameters"):
        case_arm(case, "none")
    case = ns.Case(model, lambda model, batch: stale(batch[0]).sum(), loader())
    with pytest.raises(UsageError, match="loss_fn does not call the model that it is given"):
        case_arm(case, "none")


def test_a_trial_leaves_no_trace():
    case, _ = mean_teacher()
    case_arm(case, "none", trial=False)
    before = state_of(case.model)
    try_step(case, "none")
    assert_same_state(before, state_of(case.model))


def test_a_plan_says_what_the_arm_does_and_changes_nothing():
    case, _ = mean_teacher()
    before = state_of(case.model)
    planned = plan_arm(case, "none")
    assert_same_state(before, state_of(case.model))
    assert planned.changes == case_arm(case, "none").changes


def test_examples_are_joined_along_samples():
    case, _ = mean_teacher()
    (x,) = example_of(case, 3)
    assert torch.equal(x, torch.cat([batch[0] for batch in case.loader]))
    (x,) = example_of(case)
    assert torch.equal(x, case.loader[0][0])


def test_arms_begin_from_the_same_weights_when_made_anew():
    weights = []
    for arm in ("own", "none", "layer", "batch", "noisy", "population"):
        case, _ = mean_teacher()
        case_arm(case, arm)
        weights.append({name: p for name, p in case.model.named_parameters() if p.ndim > 1})
    assert all(w.keys() == weights[0].keys() for w in weights)
    assert all(torch.equal(w[name], weights[0][name]) for w in weights for name in w)
