"""Two processes under Lightning: the same training without the callback and with it. Run as a program."""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from kit import lightning_training as kit
from normscope.integrations.lightning import NormscopeCallback


def train(folder, callbacks):
    kit.seed_everything(1, verbose=False)
    module = kit.Net()
    trainer = kit.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=1,
        callbacks=callbacks,
        gradient_clip_val=1e-3,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(kit.data(), 8))
    name = "with" if callbacks else "without"
    torch.save(
        {"state": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict(), "norms": module.norms},
        folder / f"{name}-{trainer.global_rank}.pt",
    )


if __name__ == "__main__":
    out = Path(sys.argv[1])
    train(out, [])
    train(out, [NormscopeCallback(probes=["gradient_flow", "descent"], every=2, record_to=out / "run")])
