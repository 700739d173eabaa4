"""Wanda (Sun, Liu, Bair, Kolter, "A simple and effective pruning approach", ICLR 2024)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.inputs import in_order, read_by
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import Layer
from simplicit.sparsity.budget import shares


def wanda(task: Task, sparsity: float) -> nn.Module:
    """Remove from each row the weights of least |w_ij| ‖x_j‖₂, without training.

    Layer after layer, x being what the layer reads in the network as pruned so far. A layer that is
    never called as a module, whose inputs cannot be seen, is pruned by magnitude.

    Args:
        task: The network and its calibration inputs.
        sparsity: Fraction of its non-zero weights to remove, in [0, 1).

    Returns:
        A pruned copy with exactly round((1 − sparsity) N₀) non-zero weights; each row keeps its
        proportion, to within one weight.
    """
    net, count = weights.begin(task, sparsity)
    ordered = in_order(task, net)
    nonzeros = [torch.count_nonzero(layer.weight.flatten(1), dim=1) for layer in ordered]
    kept = torch.tensor(shares(torch.cat(nonzeros).tolist(), count), device=task.device).split(
        [len(part) for part in nonzeros]
    )
    for layer, keep in zip(ordered, kept, strict=True):
        matrix = layer.weight.detach().flatten(1)
        scores = weights.among_nonzeros(matrix.abs() * norms(task, net, layer), matrix)
        places = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        weights.clear(layer.weight, places < keep[:, None])
    return net


def norms(task: Task, net: nn.Module, layer: Layer) -> Float[Tensor, "outputs d"]:
    """Norm over the calibration inputs of the feature that each weight reads.

    Args:
        task: The task.
        net: A copy of its network.
        layer: One of its layers.

    Returns:
        ‖x_j‖₂, in float64, or ones where the layer is never called.
    """
    squares = [x.double().square().sum(dim=1) for x in read_by(task, net, layer)]
    outputs, d = layer.weight.flatten(1).shape
    if not squares:
        return torch.ones(outputs, d, dtype=torch.float64, device=layer.weight.device)
    total = torch.stack(squares).sum(dim=0).sqrt()
    return total.repeat_interleave(outputs // len(total), dim=0)
