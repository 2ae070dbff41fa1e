"""Training loops of many kinds, each of which trains a fresh net with a scope or without."""

import warnings

import probe_nets as nets
import torch
from torch import nn

from normscope.modules.rng import RngState
from normscope.probes import ProbeWarning, Scope

STREAMING = ["gradient_flow", "activation_distribution"]
COSTLY = ["covariate_shift", "landscape", "curvature", "descent", "interaction"]


class Loop:
    """A training loop of some kind: ``run`` trains a fresh net, with a scope if probes are given."""

    net, lr = "dropout", 0.05

    def build(self):
        model = nets.make(self.net)
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], self.lr)

    def loss_fn(self, model, batch):
        return nets.loss_fn(model, batch)

    def options(self):
        return {}

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        self.loss_fn(model, batch).backward()
        optimizer.step()

    def run(self, codes=(), *, steps=6, every=2):
        model, optimizer = self.build()
        nets.seed_all()
        self.scope = scope = Scope(model, self.loss_fn, optimizer, codes, every=every, **self.options())
        with warnings.catch_warnings():
            warnings.simplefilter("error", ProbeWarning)
            for batch in nets.batches(self.net, steps):
                with scope.step(batch):
                    self.block(scope, model, optimizer, batch)
        many = optimizer if isinstance(optimizer, list) else [optimizer]
        trace = {
            "state": model.state_dict(),
            "gradients": {name: p.grad for name, p in model.named_parameters()},
            "optimizers": [one.state_dict() for one in many],
            "streams": RngState(model),
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
            "parameter hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        }
        return trace, scope.drain()


class Accumulating(Loop):
    """Three micro-batches a step, with draws of the loop's own between them."""

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        parts = [(batch[0][i::3], batch[1][i::3]) for i in range(3)]
        for part in parts:
            torch.rand(2)
            scope.micro_batch(part)
            (self.loss_fn(model, part) / 3).backward()
        optimizer.step()


class Autocast(Loop):
    """bfloat16 around the forward pass only, as the manual says."""

    net = "residual"

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss_fn(model, batch)
        loss.backward()
        optimizer.step()


class AutocastAroundAll(Autocast):
    def run(self, *args, **options):
        with torch.autocast("cpu", torch.bfloat16):
            return super().run(*args, **options)


class Scaled(Loop):
    """A gradient scaler, whose scale must not be seen in any gradient."""

    def build(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
        return super().build()

    def options(self):
        return {"scaler": self.scaler}

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        self.scaler.scale(self.loss_fn(model, batch)).backward()
        self.scaler.step(optimizer)
        self.scaler.update()


class Clipped(Loop):
    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        self.loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()


class TwoOptimizers(Loop):
    net = "shared"  # with a frozen weight, a weight used twice, and a module that is not used

    def build(self):
        model = nets.make(self.net)
        parts = [p for p in model.parameters() if p.requires_grad]
        return model, [torch.optim.SGD(parts[:4], 0.1, momentum=0.9), torch.optim.Adam(parts[4:], 0.01)]

    def block(self, scope, model, optimizer, batch):
        model.zero_grad()
        self.loss_fn(model, batch).backward()
        for one in optimizer:
            one.step()


class TwoLosses(Loop):
    """Two losses by two backward passes; the scope is told their sum."""

    def loss_fn(self, model, batch):
        y = model(batch[0])
        return nets.F.cross_entropy(y, batch[1]) + 0.1 * y.square().mean()

    def block(self, scope, model, optimizer, batch):
        optimizer.zero_grad()
        y = model(batch[0])
        nets.F.cross_entropy(y, batch[1]).backward(retain_graph=True)
        (0.1 * y.square().mean()).backward()
        optimizer.step()


def values(records, *names):
    return {(r.probe, r.step, r.site, r.name): r.value for r in records if not names or r.name in names}
