"""G = L L': of Grams that are positive definite but for rounding, and of many features."""

from concurrent.futures import Executor
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.gram import ROUNDING
from simplicit.workers.run import run

LONG = 2048
"""Features from which on columns are taken in blocks, whose rows several threads share. On one
thread LAPACK, as torch brings it, takes up to 2.6 times as long, on some processors as long
(`benchmarks/solver/factors.py`)."""

BLOCK = 512
"""Columns of a block, and rows of a piece of it. Chosen: 256 take as long."""


def cholesky(
    G: Float[Tensor, "s s"], shift: float = 0.0, executor: Executor | None = None
) -> tuple[Float[Tensor, "s s"], bool]:
    """Factorise a matrix, from many features on as products of blocks (left-looking).

    Args:
        G: Symmetric; left as it is.
        shift: Added to its diagonal.
        executor: Threads of this process take rows of a block side by side where there is one.

    Returns:
        The lower factor L, and whether there is one: not if G is not positive definite.
    """
    L = G.clone()
    L.diagonal().add_(shift)
    if len(G) < LONG:
        L, failed = torch.linalg.cholesky_ex(L)
        return L, not bool(failed)
    for k in range(0, len(L), BLOCK):
        own, below = slice(k, k + BLOCK), range(k + BLOCK, len(L), BLOCK)
        L[own, own].addmm_(L[own, :k], L[own, :k].T, alpha=-1)
        L[own, own], failed = torch.linalg.cholesky_ex(L[own, own])
        if bool(failed):
            return L, False
        for _ in run(partial(_eliminate, L, k), below, executor, work=0.0):
            pass
    return L.tril_(), True


# rows that begin there, in the columns that begin at k: their entries of L, in place
def _eliminate(L: Tensor, k: int, begin: int) -> None:
    own, rows = slice(k, k + BLOCK), L[begin : begin + BLOCK]
    part = rows[:, own].addmm_(rows[:, :k], L[own, :k].T, alpha=-1)
    part.copy_(torch.linalg.solve_triangular(L[own, own], part.T, upper=False).T)


def factor(
    G: Float[Tensor, "s s"], shift: float = 0.0, executor: Executor | None = None
) -> Float[Tensor, "s s"]:
    """Factorise a Gram that is positive definite but for the rounding of the products it sums.

    Products in float32 leave eigenvalues of dependent features a little below zero, or above: a
    pivot of rounding's size is as bad as none. The least of 1, 10, 100, … times that rounding is
    added to each mean square, where it is needed.

    Args:
        G: Symmetric, finite; left as it is.
        shift: Added to its diagonal.
        executor: Takes rows of its blocks side by side, see `cholesky`.

    Returns:
        The lower Cholesky factor.
    """
    found, exists = cholesky(G, shift, executor)
    level = ROUNDING
    while not (exists and _sound(found, G, shift)) and level < 1:
        shifted = G.clone()
        shifted.diagonal().mul_(1 + level).add_(torch.finfo(G.dtype).tiny)
        found, exists = cholesky(shifted, shift, executor)
        level *= 10
    return found if exists else torch.linalg.cholesky(G)


# A pivot is what of a feature's mean square the features before it do not explain. The bound is
# half of the least that is added, which is what exactly dependent features are left with.
def _sound(lower: Tensor, G: Tensor, shift: float) -> bool:
    pivots = lower.diagonal().square()
    return bool((pivots >= ROUNDING / 2 * (G.diagonal() + shift)).all())


def solve_factored(
    lower: Float[Tensor, "s s"], right: Float[Tensor, "s p"]
) -> Float[Tensor, "s p"]:
    """Solve L L' X = B: a third of the time of `torch.cholesky_solve`, which copies the factor.

    Args:
        lower: L, as `factor` returns it.
        right: B.

    Returns:
        X.
    """
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    return torch.linalg.solve_triangular(lower.mT, half, upper=True)
