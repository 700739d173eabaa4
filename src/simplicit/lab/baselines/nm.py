"""n:m: of m weights in a row at most n stay, which some processors multiply twice as fast.

A group is m consecutive input channels at the same place of the kernel. Layers whose input channels
m does not divide stay dense. `wanda_nm` is by Sun et al. (ICLR 2024), `sparsegpt_nm` by Frantar and
Alistarh ("SparseGPT", ICML 2023).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simplicit.errors import InputError
from simplicit.lab.baselines.obs import hessian
from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.inputs import in_order
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import Layer
from simplicit.lab.baselines.wanda import norms
from simplicit.sparsity.pattern import NofM

DAMPING = 1e-2
"""Added to H's diagonal, relative to its mean, as in the authors' release."""

BLOCK = 128
"""Columns whose errors are passed on together, as in the paper; it changes no result."""


def wanda_nm(task: Task, sparsity: float, *, m: int = 4) -> nn.Module:
    """Keep of each m weights those of largest |w_ij| ‖x_j‖₂, without training.

    Args:
        task: The network and its calibration inputs.
        sparsity: 1 − n/m: 0.5 is 2:4, 0.75 is 1:4.
        m: Weights of a group.

    Returns:
        A pruned copy.
    """

    def prune(net: nn.Module, layer: Layer, n: int) -> Tensor:
        W = _ordered(layer.weight.detach())
        scores = W.abs() * _ordered(norms(task, net, layer).view_as(layer.weight))
        return W.masked_fill(~_pattern(scores, n, m).first(scores), 0)

    return _pruned(task, sparsity, m, prune)


def sparsegpt_nm(task: Task, sparsity: float, *, m: int = 4) -> nn.Module:
    """Remove columns from left to right, those that follow making up for each, without training.

    Layer after layer, with H the moments of what the layer reads in the network as pruned so far.

    Args:
        task: The network and its calibration inputs.
        sparsity: 1 − n/m: 0.5 is 2:4, 0.75 is 1:4.
        m: Weights of a group.

    Returns:
        A pruned copy.
    """

    def prune(net: nn.Module, layer: Layer, n: int) -> Tensor:
        H = hessian(task, net, layer, DAMPING)
        places = torch.arange(H.shape[1], device=H.device).view(1, *layer.weight.shape[1:])
        order = _ordered(places)[0]
        H = H[:, order][:, :, order]
        rows = _ordered(layer.weight.detach()).to(H.dtype).chunk(len(H))
        return torch.cat([compensated(W, P, n, m) for W, P in zip(rows, H, strict=True)])

    return _pruned(task, sparsity, m, prune)


def compensated(
    W: Float[Tensor, "outputs d"], H: Float[Tensor, "d d"], n: int, m: int
) -> Float[Tensor, "outputs d"]:
    """Prune the columns from left to right, as SparseGPT does.

    With U the upper Cholesky factor of H⁻¹, removing w_j adds w_j² / U_jj² to the loss, and moves
    the weights right of it by −w_j U_j: / U_jj. A group is chosen when its first column is reached.

    Args:
        W: The dense weights, the m of a group side by side.
        H: Second moments of what they read, positive definite.
        n: How many of each m stay.
        m: Weights of a group.

    Returns:
        The pruned weights.
    """
    W, d = W.clone(), W.shape[1]
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    step = max(1, BLOCK // m) * m
    for start in range(0, d, step):
        end = min(start + step, d)
        errors = torch.zeros_like(W[:, start:end])
        for j in range(start, end):
            if (j - start) % m == 0:
                scores = W[:, j : j + m].square() / U.diagonal()[j : j + m].square()
                stays = _pattern(scores, n, m).first(scores)
            error = W[:, j].masked_fill(stays[:, (j - start) % m], 0) / U[j, j]
            W[:, j:end] -= error[:, None] * U[j, j:end]
            W[:, j].masked_fill_(~stays[:, (j - start) % m], 0)  # exactly
            errors[:, j - start] = error
        W[:, end:] -= errors @ U[start:end, end:]
    return W


def _pruned(
    task: Task, sparsity: float, m: int, prune: Callable[[nn.Module, Layer, int], Tensor]
) -> nn.Module:
    net, _ = weights.begin(task, sparsity)
    n = round((1 - sparsity) * m)
    if abs(1 - n / m - sparsity) > 1e-9:
        accepted = ", ".join(f"{1 - k / m:g}" for k in range(m, 0, -1))
        raise InputError(f"sparsity is {sparsity}: accepted is {accepted}, n:m with m = {m}")
    for layer in in_order(task, net):
        if layer.weight.shape[1] % m == 0:
            outputs, inputs, *kernel = layer.weight.shape
            matrix = prune(net, layer, n).view(outputs, *kernel, inputs)
            with torch.no_grad():
                layer.weight.copy_(matrix.movedim(-1, 1))
    return net


def _pattern(scores: Tensor, n: int, m: int) -> NofM:
    return NofM(n, m, torch.arange(scores.shape[1], device=scores.device) // m)


# as a matrix whose columns go through the input channels first
def _ordered(weight: Tensor) -> Tensor:
    return weight.movedim(1, -1).flatten(1)
