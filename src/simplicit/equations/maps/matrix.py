"""Any linear map as a matrix, and a weight as that of the transposed layer."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 256
"""Unit vectors at a time when a map is written out."""


def written_out(linear: Any, like: Tensor) -> Float[Tensor, "rows columns"]:
    """Write a map out, from its products with unit vectors.

    Args:
        linear: The map.
        like: A tensor of the dtype and device of the result.

    Returns:
        The matrix.
    """
    unit = torch.eye(linear.columns, dtype=like.dtype, device=like.device)
    return torch.cat([linear(some) for some in unit.split(CHUNK)]).T.contiguous()


def swapped(
    weight: Float[Tensor, "channels reads *kernel"], groups: int = 1
) -> Float[Tensor, "_ channels_of_a_group *kernel"]:
    """Exchange a weight's rows and columns within each group: weight.T where it is a matrix.

    Args:
        weight: (channels, reads, *kernel); each group has channels / groups of its rows.
        groups: Groups of channels that do not see each other.

    Returns:
        (groups · reads, channels / groups, *kernel), a view where there is one group. Twice is the
        weight again.
    """
    if groups == 1:
        return weight.transpose(0, 1)
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
