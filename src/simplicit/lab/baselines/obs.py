"""Exact optimal brain surgeon, layer by layer (Frantar and Alistarh, NeurIPS 2022)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.inputs import in_order, read_by
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import Layer
from simplicit.sparsity.budget import shares, spend
from simplicit.sparsity.elimination.of_rows import eliminate
from simplicit.system import progress, threads
from simplicit.workers.executors import pool

DAMPING = 1e-3
"""Added to H's diagonal, relative to its mean; chosen on held-out training images, seeds 0 to 2."""


def obs(task: Task, sparsity: float) -> nn.Module:
    """Remove weights one by one, the rest of the row making up for each, without training.

    Layer after layer, with X what the layer reads in the network as pruned so far and w₀ a row of
    its weight, the loss is ‖X (w − w₀)‖² + damping: the dense weights' outputs are the target. The
    rows of a layer share its budget: the removals that add least go. A layer that is never called
    as a module, whose inputs cannot be seen, is pruned by magnitude.

    Args:
        task: The network and its calibration inputs.
        sparsity: Fraction of its non-zero weights to remove from each layer, in [0, 1).

    Returns:
        A pruned copy with exactly round((1 − sparsity) N₀) non-zero weights.
    """
    net, count = weights.begin(task, sparsity)
    ordered = in_order(task, net)
    kept = shares(weights.counts(ordered).tolist(), count)
    with progress.task("optimal brain surgeon (layers)", len(ordered)) as advance:
        for layer, keep in zip(ordered, kept, strict=True):
            H = hessian(task, net, layer)
            W = layer.weight.detach().flatten(1)
            pruned = prune(W.to(H.dtype), H, keep)
            with torch.no_grad():
                layer.weight.copy_(pruned.view_as(layer.weight))
            advance(1)
    return net


def hessian(
    task: Task, net: nn.Module, layer: Layer, damping: float = DAMPING
) -> Float[Tensor, "groups d d"]:
    """X'X/m of what each group of a layer reads, damped.

    Args:
        task: The task.
        net: A copy of its network.
        layer: One of its layers.
        damping: Added to the diagonal, relative to its mean.

    Returns:
        Positive definite matrices in float64; the identity where nothing is ever read.
    """
    d = layer.weight.flatten(1).shape[1]
    groups = getattr(layer, "groups", 1)
    H = torch.zeros(groups, d, d, dtype=torch.float64, device=layer.weight.device)
    m = 0
    for x in read_by(task, net, layer):
        x = x.double()
        H.baddbmm_(x.mT, x)
        m += x.shape[1]
    H /= max(1, m)
    mean = H.diagonal(dim1=1, dim2=2).mean(dim=1)
    added = torch.where(mean > 0, damping * mean, 1.0)
    return H + added[:, None, None] * torch.eye(d, dtype=H.dtype, device=H.device)


def prune(
    W: Float[Tensor, "outputs d"], H: Float[Tensor, "groups d d"], keep: int
) -> Float[Tensor, "outputs d"]:
    """Keep so many weights of a layer, refitted to its outputs.

    Args:
        W: The dense weights; consecutive rows belong to one group.
        H: Second moments of what each group reads.
        keep: How many weights of all rows stay.

    Returns:
        On its support each row minimises (w − w₀)' H (w − w₀); it is zero elsewhere.
    """
    outputs, d = W.shape
    group = torch.arange(outputs, device=W.device) // (outputs // len(H))
    none = torch.zeros(d, dtype=torch.bool, device=W.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    with threads.single_threaded(), pool() as executor:
        found = [eliminate(P, W[group == g], none, 0, executor) for g, P in enumerate(inverse)]
    orders = [row for order, _ in found for row in order]
    kept = spend([row for _, cost in found for row in cost], keep)
    pruned = torch.zeros_like(W)
    for row, (w, h, order, left) in enumerate(zip(W, group.tolist(), orders, kept, strict=True)):
        stays = order[d - left :].sort().values
        pruned[row, stays] = torch.linalg.solve(H[h][stays][:, stays], (H[h] @ w)[stays])
    return pruned
