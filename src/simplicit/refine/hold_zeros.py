"""Training that leaves zeros alone, by anyone's loop."""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def hold_zeros(model: nn.Module) -> list[RemovableHandle]:
    """Keep the weights that are zero at zero while a model is trained, whatever trains it.

    Their gradients become zero. So an optimiser that moves weights by gradients, momentum and
    decay leaves them where they are.

    Args:
        model: An implicit model, its `to_explicit()`, or a network that a model was loaded into. Of
            its parameters those with two axes or more are held, which biases and scales are not.

    Returns:
        A handle for each of these: `handle.remove()` lets its zeros go.
    """
    return [_held(weight) for weight in model.parameters() if weight.ndim > 1]


def _held(weight: nn.Parameter) -> RemovableHandle:
    support = weight.detach() != 0

    def hold(gradient: Tensor) -> Tensor:
        return torch.where(support.to(gradient.device), gradient, 0)

    return weight.register_hook(hold)
