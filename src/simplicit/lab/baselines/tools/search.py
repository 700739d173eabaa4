"""The strength of a regulariser that reaches a sparsity: bisection over a few trainings."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

FACTOR = 3.0
"""Between two strengths until the sparsity lies between them."""

CLOSE = 0.01
"""A sparsity above the asked one by no more than this ends the search."""


class Found(NamedTuple):
    """What one training gave."""

    net: nn.Module
    sparsity: float
    strength: float


def nearest(
    run: Callable[[float], Found], sparsity: float, *, start: float, trainings: int
) -> Found:
    """Train with several strengths and keep the network nearest to a sparsity, at or above it.

    Args:
        run: Trains with a strength.
        sparsity: Fraction of weights to remove.
        start: The first strength.
        trainings: At most so many, at least 1.

    Returns:
        The densest that reaches the sparsity; if none does, the sparsest.
    """
    low, high, strength = 0.0, math.inf, start
    found: list[Found] = []
    for _ in range(trainings):
        found.append(run(strength))
        reached = found[-1].sparsity
        if sparsity <= reached <= sparsity + CLOSE:
            break
        low, high = (strength, high) if reached < sparsity else (low, strength)
        if high == math.inf:
            strength = low * FACTOR
        else:
            strength = math.sqrt(low * high) if low else high / FACTOR
    enough = [one for one in found if one.sparsity >= sparsity]
    if enough:
        return min(enough, key=lambda one: one.sparsity)
    return max(found, key=lambda one: one.sparsity)
