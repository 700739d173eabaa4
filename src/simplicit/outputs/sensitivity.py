"""How much the network's outputs depend on each of its pre-activations."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.batches import Batches
from simplicit.calibration.rows import Rows
from simplicit.equations.network import StateEquations
from simplicit.outputs.distance import Distance
from simplicit.system import progress

PROBES = 2
"""Random directions of the outputs a sample."""

BATCH = 200
"""Samples at a time."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How far errors of a layer's channels move the outputs.

    Attributes:
        coupling: For each group S = E Σ_positions gg', g = F^½ ∂y/∂z of its channels, with F the
            curvature of `Distance`.
        coherence: Correlation between the positions of what an error does, 0 to 1. At 0 errors at
            different positions move the outputs apart; at 1 only their sum counts, as it does just
            before an average over all positions.
    """

    coupling: list[Float[Tensor, "K K"]]
    coherence: float


def sensitivity(
    network: StateEquations,
    equations: StateEquations,
    layers: Sequence[Rows],
    stream: Batches,
    seed: int = 0,
) -> list[Sensitivity]:
    """Estimate how far errors of the channels move the outputs, by random directions of these.

    Args:
        network: The network as captured.
        equations: The same in the structure that is solved.
        layers: Rows of `equations`.
        stream: Calibration inputs.
        seed: Of the directions.

    Returns:
        The sensitivity of each layer; float64, on the CPU.
    """
    every = equations.layers
    sizes = [rows.weights(every[rows.index]).shape[:2] for rows in layers]
    apart = [torch.zeros(groups, K, K, dtype=torch.float64) for groups, K in sizes]
    together = [0.0 for _ in layers]
    generator, m = torch.Generator().manual_seed(seed), 0
    with torch.no_grad():
        distance = Distance(torch.cat([network.replay(batch)[1] for batch in stream]))
    with progress.task("sensitivity of the outputs", total=1) as step:
        for batch in stream:
            for part in batch.split(BATCH):
                with torch.enable_grad():
                    Z, Y = network.replay(part.detach().clone().requires_grad_())
                    directions = distance.random(Y.detach(), PROBES, generator).unbind(2)
                    for k, f in enumerate(directions):
                        slopes = torch.autograd.grad(
                            (f * Y).sum(), [*Z, Y], retain_graph=k < PROBES - 1
                        )
                        if equations.feedback:
                            slopes = (torch.cat(slopes[-2::-1], 1), slopes[-1])
                        for index, rows in enumerate(layers):
                            g = rows.targets(every[rows.index], slopes[rows.index]).double()
                            apart[index] += (g.mT @ g).cpu()
                            g = g.unflatten(1, (len(part), -1)).sum(2)
                            together[index] += float(g.square().sum())
                m += len(part)
        step(1)
    found = []
    for rows, S, summed in zip(layers, apart, together, strict=True):
        alone = float(S.diagonal(dim1=1, dim2=2).sum())
        coherence = _coherence(alone, summed, rows.positions(every[rows.index]))
        found.append(Sensitivity(list((S / (m * PROBES)).unbind(0)), coherence))
    return found


# E (Σ g)² = P a + P² b and E Σ g² = P (a + b) for slopes g at P positions with E gg' = aI + b11'
def _coherence(alone: float, summed: float, positions: int) -> float:
    ratio = summed / alone if alone else 1.0
    return min(max((ratio - 1) / max(positions - 1, 1), 0.0), 1.0)
