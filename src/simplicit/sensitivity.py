"""How much the network's outputs depend on each of its pre-activations."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from . import progress
from .channels import Channels
from .distance import Distance
from .equations import StateEquations
from .states import Batches

PROBES = 2
"""Random directions of the outputs a sample."""

BATCH = 200
"""Samples at a time."""


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


def channel_sensitivity(
    equations: StateEquations, layers: Sequence[Channels], stream: Batches, seed: int = 0
) -> list[list[Float[Tensor, " K"]]]:
    """Estimate how far errors of a channel move the outputs, its positions taken one by one.

    It is E Σ_positions ‖F^½ ∂y/∂z‖², with F the curvature of `Distance`, by random directions.

    Args:
        equations: The network.
        layers: Its rows.
        stream: Calibration inputs.
        seed: Of the directions.

    Returns:
        For each layer and group one number per channel; float64, on the CPU.
    """
    every = equations.layers
    total = [
        torch.zeros(rows.weights(every[rows.index]).shape[:2], dtype=torch.float64)
        for rows in layers
    ]
    generator, m = torch.Generator().manual_seed(seed), 0
    distance = Distance(torch.cat([equations.replay(batch)[1].detach() for batch in stream]))
    with progress.task("sensitivity of the outputs", total=1) as step:
        for batch in stream:
            for part in batch.split(BATCH):
                with torch.enable_grad():
                    Z, Y = equations.replay(part.detach().clone().requires_grad_())
                    directions = distance.random(Y.detach(), PROBES, generator).unbind(2)
                    for k, f in enumerate(directions):
                        slopes = torch.autograd.grad(
                            (f * Y).sum(), [*Z, Y], retain_graph=k < PROBES - 1
                        )
                        for rows, sums in zip(layers, total, strict=True):
                            g = rows.targets(every[rows.index], slopes[rows.index])
                            sums += g.double().square().sum(1).cpu()
                m += len(part)
        step(1)
    return [list((sums / (m * PROBES)).unbind(0)) for sums in total]
