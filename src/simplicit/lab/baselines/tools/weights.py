"""Which weights count, how many may stay, and which are set to zero."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from simplicit.errors import InputError
from simplicit.lab.baselines.tools.task import Task

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
"""Modules whose weights are counted and pruned; biases and normalisation are neither."""


def layers(net: nn.Module) -> list[Layer]:
    """The layers that count, in the order of `net.modules()`; a shared weight comes once.

    Args:
        net: Any network.

    Returns:
        Its linear and convolutional layers.
    """
    first: dict[int, Layer] = {}
    for module in net.modules():
        if isinstance(module, Layer):
            first.setdefault(id(module.weight), module)
    return list(first.values())


def counts(some: Sequence[Layer]) -> Int[Tensor, " layers"]:
    """Number of weights that are not zero, layer by layer.

    Args:
        some: The layers.

    Returns:
        One count a layer.
    """
    return torch.tensor(
        [int(torch.count_nonzero(layer.weight)) for layer in some], dtype=torch.int64
    )


def by_name(net: nn.Module) -> dict[str, int]:
    """Number of weights that are not zero, by the layer's module path.

    Args:
        net: Any network.

    Returns:
        The counts in the order of `layers`; a shared weight has the first path.
    """
    found = layers(net)
    paths = {module: name for name, module in net.named_modules()}
    return dict(zip((paths[layer] for layer in found), counts(found).tolist(), strict=True))


def nonzeros(net: nn.Module) -> int:
    """Number of weights that are not zero.

    Args:
        net: Any network.

    Returns:
        The count over all its layers.
    """
    return int(counts(layers(net)).sum())


def begin(task: Task, sparsity: float) -> tuple[nn.Module, int]:
    """A copy of the network to prune, and how many weights may stay.

    Args:
        task: The task.
        sparsity: Fraction of the non-zero weights to remove.

    Returns:
        The copy and round((1 − sparsity) N₀), with N₀ the non-zero weights of the network.

    Raises:
        InputError: On a sparsity outside [0, 1), or a network whose weights are not finite or all
            zero.
    """
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity is {sparsity}: accepted is a number in [0, 1)")
    for name, module in task.net.named_modules():
        if isinstance(module, Layer) and not module.weight.isfinite().all():
            raise InputError(f"layer {name!r} holds NaN or infinity: all weights must be finite")
    total = nonzeros(task.net)
    if total == 0:
        raise InputError(
            "the network has no non-zero weights in nn.Linear, nn.Conv1d or nn.Conv2d layers: "
            "at least one is needed"
        )
    return copy.deepcopy(task.net), round((1 - sparsity) * total)


def largest(scores: Sequence[Float[Tensor, "..."]], count: int) -> list[Bool[Tensor, "..."]]:
    """Masks of the largest scores of all tensors together; of equal ones the first stay.

    Args:
        scores: One tensor a layer.
        count: How many stay.

    Returns:
        One mask a layer, true where a weight stays.
    """
    flat = torch.cat([score.flatten() for score in scores])
    stays = torch.zeros_like(flat, dtype=torch.bool)
    stays[flat.sort(descending=True, stable=True).indices[:count]] = True
    parts = stays.split([score.numel() for score in scores])
    return [part.view_as(score) for part, score in zip(parts, scores, strict=True)]


def among_nonzeros(score: Float[Tensor, "*shape"], weight: Tensor) -> Float[Tensor, "*shape"]:
    """Put weights that are zero already below all others.

    Args:
        score: Score of each weight; the least are removed.
        weight: The weights.

    Returns:
        The scores, minus infinity where the weight is zero.
    """
    return score.masked_fill(weight.detach().view_as(score) == 0, -torch.inf)


def magnitudes(net: nn.Module) -> list[Tensor]:
    """|w| of each layer, minus infinity where a weight is zero.

    Args:
        net: Any network.

    Returns:
        One tensor a layer, shaped as its weight.
    """
    weights = [layer.weight.detach() for layer in layers(net)]
    return [among_nonzeros(weight.abs(), weight) for weight in weights]


def clear(parameter: Tensor, stays: Bool[Tensor, "..."]) -> None:
    """Set to zero, in place, what does not stay.

    Args:
        parameter: The weights.
        stays: True where a weight stays; as many values as weights.
    """
    with torch.no_grad():
        parameter.masked_fill_(~stays.view_as(parameter), 0)
