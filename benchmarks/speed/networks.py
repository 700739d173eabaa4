"""Trained networks to make sparse and to time."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from simplicit.data import datasets
from simplicit.explicit import training
from simplicit.explicit.convnets import LeNet, ResNet20

IMAGES = 1000
"""Calibration images, unlabelled."""

Case = tuple[nn.Module, Tensor]


def known(name: str) -> str:
    """Check a name on the command line: argparse has no choices of none or several.

    Args:
        name: Of a network.

    Returns:
        The name.

    Raises:
        ArgumentTypeError: If there is no such network.
    """
    if name not in NETWORKS:
        raise argparse.ArgumentTypeError(f"{name!r}: accepted are {', '.join(NETWORKS)}")
    return name


def _mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _fashion(make: Callable[[], nn.Module]) -> Case:
    data = datasets.load("FashionMNIST", Path("data")).with_channel()
    torch.manual_seed(0)
    net = make()
    training.train(
        net, data.train_inputs, data.train_labels, optimizer="Adam", lr=1e-3, epochs=3,
        batch_size=64, seed=0, device="cpu", log_interval=10**9,
    )  # fmt: skip
    return net.eval(), data.train_inputs[:IMAGES]


def _resnet(weights: Path, images: Path) -> Case:
    net = ResNet20()
    training.load_weights(net, weights)
    data = datasets.load(str(images), Path("data"))
    return net.eval(), data.train_inputs[:IMAGES]


def network(name: str, folder: Path) -> Case:
    """Get a network and its calibration inputs.

    Args:
        name: One of `NETWORKS`.
        folder: Where `resnet20-cifar10.safetensors` and `cifar10.npz` are.
    """
    match name:
        case "784-300-100-10":
            return _fashion(lambda: _mlp(784, 300, 100, 10))
        case "784-1024-1024-10":
            return _fashion(lambda: _mlp(784, 1024, 1024, 10))
        case "LeNet-5":
            return _fashion(lambda: LeNet(mean=(0.286,), std=(0.353,)))
        case _:
            return _resnet(folder / "resnet20-cifar10.safetensors", folder / "cifar10.npz")


NETWORKS = ("784-300-100-10", "784-1024-1024-10", "LeNet-5", "ResNet-20")
