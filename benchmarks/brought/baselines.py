"""What a reader would ask about: the smallest weights gone, and Wanda's rule, for any network."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def matrices(net: nn.Module) -> dict[str, nn.Parameter]:
    """List the weights that methods may take: matrices and kernels, tables of embeddings apart.

    Args:
        net: A network.

    Returns:
        Name -> weight.
    """
    tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    own = net.named_parameters()
    return {name: p for name, p in own if p.ndim > 1 and id(p) not in tables}


def magnitude(net: nn.Module, sparsity: float, call: Callable[[nn.Module], Any]) -> nn.Module:
    """Take the smallest weights of the whole network.

    Args:
        net: A network.
        sparsity: The fraction to take.
        call: Not used.

    Returns:
        A copy without them.
    """
    pruned = copy.deepcopy(net)
    weights = matrices(pruned).values()
    every = torch.cat([w.detach().abs().flatten() for w in weights])
    least = every.kthvalue(max(1, round(sparsity * len(every)))).values
    with torch.no_grad():
        for w in weights:
            w[w.abs() <= least] = 0.0
    return pruned


def wanda(net: nn.Module, sparsity: float, call: Callable[[nn.Module], Any]) -> nn.Module:
    """Take the smallest |w| ‖x‖ of each output (Sun et al., arXiv 2306.11695); others by size.

    Args:
        net: A network.
        sparsity: The fraction to take of each row.
        call: Runs a network on the calibration inputs.

    Returns:
        A copy without them.
    """
    pruned = copy.deepcopy(net)
    norms: dict[int, Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weight, x = module.weight, inputs[0].detach()
        if weight.ndim == 2:
            x = x.reshape(-1, x.shape[-1])
        else:
            x = x.transpose(0, 1).flatten(1).T
        assert isinstance(weight, Tensor)
        norms[id(weight)] = norms.get(id(weight), 0) + x.square().sum(0)

    kinds = ("Linear", "Conv1D", "Conv1d", "Conv2d")
    layers = [m for m in pruned.modules() if type(m).__name__ in kinds]
    hooks = [m.register_forward_pre_hook(look) for m in layers]
    with torch.no_grad():
        call(pruned)
    for hook in hooks:
        hook.remove()
    columns = {id(m.weight) for m in layers if type(m).__name__ == "Conv1D"}
    with torch.no_grad():
        for w in matrices(pruned).values():
            rows = w.data.T if id(w) in columns else w.data
            score = rows.abs()
            if id(w) in norms:
                size = norms[id(w)].sqrt()
                score = score * size.reshape(1, -1, *[1] * (rows.ndim - 2))
            flat = score.flatten(1)
            count = round(sparsity * flat.shape[1])
            gone = flat.argsort(1)[:, :count]
            keep = torch.ones_like(flat).scatter(1, gone, 0.0).reshape(rows.shape)
            w.data.mul_(keep.T if id(w) in columns else keep)
    return pruned
