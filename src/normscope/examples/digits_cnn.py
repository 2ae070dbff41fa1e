"""A small convolutional network with batch norm, on images of digits. Copy this file, and put your own network in it.

normscope check train.py:make_case         looks for defects of normalization
normscope compare train.py:make_case       trains it with its norms and without, and answers in sentences
python train.py                            trains it, watched by a scope
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import normscope as ns


def make_network() -> nn.Module:
    """Return the network, with first weights drawn from torch's random stream."""
    blocks: list[nn.Module] = []
    for index, (inside, outside) in enumerate([(1, 12), (12, 12), (12, 24), (24, 24)]):
        # The bias is of no use before a norm, and of use where the norms are taken out.
        blocks += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
        if index in (1, 3):
            blocks.append(nn.MaxPool2d(2))
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(24 * 2 * 2, 10))


def make_data() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's digits, 8 x 8 pixels: 1300 images to train on, and 497 to evaluate."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    targets = torch.tensor(labels)
    return TensorDataset(images[:1300], targets[:1300]), TensorDataset(images[1300:], targets[1300:])


def loss_fn(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Return the loss of a batch: what training descends."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def make_case() -> ns.Case:
    """Return everything that trains the network. It is called anew for every arm and seed, under that seed."""
    train, test = make_data()
    model = make_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
    known = {"NS122": "the biases are for the comparison without norms"}
    return ns.Case(model, loss_fn, loader, optimizer, DataLoader(test, batch_size=64), ignore=known)


def main(epochs: int = 10) -> None:
    """Train the network, and print what stands out."""
    case = make_case()
    assert case.optimizer is not None
    scope = ns.watch(case.model, case.optimizer, loss_fn, every=25)
    for epoch in range(epochs):
        for batch in case.loader:
            case.optimizer.zero_grad()
            loss = loss_fn(case.model, batch)
            loss.backward()
            case.optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    print(scope.summary())


if __name__ == "__main__":
    main()
