"""Magnitude pruning: the smallest weights go."""

from torch import nn

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
    for layer, mask in zip(weights.layers(net), masks, strict=True):
        weights.clear(layer.weight, mask)
    return net
