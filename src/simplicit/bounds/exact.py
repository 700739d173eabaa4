"""A model as the equations that bounds speak of: float64, on the CPU, without gradients."""

import torch
from torch import Tensor

from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.model.certificate import Certificate
from simplicit.model.implicit import ImplicitModel


def equations_of(model: ImplicitModel) -> StateEquations:
    """Write a model's equations in float64.

    Args:
        model: Any model.

    Returns:
        The same numbers.
    """
    return model.equations.changed(_in_double)


def require_well_posed(model: ImplicitModel) -> Certificate:
    """Certify that a model has exactly one state for every input.

    Args:
        model: Any model.

    Returns:
        The certificate.

    Raises:
        InputError: If there is none: then no bound holds.
    """
    found = model.certificate
    if not found.well_posed:
        raise InputError(
            f"the model is not certified well-posed ({found}): no bound on its outputs holds; "
            "solve it again under a ball with kappa below 1"
        )
    return found


def _in_double(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor
