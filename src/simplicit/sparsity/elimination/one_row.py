"""One row loses one weight after another, in machine code, so that threads do so side by side.

A removal is a few passes over vectors as long as the row. Calls of a library would take longer than
the passes, and Python lets one thread call at a time.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.system.machine_code import FLAGS, INDICES, MATRIX, VECTOR, compiled

LAZY = 64
"""Removals between two updates of H: one matrix product instead of as many outer products."""

_ROW = f"{MATRIX}, {MATRIX}, {VECTOR}, {VECTOR}, {INDICES}, {FLAGS}, {FLAGS}"
REMOVE = f"void({_ROW}, {VECTOR}, {INDICES}, {VECTOR}, int64, int64)"
FILL = f"void({_ROW}, int64, int64)"


def eliminate(
    H: Float[Tensor, "s s"], w: Float[Tensor, " s"], protected: Bool[Tensor, " s"], keep: int
) -> tuple[Int[Tensor, " T"], Float[Tensor, " T"]]:
    """Remove one weight after another from one row, exactly; the processor does, in float64.

    Args:
        H: Inverse of the row's Gram, positive definite.
        w: Weights that minimise the row's loss.
        protected: Features never removed.
        keep: Weights left, protected ones not counted.

    Returns:
        The order of removal, as places in w, and the loss that each removal adds.
    """
    remove, fill = compiled(_remove, REMOVE), compiled(_fill, FILL)
    n, removals = len(w), max(int((~protected).sum()) - keep, 0)
    order, cost = np.empty(removals, np.int64), np.empty(removals)
    inverse = np.array(H.cpu().numpy(), np.float64, order="C")
    weight, stays = w.cpu().numpy().astype(np.float64), protected.cpu().numpy().copy()
    diagonal, price = inverse.diagonal().copy(), np.empty(n)
    index, gone = np.arange(n, dtype=np.int64), np.zeros(n, np.bool_)
    # H less what was removed since its last update is H − P'P
    P = np.empty((min(LAZY, removals), n))
    for first in range(0, removals, LAZY):
        some = min(LAZY, removals - first)
        row = (weight, diagonal, index, stays, gone)
        remove(inverse, P, *row, price, order[first:], cost[first:], n, some)
        if first + some == removals:
            break
        fill(inverse, P, *row, n, some)
        n -= some
        left = inverse[:n, :n]
        left -= P[:some, :n].T @ P[:some, :n]
        diagonal[:n] = left.diagonal()
    return torch.from_numpy(order).to(H.device), torch.from_numpy(cost / 2).to(H)


# Some weights go, the cheapest first: P gets a row of each, and what stays is as after all of them.
def _remove(H, P, w, d, index, stays, gone, price, order, cost, n, some):
    for r in range(some):
        for i in range(n):
            price[i] = w[i] * w[i] / d[i]
        j = -1
        for i in range(n):
            # whatever the prices are, each feature goes once
            if not (stays[i] or gone[i]) and (j < 0 or price[i] < price[j]):
                j = i
        order[r], cost[r], gone[j] = index[j], price[j], True
        for i in range(n):
            P[r, i] = H[j, i]
        # four at a time: the sum is read and written less often
        for q in range(0, r - r % 4, 4):
            a, b, c, e = P[q, j], P[q + 1, j], P[q + 2, j], P[q + 3, j]
            for i in range(n):
                P[r, i] -= a * P[q, i] + b * P[q + 1, i] + c * P[q + 2, i] + e * P[q + 3, i]
        for q in range(r - r % 4, r):
            a = P[q, j]
            for i in range(n):
                P[r, i] -= a * P[q, i]
        scale = 1.0 / math.sqrt(P[r, j])
        share = w[j] * scale
        for i in range(n):
            P[r, i] *= scale
            w[i] -= share * P[r, i]
            d[i] -= P[r, i] * P[r, i]
        w[j], d[j] = 0.0, 1.0


# The last features take the places of those that are gone: what is left is an array again.
def _fill(H, P, w, d, index, stays, gone, n, some):
    last = n - 1
    for j in range(n - some):
        if gone[j]:
            while gone[last]:
                last -= 1
            w[j], index[j], stays[j] = w[last], index[last], stays[last]
            for q in range(some):
                P[q, j] = P[q, last]
            for i in range(n):
                H[j, i] = H[last, i]
            for i in range(n):
                H[i, j] = H[i, last]
            last -= 1
    for i in range(n):
        gone[i] = False
