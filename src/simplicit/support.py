"""Which weights each row keeps: backward elimination on the shared Gram, one level for all rows."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .budget import spend
from .elimination import eliminate
from .problem import Penalty, RowProblem
from .refit import refit

RIDGE = 1e-6
"""Curvature added for the elimination, relative to the features' mean square."""

BOUND_RIDGE = 1e-2
"""Ridge of the bound, relative to a feature's curvature: without one the dual knows no l0."""

FIRST, FIRST_PART = 4, 0.2
"""Sweeps begin with at most so many times the budget, and so large a part of N0."""

Order = Int[Tensor, "K T"]


def first_budget(budget: int, N0: int) -> int:
    """Say how many weights sweeps begin with: half as many again as the budget, or more.

    Args:
        budget: Weights they end with.
        N0: Weights of the explicit network.

    Returns:
        Weights to begin with.
    """
    return min(FIRST * budget, max(int(FIRST_PART * N0), budget + budget // 2))


def plan(
    problems: Sequence[RowProblem],
    importance: Sequence[Float[Tensor, "_"]],
    budget: int,
    workers: int = 1,
) -> tuple[float, list[list[int]], list[Order]]:
    """Spend a budget over the rows of all problems.

    Args:
        problems: Blocks of rows; penalty and ball are left out.
        importance: What a unit of each row's loss is worth, one vector per problem.
        budget: Non-zeros to keep in all rows together, free features not counted.
        workers: Parallel blocks of rows.

    Returns:
        The level: the loss, times importance, up to which weights were removed; how many each row
        keeps; and the order in which each problem's weights go.
    """
    # rows keep a part of their even share at least, so that part need not be put in order
    rows = sum(len(p.gram.R) for p in problems)
    surely = budget // (4 * rows)
    costs: list[Tensor] = []
    orders: list[Order] = []
    for problem, worth in zip(problems, importance, strict=True):
        keep = min(surely, int((~problem.free).sum()))
        order, cost = eliminate(*_least_squares(problem), problem.free, keep, workers)
        orders.append(order)
        costs += [
            torch.cat([row, row.new_full((keep,), torch.inf)]).cpu()
            for row in cost * worth.to(cost)[:, None]
        ]
    kept = spend(costs, budget)
    removed = [float(c[: len(c) - k].max()) for c, k in zip(costs, kept, strict=True) if len(c) > k]
    counts = iter(kept)
    return max(removed, default=0.0), [[next(counts) for _ in p.gram.R] for p in problems], orders


def choose(
    problem: RowProblem, keep: Sequence[int], order: Order | None = None, workers: int = 1
) -> Float[Tensor, "K N"]:
    """Eliminate weights until each row has its number, and refit.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted.
        order: In which the rows' weights go, if that is known.
        workers: Parallel blocks of rows.

    Returns:
        Weights (K, N).
    """
    if order is None:
        most = min(keep, default=0)
        order, _ = eliminate(*_least_squares(problem), problem.free, most, workers)
    support = torch.ones_like(problem.gram.R, dtype=torch.bool)
    total = int((~problem.free).sum())
    for row, removed, left in zip(support, order, keep, strict=True):
        row[removed[: max(total - left, 0)]] = False
    return refit(problem, support)


def bounded(problem: RowProblem, price: Float[Tensor, " K"]) -> RowProblem:
    """Write the l0 problem that an elimination solves greedily; its dual bounds all supports.

    Args:
        problem: The rows; penalty and ball are left out.
        price: Loss up to which a weight of each row is removed. More than t2 buys nothing: at
            ½ t2 a row is empty already.

    Returns:
        Rows with l0 = price and a small ridge.
    """
    l0 = torch.minimum(price, problem.gram.t2)
    penalty = Penalty(l0=l0, l2=BOUND_RIDGE, scales=problem.penalty.scales)
    return replace(problem, penalty=penalty)


def _least_squares(problem: RowProblem) -> tuple[Tensor, Tensor]:
    G = problem.gram.G.clone()
    G.diagonal().add_(RIDGE * G.diagonal().mean() + torch.finfo(G.dtype).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(G))
    return inverse, problem.gram.R @ inverse
