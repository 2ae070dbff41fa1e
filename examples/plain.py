"""A plain training loop: one line attaches the scope, and the loop stays as it was."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import normscope as ns


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's digits, 8 x 8 pixels: 1,500 to train on, the rest to test with."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    everything = images, torch.tensor(labels)
    return TensorDataset(*(part[:1500] for part in everything)), TensorDataset(*(part[1500:] for part in everything))


def network() -> nn.Module:
    """Return a convolutional network with batch norm."""
    blocks = []
    for inside, outside in ((1, 16), (16, 32), (32, 32)):
        blocks += [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def main() -> None:
    """Train, print what stands out, and write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--every", type=int, default=25)
    options.add_argument("--out", default="runs/plain")
    args = options.parse_args()

    torch.manual_seed(0)
    train, test = digits()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)

    scope = ns.watch(model, optimizer, every=args.every, record_to=args.out)
    step = 0
    while step < args.steps:
        for images, labels in DataLoader(train, batch_size=64, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step == args.steps:
                break

    model.eval()
    with torch.no_grad():
        images, labels = test[:]
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"{step} steps, test accuracy {accuracy:.3f}")
    print(scope.summary())
    print("page:", scope.report(f"{args.out}/page.html"))
    scope.close()


if __name__ == "__main__":
    main()
