"""A random mask: what any method has to beat."""

import torch
from torch import nn

from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.task import Task


def random(task: Task, sparsity: float) -> nn.Module:
    """Remove weights at random, each with the same chance, without training.

    Args:
        task: The network and the seed; no data are read.
        sparsity: Fraction of its non-zero weights to remove, in [0, 1).

    Returns:
        A pruned copy with exactly round((1 − sparsity) N₀) non-zero weights.
    """
    net, count = weights.begin(task, sparsity)
    generator = torch.Generator().manual_seed(task.seed)
    scores = []
    for layer in weights.layers(net):
        drawn = torch.rand(layer.weight.shape, dtype=torch.float64, generator=generator)
        scores.append(weights.among_nonzeros(drawn.to(task.device), layer.weight))
    for layer, mask in zip(weights.layers(net), weights.largest(scores, count), strict=True):
        weights.clear(layer.weight, mask)
    return net
