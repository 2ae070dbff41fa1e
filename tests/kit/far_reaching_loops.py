"""Training loops whose losses and steps reach further than their model, and all that training changes in them."""

import contextlib
import copy
import functools
import warnings
from collections import deque

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kit.traces import fingerprint

BANK = deque(maxlen=3)
SEEN = {"batches": 0}
COUNT = 0
CENTRE = torch.zeros(4)


class Loop:
    """A training loop: its model, its loss, one step of it, and everything that may be changed by it.

    Args:
        model: The model that is watched.
        loss_fn: Its loss.
        step: ``step(model, batch)``; by default zero the gradients, backward, update.
        lr: Learning rate of its optimizer.
        roots: What else training changes.
    """

    def __init__(self, model, loss_fn, step=None, optimizer=None, **roots):
        self.model, self.loss_fn = model, loss_fn
        self.optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.step = step or functools.partial(plain, loss_fn, self.optimizer)
        self.roots = roots

    def trace(self):
        optimizers = {"optimizer": self.optimizer}
        return fingerprint(model=self.model, **optimizers, **self.roots)


def plain(loss_fn, optimizer, model, batch):
    optimizer.zero_grad()
    loss_fn(model, batch).backward()
    optimizer.step()


def net(inputs=6, outputs=4, hidden=8):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def fit(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 6, generator=generator) + 1, torch.randint(0, 4, (16,), generator=generator))
        for _ in range(count)
    ]


@torch.no_grad()
def follow(target, source, keep=0.9):
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.data.mul_(keep).add_(theirs.data, alpha=1 - keep)


def gan(watched):
    generator, critic = net(), nn.Sequential(net(4, 1), nn.Dropout(0.1))
    averaged = torch.optim.swa_utils.AveragedModel(generator)
    opt_g, opt_d = torch.optim.Adam(generator.parameters()), torch.optim.Adam(critic.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(opt_g, 2)
    real = torch.ones(16, 4)

    def loss_d(model, batch):
        return F.softplus(-model(real)).mean() + F.softplus(model(generator(batch[0]).detach())).mean()

    def loss_g(model, batch):
        return F.softplus(-critic(model(batch[0]))).mean()

    def step(_, batch):
        opt_d.zero_grad()
        loss_d(critic, batch).backward()
        opt_d.step()
        opt_g.zero_grad()
        loss_g(generator, batch).backward()
        opt_g.step()
        schedule.step()
        averaged.update_parameters(generator)

    roots = {"generator": generator, "critic": critic, "opt_g": opt_g, "opt_d": opt_d, "averaged": averaged}
    if watched == "critic":
        return Loop(critic, loss_d, step, opt_d, schedule=vars(schedule), **roots)
    return Loop(generator, loss_g, step, opt_g, schedule=vars(schedule), **roots)


def byol():
    online = nn.ModuleDict({"trunk": net(), "head": nn.Linear(4, 4)})
    online.forward = lambda x: online["head"](online["trunk"](x))
    target = copy.deepcopy(online["trunk"])

    def loss_fn(model, batch):
        with torch.no_grad():
            wanted = target(batch[0] + 0.1 * torch.randn_like(batch[0]))
        return -F.cosine_similarity(model(batch[0]), wanted).mean()

    optimizer = torch.optim.AdamW(online.parameters())

    def step(model, batch):
        plain(loss_fn, optimizer, model, batch)
        follow(target, online["trunk"])

    return Loop(online, loss_fn, step, optimizer, target=target)


def distillation():
    teacher = net().train()
    features = []
    teacher[0].register_forward_hook(lambda module, inputs, output: features.append(output.detach().mean().item()))

    def loss_fn(model, batch):
        return (model(batch[0]) - teacher(batch[0]).detach()).square().mean()

    return Loop(net(), loss_fn, teacher=teacher, features=features)


def mean_teacher_in_loss():
    model = net()
    teacher = [copy.deepcopy(model).requires_grad_(False)]  # in a list, as by those who keep it from being registered

    def loss_fn(model, batch):
        follow(teacher[0], model)
        return fit(model, batch) + (model(batch[0]) - teacher[0](batch[0])).square().mean()

    return Loop(model, loss_fn, teacher=teacher)


def memory_bank():
    BANK.clear()

    def loss_fn(model, batch):
        out = model(batch[0])
        negatives = torch.cat([*BANK, out.detach()])
        BANK.append(out.detach())
        return fit(model, batch) + (out @ negatives.T).logsumexp(1).mean()

    return Loop(net(), loss_fn, bank=BANK)


class Codebook(nn.Module):
    """Vector quantisation with a codebook that follows its inputs."""

    def __init__(self, registered):
        super().__init__()
        for name, value in (("codes", torch.randn(5, 4)), ("counts", torch.ones(5))):
            if registered:
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x):
        nearest = torch.cdist(x.detach(), self.codes).argmin(1)
        found = self.codes[nearest].clone()
        one_hot = F.one_hot(nearest, 5).float()
        self.counts.mul_(0.9).add_(one_hot.sum(0), alpha=0.1)
        self.codes = 0.9 * self.codes + 0.1 * (one_hot.T @ x.detach()) / self.counts[:, None]
        return x + (found - x).detach()


