"""Coordinate descent, row by row in machine code: how rows come near their solution.

A weight after the other is set to its best value given all others (Friedman, Hastie & Tibshirani
2010, with the Gram given). A pass over all features finds those that count; passes over these alone
follow, on their own part of the Gram, until they stand nearly still. A pass costs as much as the
weights that change, so few weights need nothing of the size of G. Features that are much alike need
many passes: a row whose work exceeds a bound is left.

Sums are in float32. They begin with exact moments, so a second call refines what the first found.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.scaled import SMALLEST, ScaledRows
from simplicit.solvers.methods.newton import NewtonState
from simplicit.system.machine_code import SINGLE, VECTOR, compiled

INNER = 0.1
"""Passes over some features end at a change of a weight this much smaller than in the last pass
over all."""

LONG = 2.0**32
"""Multiplications after which to look whether to stop; a second or two."""

FALL = 0.25
"""The ball's multiplier falls to this part of itself at the most between two passes."""

SLACK = 1e-3
"""A ball is slack whose multiplier falls below this part of the one at which no weight is left."""

ROW = f"int64({SINGLE}, {VECTOR}, float32[::1], {VECTOR}, {VECTOR}, {VECTOR}, {VECTOR}, "
TYPES = ROW + "float64, float64, int64)"


@dataclass(frozen=True)
class Found:
    """Where rows have come.

    Attributes:
        state: Weights, with moments that are sums of float32.
        passes: Passes over all features; 0 where the call was stopped before the row, (K,).
        work: Multiplications that a row took, (K,).
        there: Which rows are near their solution; the others are left. (K,).
    """

    state: NewtonState
    passes: Int[Tensor, " K"]
    work: Float[Tensor, " K"]
    there: Bool[Tensor, " K"]


def descend(
    problem: ScaledRows,
    start: NewtonState,
    most: Int[Tensor, " K"],
    near: float,
    work: float,
    look: Callable[[], bool] = lambda: False,
) -> Found:
    """Go down from where rows start.

    Args:
        problem: The rows, float64, on a processor.
        start: Weights, and their moments.
        most: Most passes of each row, (K,).
        near: Change of a weight in a pass over all features below which a row is near its solution.
        work: Multiplications after which a row is left.
        look: Called now and then where the work is long; says whether to stop.

    Returns:
        Where they have come.
    """
    terms, G = problem.terms, problem.shared.low.numpy()
    R, V = problem.R.contiguous().numpy(), start.V.contiguous().clone()
    moments = start.moments.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    sigma = start.sigma if problem.loss == "root" else torch.zeros_like(start.sigma)
    radius = terms.radius if terms.has_ball else torch.full_like(terms.radius, math.inf)
    prices = [terms.l1, terms.huber, terms.l2, radius]
    # the last three are also what comes of a row
    rows = torch.cat([*prices, problem.t2[:, None], start.mu, sigma, torch.zeros_like(sigma)], 1)
    rho, omega = terms.rho.contiguous().numpy(), terms.omega.contiguous().numpy()
    descent = compiled(_descend, TYPES)
    each = zip(R, moments.numpy(), V.numpy(), rows.numpy(), most.tolist(), strict=True)
    passes, spent = torch.zeros_like(most), 0.0
    for k, (r, c, w, row, few) in enumerate(each):
        passes[k] = descent(G, r, c, w, rho, omega, row, near, work, few)
        spent += row[7]
        if spent > LONG:
            spent = 0.0
            if look():
                break
    sigma = rows[:, 6:7] if problem.loss == "root" else start.sigma
    state = NewtonState(V, moments.double(), rows[:, 5:6], sigma, torch.zeros_like(most))
    return Found(state, passes.abs(), rows[:, 7], passes > 0)


# One row; c and w become those of where it comes. Gives its passes, negative where it is left.
def _descend(G, R, c, w, rho, omega, row, near, work, most):
    n, passes = len(w), 0
    l1, huber, l2, radius, t2, mu, sigma, spent = row
    ball, root, factor = radius < math.inf, sigma > 0, 1.0
    # the ball's multiplier lies between these two; at the upper one no weight in the ball is left
    low, high, past, before = 0.0, 0.0, 0.0, 0.0
    if ball:
        for j in range(n):
            if omega[j] > 0:
                high = max(high, (abs(R[j]) - (l1 + huber) * rho[j]) / omega[j])
        mu = mu if mu > 0 else high / 2
    least, slope, norm = SLACK * high, 0.0, 0.0
    on, count, enough, some = np.empty(n, np.int64), 0, 0.0, False
    # a pass goes over all features, or over some and their own part of the Gram
    H, b, v, scale, weight = G, c, w, rho, omega
    while True:
        if not some:
            if passes == most:
                return -passes
            passes += 1
            if root:
                q = t2
                for j in range(n):
                    q -= w[j] * (R[j] + c[j])
                factor = max(math.sqrt(max(q, 0.0)), SMALLEST)
            row[5], row[6] = mu, factor
        change, moves = 0.0, 0
        for k in range(len(v)):
            z = b[k] + v[k]
            left = abs(z) - factor * l1 * scale[k]
            if ball:
                left -= mu * weight[k]
            new = max(left - factor * huber * scale[k], 0.0)
            if l2 > 0:
                new = min(new, max(left, 0.0) / (1.0 + factor * l2 * scale[k] * scale[k]))
            new = new if z > 0 else -new
            step = new - v[k]
            if step != 0:
                change, moves, v[k] = max(change, abs(step)), moves + 1, new
                d, h = np.float32(step), H[k]
                for i in range(len(b)):
                    b[i] -= d * h[i]
        spent += float(moves) * len(v)
        if some and change > enough and spent <= work:
            continue
        if some:
            # what has changed, to the moments of all features
            norm, some = 0.0, False
            for k in range(count):
                d, g = np.float32(v[k] - w[on[k]]), G[on[k]]
                w[on[k]] = v[k]
                norm += weight[k] * abs(v[k])
                for i in range(n):
                    c[i] -= d * g[i]
            spent += float(count) * n
            H, b, v, scale, weight = G, c, w, rho, omega
        else:
            count, norm, slope = 0, 0.0, 0.0
            for j in range(n):
                if w[j] != 0:
                    on[count], count = j, count + 1
                    norm, slope = norm + omega[j] * abs(w[j]), slope + omega[j] * omega[j]
            spent += float(count) * count
            row[7] = spent
            inside = norm <= (1 + near) * radius and (mu == 0 or norm >= (1 - near) * radius)
            if change <= near and (inside or not ball):
                return passes
            if spent > work:
                return -passes
            if passes > 1:
                chosen, some, enough = on[:count], True, max(near, INNER * change)
                H, b, v = np.empty((count, count), np.float32), c[chosen], w[chosen]
                scale, weight = rho[chosen], omega[chosen]
                for k in range(count):
                    g = G[on[k]]
                    for i in range(count):
                        H[k, i] = g[on[i]]
                continue
        if ball:
            excess = norm - radius
            if excess > 0:
                low = mu
            else:
                high = mu
            # by the secant through the last two, at first as if features were orthogonal
            if (excess - before) * (mu - past) < 0:
                slope = (before - excess) / (mu - past)
            past, before = mu, excess
            mu = max(mu + excess / slope if slope > 0 else 0.0, FALL * mu)
            if mu < least and excess <= 0:
                mu = 0.0
            if low < high and not low <= mu <= high:
                mu = (low + high) / 2
