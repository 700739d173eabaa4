"""What a network costs: stored weights, or multiply-adds for a sample."""

from typing import Literal

import torch
from torch import Tensor, nn

from simplicit.explicit.training import evaluating
from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.inputs import once
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import Layer

Cost = Literal["weights", "multiply-adds"]
"""What a structured method is asked to do without."""


def sizes(task: Task, net: nn.Module, cost: Cost) -> dict[Layer, int]:
    """Count what each layer costs; zeros cost as much as other weights.

    Args:
        task: The task, of which one sample is read.
        net: The network, or one that was made of it.
        cost: What to count.

    Returns:
        Weights of each layer, or their products for one sample; then only layers that are called.
    """
    if cost == "weights":
        return {layer: layer.weight.numel() for layer in weights.layers(net)}
    found: dict[Layer, int] = {}

    def look(layer: Layer, _: tuple, output: Tensor) -> None:
        found[layer] = found.get(layer, 0) + output.numel() * layer.weight[0].numel()

    layers = [module for module in net.modules() if isinstance(module, Layer)]
    handles = [layer.register_forward_hook(look) for layer in layers]  # pyright: ignore
    once(task, net, handles, task.calibration[:1])
    return found


def size(task: Task, net: nn.Module, cost: Cost) -> int:
    """Count what a network costs.

    Args:
        task: The task, of which one sample is read.
        net: The network, or one that was made of it.
        cost: What to count.

    Returns:
        The sum of `sizes`.
    """
    return sum(sizes(task, net, cost).values())


def left(task: Task, net: nn.Module, sparsity: float, cost: Cost) -> int:
    """Say how much a network may cost.

    Args:
        task: The task.
        net: A copy of its network.
        sparsity: Fraction to do without; of weights, of those that are not zero.
        cost: What is counted.

    Returns:
        The budget, in the units of `size`.
    """
    total = weights.nonzeros(net) if cost == "weights" else size(task, net, cost)
    return round((1 - sparsity) * total)


def estimate_again(net: nn.Module, inputs: Tensor, batch: int = 128) -> None:
    """Estimate the means and variances of batch normalisations on inputs anew, in place.

    Args:
        net: A pruned copy; its modes are kept.
        inputs: Calibration inputs, no labels.
        batch: Samples at a time; all count the same.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with evaluating(net), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for u in inputs.split(batch):
            net(u)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
