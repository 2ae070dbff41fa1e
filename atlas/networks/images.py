"""The data of the networks of the atlas, as loaders. A copy of the data is named by an environment variable."""

import os

import torch
from torch.utils.data import DataLoader, TensorDataset

from normscope.studies.lab import data

Loaders = tuple[DataLoader[tuple[torch.Tensor, ...]], DataLoader[tuple[torch.Tensor, ...]]]


def loaders(name: str, *, train: int, test: int, batch: int) -> Loaders:
    """Return loaders of training and evaluation images, standardised a channel.

    Args:
        name: ``"digits"``, ``"fashion-mnist"`` or ``"cifar10"``; the environment variable ``NORMSCOPE_`` and the name
            in capitals (``NORMSCOPE_FASHION_MNIST``) names a folder or an npz file to read in place of a download.
        train: Images to train on, at most.
        test: Images to evaluate on, at most.
        batch: Images of a batch.
    """
    source = os.environ.get(f"NORMSCOPE_{name.replace('-', '_').upper()}", name)
    # The same images for every arm and seed: seeds differ in first weights and batches.
    split = data.load(source).split(0, train=train, test=test)
    return (
        DataLoader(TensorDataset(split.x_train, split.y_train), batch_size=batch, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(split.x_test, split.y_test), batch_size=batch),
    )


def loss_fn(model: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy of a batch of images with labels."""
    images, labels = batch
    return torch.nn.functional.cross_entropy(model(images), labels)


def he_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Draw the weights of all layers but the last anew as He et al. 2015 do, so that ReLU keeps the signal's size."""
    *hidden, _ = [each for each in model.modules() if isinstance(each, torch.nn.Linear | torch.nn.Conv2d)]
    for layer in hidden:
        torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model
