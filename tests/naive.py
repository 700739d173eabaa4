"""Slow twins of the fast kernels: obvious, one number at a time, no shared code."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def penalty(v: float, l0: float, l1: float, l2: float) -> float:
    """The perspective by definition: the least l0 z + l2 v²/(2 z) over a grid of z in (0, 1]."""
    z = torch.logspace(-12, 0, 100_001, dtype=torch.float64)
    relaxed = (l0 * z + l2 * v * v / (2 * z)).min().item() if v and l0 else l2 * v * v / 2
    return l1 * abs(v) + relaxed


def slope(v: float, l0: float, l1: float, l2: float) -> float:
    """Derivative of the penalty at v > 0."""
    inner = l2 * v if l0 == 0 or v > math.sqrt(2 * l0 / l2) else math.sqrt(2 * l0 * l2)
    return l1 + inner


def bisect(f: Callable[[float], float], low: float, high: float) -> float:
    """Root of a rising function."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return (low + high) / 2


def prox(
    v: float, t: float, l0: float, l1: float, l2: float, rho: float, extra: float = 0.0
) -> float:
    """Minimise ½(w − v)²/t + pen(ρ w) + extra·|w|: where its derivative changes sign."""

    def derivative(w: float) -> float:
        return (w - abs(v)) / t + rho * slope(rho * w, l0, l1, l2) + extra

    return math.copysign(bisect(derivative, 0.0, abs(v)), v) if derivative(1e-300) < 0 else 0.0


def multiplier(weights: Callable[[float], Tensor], omega: Tensor, radius: float) -> float:
    """The μ ≥ 0 with Σ ω|w(μ)| = radius by bisection, 0 where w(0) is inside."""

    def slack(mu: float) -> float:
        return radius - float(omega @ weights(mu).abs())

    if slack(0.0) >= 0:
        return 0.0
    high = 1.0
    while slack(high) < 0:
        high *= 2
    return bisect(slack, 0.0, high)


def conjugate(c: float, l0: float, l1: float, l2: float, rho: float, reach: float = 50.0) -> float:
    """sup of c w − pen(ρ w) on a grid of |w| ≤ reach: a little below the supremum."""
    w = torch.linspace(0, reach, 200_001, dtype=torch.float64)
    v = rho * w
    knee = math.sqrt(2 * l0 / l2) if l2 else 0.0
    curved = torch.where(v > knee, l0 + l2 * v * v / 2, math.sqrt(2 * l0 * l2) * v)
    return float((abs(c) * w - l1 * v - curved).max())


def lasso(G: Tensor, R: Tensor, l1: float, sweeps: int = 2000) -> Tensor:
    """One row by cyclic coordinate descent: min ½w'G w − R'w + l1‖w‖₁."""
    w = torch.zeros_like(R)
    for _ in range(sweeps):
        for j in range(len(w)):
            rest = float(R[j] - G[j] @ w + G[j, j] * w[j])
            w[j] = math.copysign(max(abs(rest) - l1, 0.0), rest) / G[j, j]
    return w
