"""A language model under transformers' Trainer, watched by a callback; what is read goes to TensorBoard.

The text is made: sentences of a small grammar, so nothing is downloaded.
"""

import argparse
import random

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from normscope.integrations.tensorboard import TensorBoardSink
from normscope.integrations.transformers import NormscopeCallback

SUBJECTS, VERBS, OBJECTS = "the cat|a dog|my friend", "sees|likes|finds", "the house|a bird|some bread|the sea"


class Sentences(Dataset[dict[str, torch.Tensor]]):
    """Sentences as letters, 48 of them a row."""

    def __init__(self, rows: int = 256, length: int = 48) -> None:
        draw = random.Random(0)
        self.letters = sorted(set("|".join((SUBJECTS, VERBS, OBJECTS)) + " ."))
        text = ""
        while len(text) < rows * length:
            text += " ".join(draw.choice(words.split("|")) for words in (SUBJECTS, VERBS, OBJECTS)) + ". "
        codes = torch.tensor([self.letters.index(letter) for letter in text[: rows * length]])
        self.rows = codes.reshape(rows, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def main() -> None:
    """Train, print what stands out, and write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--every", type=int, default=20)
    options.add_argument("--out", default="runs/transformers")
    args = options.parse_args()

    set_seed(0)
    data = Sentences()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(data.letters), hidden_size=64, intermediate_size=128, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    watching = NormscopeCallback(
        probes=["gradient", "descent"],
        every=args.every,
        record_to=args.out,
        sinks=[TensorBoardSink(f"{args.out}/tensorboard")],
    )
    arguments = TrainingArguments(
        output_dir=f"{args.out}/checkpoints",
        max_steps=args.steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        warmup_steps=args.steps // 10,
        bf16=True,
        use_cpu=True,
        logging_steps=max(1, args.steps // 5),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=data, callbacks=[watching]).train()
    print(watching.scope.summary())
    print("page:", watching.scope.report(f"{args.out}/page.html"))
    print(f"tensorboard --logdir {args.out}/tensorboard")


if __name__ == "__main__":
    main()
