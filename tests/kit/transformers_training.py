"""Small models of transformers, and trainings of them by its own Trainer that say nothing."""

import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from kit.traces import fingerprint

ROWS, SIZE = 36, 8  # five batches an epoch, the last of four rows


class Rows(Dataset):
    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


def language():
    """A model of language with dropout; its loss is divided by the number of labels of the whole step."""
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=20, n_positions=12, bos_token_id=0, eos_token_id=0)
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(0, 20, (ROWS, 12), generator=draw)
    labels = words.clone()
    labels[::2, :5] = -100  # rows with fewer labels: the mean over micro-batches would not be the step's loss
    return GPT2LMHeadModel(config), Rows(input_ids=words, labels=labels)


def images():
    """A ResNet with batch norm; its loss is a mean, which the trainer divides by the number of micro-batches."""
    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(ROWS, 1, 16, 16, generator=draw)
    return ResNetForImageClassification(config), Rows(pixel_values=pixels, labels=torch.arange(ROWS) % 3)


class Ear(TrainerCallback):
    """Hears the gradient norm right before the update, and can end a training by an exception."""

    def __init__(self, fails_at=None):
        self.fails_at, self.norms = fails_at, []

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.fails_at:
            raise KeyError("planted")

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.norms.append({name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None})


class Loud(Trainer):
    """A trainer that keeps each micro-batch's share of the step's loss, as it was sent backward."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.losses = []

    def training_step(self, *args, **options):
        loss = super().training_step(*args, **options)
        self.losses.append((self.state.global_step, float(loss)))
        return loss

    def loss_of(self, step):
        return sum(loss for at, loss in self.losses if at == step)


def train(kind, folder, callbacks=(), *, resume=None, steps=6, trainer=Loud, **options):
    """Train a fresh model of a kind, with a schedule and clipping as by default; return the trainer and its ear."""
    set_seed(3)
    model, data = kind()
    ear = next((callback for callback in callbacks if isinstance(callback, Ear)), Ear())
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=SIZE, learning_rate=1e-2, use_cpu=True,
        report_to="none", disable_tqdm=True, logging_steps=1, logging_strategy="steps",
        **{"save_strategy": "no"} | options,
    )  # fmt: skip
    made = trainer(model, arguments, train_dataset=data, callbacks=[ear, *(c for c in callbacks if c is not ear)])
    made.train(resume_from_checkpoint=resume)
    return made, ear


def left_behind(trainer, ear):
    """Return everything that a training leaves behind that a next step would depend on, bit for bit."""
    history = [{k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k}
               for row in trainer.state.log_history]  # fmt: skip
    return fingerprint(
        state=dict(trainer.model.state_dict()),
        modules=[(name, part.training) for name, part in trainer.model.named_modules()],
        hooks=[len(part._forward_hooks) + len(part._forward_pre_hooks) for part in trainer.model.modules()],
        gradients=[parameter.grad for parameter in trainer.model.parameters()],
        optimizer=trainer.optimizer.state_dict(),
        schedule=trainer.lr_scheduler.state_dict(),
        heard=ear.norms,
        history=history,
        losses=trainer.losses,
    )
