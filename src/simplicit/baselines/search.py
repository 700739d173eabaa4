"""The strength of a regulariser that reaches a sparsity: bisection over a few trainings."""

import math
from collections.abc import Callable

from torch import nn

FACTOR = 4.0
"""Between two strengths until the sparsity lies between them."""

CLOSE = 0.005
"""A sparsity above the asked one by no more than this ends the search."""

Found = tuple[nn.Module, float]
"""A network and its sparsity."""


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
        The network found and its sparsity; if none reaches the one asked for, the sparsest.
    """
    low, high, strength = 0.0, math.inf, start
    found: list[Found] = []
    for _ in range(trainings):
        found.append(run(strength))
        reached = found[-1][1]
        if sparsity <= reached <= sparsity + CLOSE:
            break
        low, high = (strength, high) if reached < sparsity else (low, strength)
        if high == math.inf:
            strength = low * FACTOR
        else:
            strength = math.sqrt(low * high) if low else high / FACTOR
    enough = [pair for pair in found if pair[1] >= sparsity]
    return min(enough, key=_second) if enough else max(found, key=_second)


def _second(pair: Found) -> float:
    return pair[1]
