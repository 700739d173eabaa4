"""Pruning without data: the smallest weights go, or random ones, which any method has to beat."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.task import Task
from simplicit.sparsity.budget import shares


def magnitude(task: Task, sparsity: float, *, layerwise: bool = False) -> nn.Module:
    """Remove the weights of least magnitude, once, without training.

    Args:
        task: The network; no data are read.
        sparsity: Fraction of its non-zero weights to remove, in [0, 1).
        layerwise: Remove the same fraction of each layer, rather than compare all layers' weights.

    Returns:
        A pruned copy with exactly round((1 − sparsity) N₀) non-zero weights.
    """
    net, count = weights.begin(task, sparsity)
    scores = weights.magnitudes(net)
    if layerwise:
        kept = shares(weights.counts(weights.layers(net)).tolist(), count)
        masks = [weights.largest([s], k)[0] for s, k in zip(scores, kept, strict=True)]
    else:
        masks = weights.largest(scores, count)
    return _masked(net, masks)


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
    return _masked(net, weights.largest(scores, count))


def _masked(net: nn.Module, masks: Sequence[Bool[Tensor, "..."]]) -> nn.Module:
    for layer, mask in zip(weights.layers(net), masks, strict=True):
        weights.clear(layer.weight, mask)
    return net
