"""Set-ups of several models: teachers, averages, targets, clients, episodes."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from .kit import classifier, cross_entropy, healthy, images, ns, run, sgd, train, vectors
from .residual_networks import ResNet, conv_of


def small_cnn(width=12, classes=4):
    """Return three convolutions with batch norm."""
    return nn.Sequential(
        conv_of(3, width), nn.BatchNorm2d(width), nn.ReLU(), conv_of(width, 2 * width, 2), nn.BatchNorm2d(2 * width),
        nn.ReLU(), conv_of(2 * width, 2 * width), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(2 * width, classes),
    )  # fmt: skip


def mlp(dim=12, width=32, out=4, norm=nn.BatchNorm1d):
    """Return three linear layers with norms."""
    return nn.Sequential(
        nn.Linear(dim, width), norm(width), nn.ReLU(), nn.Linear(width, width), norm(width), nn.ReLU(),
        nn.Linear(width, out),
    )  # fmt: skip


def distillation(teacher_mode=False):
    """Return a student that learns from a trained teacher."""
    teacher = classifier(ResNet((1, 1)), steps=60, lr=0.03).model
    teacher.requires_grad_(False).train(teacher_mode)
    student = small_cnn(8)

    def loss_fn(model, batch):
        with torch.no_grad():
            soft = F.softmax(teacher(batch[0]) / 2, 1)
        scores = model(batch[0])
        return F.cross_entropy(scores, batch[1]) + 4 * F.kl_div(
            F.log_softmax(scores / 2, 1), soft, reduction="batchmean"
        )

    return classifier(student, loss_fn=loss_fn, steps=80, lr=0.02), [teacher]


@healthy()
def teacher_and_student():
    """Distillation: the teacher in eval mode under no_grad."""
    return distillation()


def mean_teacher(copy_buffers=True, teacher_eval=True, shift=0.0, brighter=0.0):
    """Return a student and the average of its weights as teacher, consistent on unlabelled images."""
    net = small_cnn(8)
    teacher = copy.deepcopy(net).requires_grad_(False).train(not teacher_eval)
    opt = sgd(net, 0.02)

    def loss_fn(model, batch):
        x, y = batch
        scores = model(x + 0.1 * torch.randn_like(x))
        with torch.no_grad():
            target = teacher(x + brighter).softmax(1)
        return F.cross_entropy(scores[: len(y) // 2], y[: len(y) // 2]) + F.mse_loss(scores.softmax(1), target)

    def step(model, batch):
        opt.zero_grad()
        loss_fn(model, batch).backward()
        opt.step()
        with torch.no_grad():
            for a, b in zip(teacher.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 0.1)
            if copy_buffers:
                for a, b in zip(teacher.buffers(), model.buffers(), strict=True):
                    a.copy_(b)

    loader, held = images(seed=1, shift=shift), images(seed=2, shift=shift)
    net.train()
    run(step, net, loader, 80)
    return ns.Case(net, loss_fn, loader, opt, held, step=step, averaged=teacher), [teacher]


@healthy()
def mean_teachers():
    """Mean teacher in eval mode, its buffers copied from the student at each step."""
    return mean_teacher()


def ema(decay, steps=120, buffers="copy", shift=0.0):
    """Return a classifier and the average of its weights."""
    net = small_cnn(8)
    average, opt = copy.deepcopy(net).eval().requires_grad_(False), sgd(net, 0.02)

    def step(model, batch):
        opt.zero_grad()
        cross_entropy(model, batch).backward()
        opt.step()
        with torch.no_grad():
            for a, b in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 1 - decay)
            for a, b in zip(average.buffers(), model.buffers(), strict=True):
                if buffers == "copy":
                    a.copy_(b)
                elif buffers == "average":
                    a.copy_(a * decay + b * (1 - decay) if a.is_floating_point() else b)

    loader, held = images(seed=1, shift=shift), images(seed=2, shift=shift)
    net.train()
    run(step, net, loader, steps)
    return ns.Case(net, cross_entropy, loader, opt, held, step=step, averaged=average), [average]


@healthy()
def ema_weights():
    """EMA of the weights with a decay of .9, buffers copied."""
    return ema(0.9)


@healthy()
def swa():
    """SWA over the last third of training, then update_bn."""
    net, loader, held = small_cnn().train(), images(seed=1), images(seed=2)
    opt, average = sgd(net, 0.02), torch.optim.swa_utils.AveragedModel(net)
    train(net, cross_entropy, loader, opt, 60)
    for group in opt.param_groups:
        group["lr"] = 0.005
    for batch in loader * 3:
        opt.zero_grad()
        cross_entropy(net, batch).backward()
        opt.step()
        average.update_parameters(net)
    torch.optim.swa_utils.update_bn(loader, average)
    return ns.Case(net, cross_entropy, loader, opt, held, averaged=average)


@healthy()
def swa_with_synchronised_buffers():
    """AveragedModel without update_bn: torch copies the buffers of the last weights, which are near the average."""
    net, loader, held = small_cnn().train(), images(seed=1, shift=2.0), images(seed=2, shift=2.0)
    opt, average = sgd(net, 0.02), torch.optim.swa_utils.AveragedModel(net)
    train(net, cross_entropy, loader, opt, 60)
    for batch in loader * 3:
        opt.zero_grad()
        cross_entropy(net, batch).backward()
        opt.step()
        average.update_parameters(net)
    return ns.Case(net, cross_entropy, loader, opt, held, averaged=average)


def fed_avg(keep_buffers=True, rounds=5, shifts=(0.0, 0.0, 0.0)):
    """Return a client and the server's average of three clients."""
    server = small_cnn(8)
    data = [images(6, 32, seed=k, shift=shift) for k, shift in enumerate(shifts)]
    for _ in range(rounds):
        clients = []
        for own in data:
            client = copy.deepcopy(server).train()
            train(client, cross_entropy, own, sgd(client, 0.02), 12)
            clients.append(client)
        with torch.no_grad():
            names = server.state_dict() if keep_buffers else dict(server.named_parameters())
            for name, value in names.items():
                values = [client.state_dict()[name] for client in clients]
                value.copy_(torch.stack([v.float() for v in values]).mean(0))
    client = copy.deepcopy(server).train()
    opt = sgd(client, 0.005)
    train(client, cross_entropy, data[0], opt, 6)
    return ns.Case(client, cross_entropy, data[0], opt, images(6, 32, seed=9, shift=shifts[0]), averaged=server.eval())


