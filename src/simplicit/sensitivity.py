"""How much the network's outputs depend on each of its pre-activations."""

import torch
from jaxtyping import Float
from torch import Tensor

from .equations import StateEquations
from .states import Batches


def sensitivity(equations: StateEquations, stream: Batches) -> Float[Tensor, " rows"]:
    """Compute E‖∂y/∂z_i‖² of every row of [Z Y] over the calibration inputs.

    Args:
        equations: The network.
        stream: Calibration inputs.

    Returns:
        One number per state, last hidden layer first, then 1 for each output; float64.
    """
    total, m = torch.zeros(sum(e.size for e in equations.hidden), dtype=torch.float64), 0
    for batch in stream:
        with torch.enable_grad():
            Z, Y = equations.replay(batch.detach().clone().requires_grad_())
            for output in Y.unbind(1):
                slopes = torch.autograd.grad(output.sum(), Z, retain_graph=True)
                total += torch.cat(slopes[::-1], 1).double().square().sum(0).cpu()
        m += len(batch)
    return torch.cat([total / m, torch.ones(equations.q, dtype=torch.float64)])
