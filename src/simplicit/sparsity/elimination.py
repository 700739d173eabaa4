"""Backward elimination: the weight whose loss is least goes first, the others make up for it.

Optimal brain surgeon (Hassibi & Stork, 1993; Frantar & Alistarh, "Optimal Brain Compression", 2022)
on many rows at once: with H the inverse of the Gram on a row's support, removing weight j costs
w_j² / (2 H_jj), moves the others by −(w_j / H_jj) H_j, and takes H_j H_j' / H_jj from H.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.gram import factor
from simplicit.convex.problem import RowProblem
from simplicit.sparsity.near import Anchor, normal_equations
from simplicit.sparsity.pattern import UNSTRUCTURED, Pattern
from simplicit.workers.run import run

LAZY = 64
"""Removals between two updates of H: one matrix product instead of as many outer products."""

TILE = 8
"""Rows side by side; each has its own H."""


def supports(
    problem: RowProblem,
    keep: Sequence[int],
    executor: Executor | None = None,
    anchor: Anchor = None,
    pattern: Pattern = UNSTRUCTURED,
) -> Bool[Tensor, "K N"]:
    """Choose which weights each row keeps.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted.
        executor: Takes rows side by side.
        anchor: Weights that the data may leave as they are; zero without.
        pattern: Which weights may go together.

    Returns:
        Which weights may be non-zero, free features among them.
    """
    most = min(keep, default=0)
    order, _ = eliminate(*least_squares(problem, anchor), problem.free, most, executor, pattern)
    support = torch.ones_like(problem.gram.R, dtype=torch.bool)
    total = int((~problem.free).sum())
    for row, removed, left in zip(support, order, keep, strict=True):
        row[removed[: max(total - left, 0)]] = False
    return support


def costs(
    problem: RowProblem,
    keep: int,
    executor: Executor | None = None,
    anchor: Anchor = None,
    pattern: Pattern = UNSTRUCTURED,
) -> Float[Tensor, "K T"]:
    """Price the weights of each row, all features in it at first.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row that need no price.
        executor: Takes rows side by side.
        anchor: Weights that the data may leave as they are; zero without.
        pattern: Which weights may go together.

    Returns:
        The loss that each removal adds.
    """
    return eliminate(*least_squares(problem, anchor), problem.free, keep, executor, pattern)[1]


def costs_among(
    G: Float[Tensor, "n n"],
    R: Float[Tensor, "K n"],
    candidates: Sequence[Int[Tensor, "_"]],
    keep: int,
    executor: Executor | None = None,
) -> list[Float[Tensor, "_"]]:
    """Price the weights of rows that have candidates of their own.

    Args:
        G: Positive definite.
        R: Moments; W G = R is solved by the weights of all features.
        candidates: Columns of each row.
        keep: Weights of each row that need no price.
        executor: Takes rows side by side.

    Returns:
        For each row the loss that each removal adds.
    """
    pieces = [(r[columns], columns) for r, columns in zip(R, candidates, strict=True)]
    one = partial(_among, G, keep)
    most = float(max(map(len, candidates), default=0)) ** 3
    return list(run(one, pieces, executor, cost=lambda piece: float(len(piece[1])) ** 3, work=most))


def _among(G: Tensor, keep: int, piece: tuple[Tensor, Tensor]) -> Tensor:
    target, columns = piece
    H = torch.cholesky_inverse(factor(G[columns[:, None], columns]))
    none = torch.zeros_like(columns, dtype=torch.bool)
    return _tile(H, none, keep, UNSTRUCTURED, (target @ H)[None])[1][0]


def least_squares(
    problem: RowProblem, anchor: Anchor
) -> tuple[Float[Tensor, "N N"], Float[Tensor, "K N"]]:
    """Solve the rows with all their features.

    Args:
        problem: The rows; penalty and ball are left out.
        anchor: Weights that the data may leave as they are; zero without.

    Returns:
        The inverse of the Gram, and the weights.
    """
    G, R = normal_equations(problem, anchor)
    inverse = torch.cholesky_inverse(factor(G))
    return inverse, R @ inverse


def eliminate(
    H: Float[Tensor, "s s"],
    W: Float[Tensor, "K s"],
    protected: Bool[Tensor, " s"],
    keep: int = 0,
    executor: Executor | None = None,
    pattern: Pattern = UNSTRUCTURED,
) -> tuple[Int[Tensor, "K T"], Float[Tensor, "K T"]]:
    """Remove one weight after another from each row, exactly.

    Args:
        H: Inverse of the Gram, positive definite, common to all rows at the start.
        W: Weights that minimise each row's loss.
        protected: Features never removed.
        keep: Weights left in each row, protected ones not counted.
        executor: Takes rows side by side.
        pattern: Which weights may go together; protected features come last, as the bias does.

    Returns:
        The order of removal, as columns of W, and the loss that each removal adds.
    """
    tile = partial(_tile, H, protected, keep, pattern)
    parts = list(run(tile, W.split(TILE), executor, work=min(TILE, len(W)) * float(len(H)) ** 3))
    return torch.cat([order for order, _ in parts]), torch.cat([cost for _, cost in parts])


def _tile(
    H: Tensor, protected: Tensor, keep: int, pattern: Pattern, w: Tensor
) -> tuple[Tensor, Tensor]:
    K, s = w.shape
    rows = torch.arange(K, device=w.device)
    features = s - int(protected.sum())
    removals = max(features - keep, 0)
    order, cost = rows.new_empty(K, removals), w.new_empty(K, removals)
    H, w, index = H.expand(K, s, s), w.clone(), torch.arange(s, device=w.device).expand(K, s)
    out, gone = protected.expand(K, s).clone(), torch.zeros_like(protected).repeat(K, 1)
    diagonal = H.diagonal(dim1=1, dim2=2).clone()
    # H less what was removed since its last update is H − P'P
    P, r = w.new_zeros(K, LAZY, s), 0
    lost = torch.zeros_like(protected).repeat(K, 1)
    for t in range(removals):
        price = (w * w / diagonal).masked_fill_(out, torch.inf)
        if (may := pattern.open(lost[:, :features])) is not None:
            may = torch.nn.functional.pad(may, (0, s - features))
            price = price.masked_fill_(~may.gather(1, index), torch.inf)
        least, j = price.min(1)
        order[:, t], cost[:, t] = index[rows, j], least / 2
        column = H[rows, j] - torch.bmm(P[rows, :r, j][:, None], P[:, :r])[:, 0]
        p = column / column[rows, j].sqrt()[:, None]
        w -= (w[rows, j] / p[rows, j])[:, None] * p
        diagonal -= p * p
        out[rows, j] = gone[rows, j] = lost[rows, order[:, t]] = True
        P[:, r] = p
        r += 1
        if r == LAZY and t + 1 < removals:
            # the same number is gone from every row: what is left is an array again
            left = (~gone).nonzero()[:, 1].reshape(K, -1)
            H = H[rows[:, None, None], left[:, :, None], left[:, None, :]]
            P = P.gather(2, left[:, None].expand(K, LAZY, -1))
            H.baddbmm_(P.mT, P, alpha=-1)
            w, index, out = (x.gather(1, left) for x in (w, index, out))
            diagonal, gone = H.diagonal(dim1=1, dim2=2).clone(), torch.zeros_like(out)
            P, r = torch.zeros_like(P), 0
    return order, cost
