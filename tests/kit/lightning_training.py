"""LightningModules of several kinds, and trainings of them that say nothing and write nothing."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from kit.traces import fingerprint

ROWS, SIZE = 70, 8  # nine batches an epoch, the last of six rows


def data(rows=ROWS, width=6, classes=3):
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(rows, width, generator=draw), torch.randint(0, classes, (rows,), generator=draw))


class Net(LightningModule):
    """Batch norm, dropout, a schedule by the step, and a running value that is a plain attribute."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3),
        )  # fmt: skip
        self.average = torch.zeros(())
        self.losses, self.norms = [], []  # of all calls of Lightning's; a probe's calls come back to nothing
        self.fails_at = fails_at

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise KeyError("planted")
        loss = self.loss(batch)
        self.average.mul_(0.9).add_(0.1 * loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"average": self.average.clone()})
        if self.logger is not None:
            self.logger.log_metrics({"own": float(loss)}, step=self.global_step)
        return {"loss": loss}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(self, optimizer):
        self.norms.append({name: float(p.grad.norm()) for name, p in self.named_parameters()})

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Gan(LightningModule):
    """A generator and a discriminator with an optimizer each, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        real = batch[0]
        made = self.generator(torch.randn(len(real), 2))
        judged = F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(made.detach())).mean()
        second.zero_grad()
        self.manual_backward(judged)
        second.step()
        fooled = F.softplus(-self.discriminator(made)).mean()
        first.zero_grad()
        self.manual_backward(fooled)
        first.step()
        self.log("fooled", fooled.detach())

    def configure_optimizers(self):
        return torch.optim.Adam(self.generator.parameters(), 1e-2), torch.optim.Adam(self.discriminator.parameters())


def fit(module=Net, callbacks=(), *, resume=None, epochs=2, rows=ROWS, **options):
    """Train a fresh module; return it and its trainer."""
    seed_everything(1, verbose=False)
    made = module()
    options = {"logger": False, "enable_checkpointing": False} | options
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(made, DataLoader(data(rows), SIZE, shuffle=True), ckpt_path=resume)
    return made, trainer


def left_behind(module, trainer):
    """Return everything that a training leaves behind that a next step would depend on, bit for bit."""
    return fingerprint(
        state=dict(module.state_dict()),
        modules=[(name, part.training) for name, part in module.named_modules()],
        hooks=[len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()],
        gradients=[parameter.grad for parameter in module.parameters()],
        optimizers=[optimizer.state_dict() for optimizer in trainer.optimizers],
        schedules=[config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        heard={key: vars(module)[key] for key in ("losses", "norms", "average") if key in vars(module)},
        logged=dict(trainer.logged_metrics),
        steps=trainer.global_step,
    )
