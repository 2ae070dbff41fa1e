"""A GAN: two networks, two optimizers, and a scope on each; each step belongs to the optimizer that makes it."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import softplus

import normscope as ns


def generator() -> nn.Module:
    """Return a network that makes 64 pixels of 16 random numbers."""
    return nn.Sequential(
        nn.Linear(16, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(),
        nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(),
        nn.Linear(128, 64), nn.Sigmoid(),
    )  # fmt: skip


def discriminator() -> nn.Module:
    """Return a network that judges 64 pixels."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.LayerNorm(128), nn.LeakyReLU(0.2),
        nn.Linear(128, 128), nn.LayerNorm(128), nn.LeakyReLU(0.2),
        nn.Linear(128, 1),
    )  # fmt: skip


def main() -> None:
    """Train both, and print what stands out in each."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--every", type=int, default=40)
    options.add_argument("--out", default="runs/gan")
    args = options.parse_args()

    torch.manual_seed(0)
    real_pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    makes, judges = generator(), discriminator()
    makes_optimizer = torch.optim.Adam(makes.parameters(), 2e-4, betas=(0.5, 0.999))
    judges_optimizer = torch.optim.Adam(judges.parameters(), 2e-4, betas=(0.5, 0.999))

    def fooling(made_by: nn.Module, noise: Tensor) -> Tensor:
        """Return the generator's loss; it runs the discriminator too, which a probe leaves as it was."""
        return softplus(-judges(made_by(noise))).mean()

    watching = {"every": args.every, "record_to": args.out}
    of_makes = ns.watch(
        makes, makes_optimizer, fooling, probes=["gradient", "descent"], cell="generator", also=[judges], **watching
    )
    of_judges = ns.watch(judges, judges_optimizer, probes="gradient", cell="discriminator", **watching)

    for step in range(args.steps):
        real = real_pixels[torch.randint(len(real_pixels), (64,))]
        noise = torch.randn(64, 16)
        with torch.no_grad():
            made = makes(noise)
        judges_optimizer.zero_grad()
        judged = softplus(-judges(real)).mean() + softplus(judges(made)).mean()
        judged.backward()
        judges_optimizer.step()

        makes_optimizer.zero_grad()
        fooled = fooling(makes, noise)
        fooled.backward()
        makes_optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: discriminator {judged.item():.3f}, generator {fooled.item():.3f}")

    for name, scope in (("generator", of_makes), ("discriminator", of_judges)):
        print(f"\n{name}\n{scope.summary()}")
        print("page:", scope.report(f"{args.out}/{name}.html"))
        scope.close()


if __name__ == "__main__":
    main()
