"""Trained networks with the calibration images of their configurations, and test images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from simplicit.data import datasets
from simplicit.explicit import training
from simplicit.lab.baselines import Task


@dataclass(frozen=True)
class Case:
    """A network and its data."""

    task: Task
    test_inputs: Tensor
    test_labels: Tensor


def _case(net: nn.Module, data: datasets.Dataset, part: float) -> Case:
    # as the configurations draw them, seed 0; labels are there for Taylor's labelled variant
    chosen = datasets.sample(len(data.train_labels), part, 0)
    inputs, labels = data.train_inputs[chosen], data.train_labels[chosen]
    return Case(Task(net.eval(), inputs, inputs, labels), data.test_inputs, data.test_labels)


def _cifar(kind: str, name: str) -> Callable[[Path, Path], Case]:
    def make(shared: Path, cache: Path) -> Case:
        net = training.build(kind, ())
        training.load_weights(net, shared / f"resnet20-{name}.safetensors")
        return _case(net, datasets.load(str(shared / f"{name}.npz"), Path("data")), 0.1)

    return make


def _fashion(widths: Sequence[int], bias: bool) -> Callable[[Path, Path], Case]:
    def make(shared: Path, cache: Path) -> Case:
        data = datasets.load("FashionMNIST", Path("data"))
        net = training.build("fnn", widths, bias=bias)
        kept = cache / f"fashion-{'-'.join(map(str, widths))}.safetensors"
        if kept.exists():
            training.load_weights(net, kept)
        else:  # as configs/fashion-mnist-*.yaml do
            training.train(
                net, data.train_inputs, data.train_labels,
                lr=1e-3, epochs=10, batch_size=64, seed=0, log_interval=10**9,
            )  # fmt: skip
            cache.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(net.state_dict(), kept)
        return _case(net, data, 0.2)

    return make


NETWORKS: dict[str, Callable[[Path, Path], Case]] = {
    "cifar10": _cifar("resnet20", "cifar10"),
    "cifar100": _cifar("resnet20_stagewise", "cifar100"),
    "fashion-64": _fashion((784, 64, 32, 16, 10), False),
    "fashion-300": _fashion((784, 300, 100, 10), True),
}
"""By name: functions of the folder of shared data and of that of trained networks."""
