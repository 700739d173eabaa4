"""Low rank: two thin layers in place of one, by a truncated singular value decomposition.

`svd` is the nearest matrix of its rank (Eckart and Young, 1936). `svd_whitened` has the nearest
outputs on what the layer reads (Wang et al., "SVD-LLM", ICLR 2025).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from simplicit.lab.baselines.obs import hessian
from simplicit.lab.baselines.tools import weights
from simplicit.lab.baselines.tools.inputs import in_order
from simplicit.lab.baselines.tools.size import Cost, left, sizes
from simplicit.lab.baselines.tools.task import Task
from simplicit.lab.baselines.tools.weights import Layer

HALVINGS = 40
"""Of the interval in which the ratio is searched: far below one weight."""

Factors = tuple[Float[Tensor, "outputs k"], Float[Tensor, "k d"]]


def svd(task: Task, sparsity: float, *, cost: Cost = "weights") -> nn.Module:
    """Take the largest singular values of every layer's matrix; no data are read.

    Args:
        task: The network.
        sparsity: Fraction to do without, in [0, 1).
        cost: Of what: the non-zero weights, or the multiply-adds of a sample.

    Returns:
        A copy in which two layers take the place of one, see `_factored`.
    """
    return _factored(task, sparsity, cost, lambda name, layer, k: nearest(_matrix(layer), k))


def svd_whitened(task: Task, sparsity: float, *, cost: Cost = "weights") -> nn.Module:
    """Take the largest singular values of every layer's matrix times the root of its moments.

    H = L L' are the moments of what the layer reads in the network as it was. Those in the network
    so far, layer after layer, make ResNet-20 less accurate than no moments do.

    Args:
        task: The network and its calibration inputs.
        sparsity: Fraction to do without, in [0, 1).
        cost: Of what: the non-zero weights, or the multiply-adds of a sample.

    Returns:
        A copy in which two layers take the place of one, see `_factored`.
    """
    dense: dict[str, Any] = dict(task.net.named_modules())

    def factors(name: str, layer: Layer, k: int) -> Factors:
        return nearest(_matrix(layer), k, hessian(task, task.net, dense[name])[0])

    return _factored(task, sparsity, cost, factors)


def nearest(
    W: Float[Tensor, "outputs d"], k: int, H: Float[Tensor, "d d"] | None = None
) -> Factors:
    """Find A B of rank k with the least ‖(W − A B) L‖, H = L L'.

    Args:
        W: The matrix.
        k: The rank.
        H: Positive definite moments; the identity when omitted.

    Returns:
        A and B; the singular values are split between them.
    """
    L = None if H is None else torch.linalg.cholesky(H)
    U, s, V = torch.linalg.svd(W if L is None else W @ L, full_matrices=False)
    root = s[:k].sqrt()
    B = root[:, None] * V[:k]
    if L is not None:
        B = torch.linalg.solve_triangular(L, B, upper=False, left=False)
    return U[:, :k] * root, B


def ranks(
    shapes: Mapping[Layer, tuple[int, int]], costs: Mapping[Layer, int], budget: int
) -> dict[Layer, int]:
    """Choose ranks that leave each layer the same part of its cost.

    Args:
        shapes: Outputs and features of each layer.
        costs: What each layer costs when it is dense.
        budget: What all of them may cost.

    Returns:
        The rank of each layer, 1 at least; at k (o + d) ≥ o d it stays dense and is not in there.
    """

    def chosen(ratio: float) -> dict[Layer, int]:
        each = {layer: max(1, int(ratio * o * d / (o + d))) for layer, (o, d) in shapes.items()}
        return {layer: k for layer, k in each.items() if k * sum(shapes[layer]) < _area(layer)}

    def cost(found: Mapping[Layer, int]) -> float:
        thin = {layer: k * sum(shapes[layer]) / _area(layer) for layer, k in found.items()}
        return sum(thin.get(layer, 1.0) * dense for layer, dense in costs.items())

    low, high = 0.0, 2.0  # ranks are rounded down: all are dense at 2
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        low, high = (ratio, high) if cost(chosen(ratio)) <= budget else (low, ratio)
    found = chosen(low)
    for layer in list(found):  # layers of one shape step together: what is left goes to the first
        more = found | {layer: found[layer] + 1}
        if more[layer] * sum(shapes[layer]) < _area(layer) and cost(more) <= budget:
            found = more
    return found


# The last layer, convolutions in groups and layers that share a weight stay dense, the others make
# up for them. A convolution becomes one with k channels and one of 1 x 1.
def _factored(
    task: Task,
    sparsity: float,
    cost: Cost,
    factors: Callable[[str, Layer, int], Factors],
) -> nn.Module:
    net, _ = weights.begin(task, sparsity)
    costs, called = sizes(task, net, cost), sizes(task, net, "multiply-adds")
    owners = [id(getattr(module, "weight", None)) for module in net.modules()]
    thin = [
        layer
        for layer in in_order(task, net)[:-1]
        if layer in called
        and getattr(layer, "groups", 1) == 1
        and owners.count(id(layer.weight)) == 1
    ]
    dense = sum(costs.values()) - sum(costs[layer] for layer in thin)
    budget = left(task, net, sparsity, cost) - dense
    names: dict[nn.Module, str] = {module: name for name, module in net.named_modules()}
    shapes = {layer: (layer.weight.shape[0], layer.weight[0].numel()) for layer in thin}
    for layer, k in ranks(shapes, {layer: costs[layer] for layer in thin}, budget).items():
        A, B = factors(names[layer], layer, k)
        _put(net, layer, _pair(layer, A, B))
    return net


def _pair(layer: Layer, A: Tensor, B: Tensor) -> nn.Sequential:
    k, bias = len(B), layer.bias is not None
    first: Any  # skip_init says no more than Module
    second: Any
    if isinstance(layer, nn.Linear):
        first = skip_init(nn.Linear, layer.in_features, k, bias=False)
        second = skip_init(nn.Linear, k, layer.out_features, bias=bias)
    else:
        first = skip_init(
            type(layer), layer.in_channels, k, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, bias=False, padding_mode=layer.padding_mode,
        )  # fmt: skip
        second = skip_init(type(layer), k, layer.out_channels, 1, bias=bias)
    pair = nn.Sequential(first, second).to(layer.weight)
    with torch.no_grad():
        first.weight.copy_(B.view_as(first.weight))
        second.weight.copy_(A.view_as(second.weight))
        if second.bias is not None and layer.bias is not None:
            second.bias.copy_(layer.bias)
    return pair.train(layer.training).requires_grad_(layer.weight.requires_grad)


def _put(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)


def _matrix(layer: Layer) -> Float[Tensor, "outputs d"]:
    return layer.weight.detach().flatten(1).double()


def _area(layer: Layer) -> int:
    return layer.weight.numel()