def codebook(registered, beside):
    book = Codebook(registered)
    if beside:

        def loss_fn(model, batch):
            return fit(lambda x: book(model(x)), batch)

        return Loop(net(), loss_fn, book=book)
    return Loop(nn.Sequential(net(), book), fit, book=book)


def gradient_penalty():
    fake = net(6, 6).train()

    def loss_fn(model, batch):
        x = fake(batch[0]).detach().requires_grad_()
        score = model(x)
        (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return score.mean() + (slope.norm(dim=1) - 1).square().mean()

    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
    return Loop(model, loss_fn, fake=fake)


def lbfgs():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    calls = {"closure": 0}

    def step(model, batch):
        def closure():
            calls["closure"] += 1
            optimizer.zero_grad()
            loss = fit(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)

    return Loop(model, fit, step, optimizer, calls=calls)


class Checkpointed(nn.Module):
    """A network whose middle is computed again in the backward pass, and one beside it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), net()

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.last, self.first(x), use_reentrant=False)


def checkpointing():
    other = Checkpointed()

    def loss_fn(model, batch):
        return fit(model, batch) + (other(batch[0]) - model(batch[0])).square().mean()

    return Loop(Checkpointed(), loss_fn, other=other)


def array_state():
    centre, noise = np.zeros(4), np.random.default_rng(0)

    def loss_fn(model, batch):
        out = model(batch[0])
        centre[:] = 0.9 * centre + 0.1 * out.detach().numpy().mean(0) + 0.01 * noise.standard_normal(4)
        return fit(model, batch) + (out - torch.from_numpy(centre).float()).square().mean()

    return Loop(net(), loss_fn, centre=centre, noise=Asked(lambda: str(noise.bit_generator.state)))


class Asked:
    """State that the walk of a fingerprint does not find among attributes: it is asked for."""

    def __init__(self, ask):
        self._ask = ask

    @property
    def __dict__(self):
        return {"now": self._ask()}


def globals_of_the_module():
    global COUNT, CENTRE
    COUNT, CENTRE = 0, torch.zeros(4)
    SEEN["batches"] = 0

    def loss_fn(model, batch):
        global COUNT, CENTRE
        COUNT += 1
        SEEN["batches"] += 1
        out = model(batch[0])
        CENTRE = 0.9 * CENTRE + 0.1 * out.detach().mean(0)
        return fit(model, batch) + (out - CENTRE).square().mean() / COUNT

    return Loop(net(), loss_fn, globals=Asked(lambda: [COUNT, CENTRE, SEEN]))


def closure_cell():
    step, running = 0, torch.zeros(())

    def loss_fn(model, batch):
        nonlocal step, running
        step += 1
        loss = fit(model, batch)
        running = 0.9 * running + 0.1 * loss.detach()
        return loss + running / step

    return Loop(net(), loss_fn, cells=Asked(lambda: [step, running]))


def partial_of_a_method():
    class Objective:
        made = 0

        def __init__(self):
            self.projector = net(4, 4)
            self.history = []
            self.scale = 1.0

        def measure(self, weight, model, batch):
            type(self).made += 1
            self.scale *= 0.99
            self.history.append(self.scale)
            return fit(model, batch) + weight * self.projector(model(batch[0])).square().mean()

    objective = Objective()
    return Loop(
        net(), functools.partial(objective.measure, 0.1), objective=objective, made=Asked(lambda: Objective.made)
    )


class CallableLoss:
    """A loss that is an object with slots, and calls a function of its own."""

    __slots__ = ("average", "calls", "head")

    def __init__(self):
        self.average, self.calls, self.head = torch.zeros(4), 0, net(4, 4)

    def __call__(self, model, batch):
        self.calls += 1
        out = self.head(model(batch[0]))
        self.average.lerp_(out.detach().mean(0), 0.1)
        return F.cross_entropy(out - self.average, batch[1])


def callable_object():
    loss = CallableLoss()
    return Loop(net(), loss, slots=Asked(lambda: [getattr(loss, name) for name in loss.__slots__]))


def push(out):
    BANK.append(out.detach().mean(0))
    return torch.stack(tuple(BANK)).mean(0)


def lambda_with_a_helper():
    BANK.clear()
    loss_fn = lambda model, batch: (model(batch[0]) - push(model(batch[0]))).square().mean()  # noqa: E731
    return Loop(net(), loss_fn, bank=BANK)


def hidden_module():
    """The critic is held by an object that is left alone; it is kept because it runs."""
    critic = net(4, 1)
    logger = type("Logger", (), {"__module__": "wandb", "__slots__": (), "score": lambda self, x: critic(x)})()

    def loss_fn(model, batch):
        return fit(model, batch) + logger.score(model(batch[0])).mean()

    return Loop(net(), loss_fn, critic=critic)


def scripted_teacher():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        teacher = torch.jit.script(net().train())

    def loss_fn(model, batch):
        return (model(batch[0]) - teacher(batch[0]).detach()).square().mean()

    return Loop(net(), loss_fn, teacher=Asked(lambda: list(teacher.buffers())))


ZOO = {
    "GAN, critic": lambda: gan("critic"),
    "GAN, generator": lambda: gan("generator"),
    "BYOL": byol,
    "distillation": distillation,
    "mean teacher": mean_teacher_in_loss,
    "memory bank": memory_bank,
    "codebook, buffers": lambda: codebook(True, False),
    "codebook, attributes": lambda: codebook(False, False),
    "codebook beside, buffers": lambda: codebook(True, True),
    "codebook beside, attributes": lambda: codebook(False, True),
    "gradient penalty": gradient_penalty,
    "LBFGS": lbfgs,
    "checkpointing": checkpointing,
    "array": array_state,
    "globals": globals_of_the_module,
    "cell": closure_cell,
    "partial of a method": partial_of_a_method,
    "callable": callable_object,
    "lambda and helper": lambda_with_a_helper,
    "hidden module": hidden_module,
    "scripted teacher": scripted_teacher,
}


def begin(name):
    """Return a loop of the zoo at its beginning, with the random streams at theirs."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    return ZOO[name]()


def train(loop, *scopes):
    """Train a few steps inside the steps of scopes, and return what there is afterwards."""
    for batch in batches():
        with contextlib.ExitStack() as steps:
            for scope in scopes:
                steps.enter_context(scope.step(batch))
            loop.step(loop.model, batch)
    return loop.trace()
