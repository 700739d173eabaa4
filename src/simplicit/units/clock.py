"""How long torch's own modules take: what units save by the clock, and what is faster.

Times are of one thread and of batches of 64 samples.
"""

from statistics import median

import torch
from torch import Tensor, nn

from simplicit.equations.interface import called
from simplicit.equations.network import StateEquations
from simplicit.model.to_torch import as_modules
from simplicit.system import rates
from simplicit.system.threads import single_threaded

BATCH = 64
"""Samples."""

TURNS = 7
"""Times that two networks are timed in turn. The median of so many ratios moves by 2 %."""


@torch.no_grad()
def seconds(equations: StateEquations) -> list[float]:
    """Time the products of each equation.

    Args:
        equations: The network.

    Returns:
        Seconds a sample, for a product of one weight of its first term; 0 where there is none.
    """
    found = []
    with single_threaded():
        for e in equations.layers:
            if not e.terms:
                found.append(0.0)
                continue
            linear = e.terms[0].map
            x = torch.randn(BATCH, linear.columns).to(linear.weight)
            linear(x)  # what is timed is warm
            took = rates.seconds(lambda linear=linear, x=x: linear(x), 3)
            found.append(took / linear.weight.numel())
    return found


@torch.no_grad()
def faster(network: StateEquations, fewer: StateEquations, u: Tensor) -> float:
    """Time a network beside a smaller one, in turn.

    Args:
        network: The network.
        fewer: Another one of the same inputs.
        u: Some samples; repeated to a batch.

    Returns:
        How many times as fast the second one is.
    """
    u = u.to(network.like).flatten(1)
    u = u.repeat(-(-BATCH // len(u)), 1)[:BATCH]
    both: list[nn.Module] = [as_modules(network).eval(), as_modules(fewer).eval()]

    def once(net: nn.Module) -> float:
        call = lambda: _first(called(net, network.inputs, u))  # noqa: E731
        call()
        return rates.seconds(call, 2)

    with single_threaded():
        pairs = [[once(net) for net in both] for _ in range(TURNS)]
    return median(one / other for one, other in pairs)


def _first(found: object) -> Tensor:
    while not isinstance(found, Tensor):
        found = next(iter(found.values() if isinstance(found, dict) else found))  # pyright: ignore
    return found
