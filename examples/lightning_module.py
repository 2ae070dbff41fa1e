"""A LightningModule under Lightning's Trainer, watched by a callback: mixed precision, accumulation and clipping."""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from normscope.integrations.lightning import NormscopeCallback


class Digits(LightningModule):
    """Classifies 8 x 8 pixels."""

    def __init__(self, rate: float = 1e-2) -> None:
        super().__init__()
        self.rate = rate
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch; Lightning does the rest of the step."""
        images, labels = batch
        logits = self.head(self.features(images))
        loss = nn.functional.cross_entropy(logits, labels)
        self.log_dict({"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()})
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """Return AdamW with a rate that falls with every step."""
        optimizer = torch.optim.AdamW(self.parameters(), self.rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    """Train, print what stands out, and write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--every", type=int, default=20)
    options.add_argument("--out", default="runs/lightning")
    args = options.parse_args()

    seed_everything(0)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=32, shuffle=True, drop_last=True)

    watching = NormscopeCallback(probes=["gradient", "statistics", "descent"], every=args.every, record_to=args.out)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        callbacks=[watching],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Digits(), loader)
    print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
    print(watching.scope.summary())
    print("page:", watching.scope.report(f"{args.out}/page.html"))


if __name__ == "__main__":
    main()