@healthy()
def federated_averaging():
    """FedAvg over three alike clients, weights and statistics averaged."""
    return fed_avg()


def q_learning(norm, sync="state", shift=0.0, train_target=False):
    """Return a Q-network and its target, a replay buffer of transitions."""
    net = mlp(12, 32, 4, norm)
    target = copy.deepcopy(net).requires_grad_(False).train(train_target)
    opt = torch.optim.Adam(net.parameters(), 2e-3)
    count = [0]

    def replay(seed):
        rows = []
        for (x, a), (y, _) in zip(
            vectors(10, 64, seed=seed, shift=shift), vectors(10, 64, seed=seed + 30, shift=shift), strict=True
        ):
            rows.append((x, a, (x[:, 0] - shift + a == 2).float() + 0.2 * x[:, 1], y))
        return rows

    def loss_fn(model, batch):
        state, action, reward, then = batch
        with torch.no_grad():
            goal = reward + 0.9 * target(then).max(1).values
        return F.smooth_l1_loss(model(state).gather(1, action[:, None]).squeeze(1), goal)

    def step(model, batch):
        opt.zero_grad()
        loss_fn(model, batch).backward()
        opt.step()
        count[0] += 1
        if count[0] % 10 == 0:
            if sync == "state":
                target.load_state_dict(model.state_dict())
            else:
                with torch.no_grad():
                    for a, b in zip(target.parameters(), model.parameters(), strict=True):
                        a.copy_(b)

    loader, held = replay(1), replay(2)
    net.train()
    run(step, net, loader, 80)
    return ns.Case(net, loss_fn, loader, opt, held, step=step, averaged=target), [target]


@healthy()
def dqn_layer_norm():
    """DQN with layer norm, target by load_state_dict every 10 steps."""
    return q_learning(nn.LayerNorm)


@healthy()
def dqn_batch_norm():
    """DQN with batch norm on replayed states, target in eval mode by load_state_dict."""
    return q_learning(nn.BatchNorm1d)
