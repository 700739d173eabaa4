"""Weights as parameters of torch's modules."""

from typing import Any

import torch
from torch import Tensor, nn


def with_parameters(module: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Give a module copies of a weight and a bias.

    Args:
        module: Any with `weight` and `bias`.
        weight: In the module's own order.
        bias: One number per channel, or None for no bias.

    Returns:
        The module, changed in place.
    """
    module.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    module.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return module
