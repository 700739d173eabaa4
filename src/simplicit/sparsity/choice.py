"""Which weights each row keeps: backward elimination on the shared Gram, one loss for all."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.sparsity.budget import spend
from simplicit.sparsity.elimination import eliminate
from simplicit.sparsity.refit import refit

RIDGE = 1e-6
"""Curvature added for the elimination, relative to the square of a feature's penalty scale."""

BOUND_RIDGE = 1e-2
"""Ridge of the bound, relative to a feature's curvature: without one the dual knows no l0."""

Order = Int[Tensor, "_ _"]
Anchor = Float[Tensor, "_ _"] | None


def share_out(
    problems: Sequence[RowProblem],
    importance: Sequence[Float[Tensor, "_"]],
    budget: int,
    workers: int = 1,
    anchors: Sequence[Anchor] | None = None,
) -> tuple[float, list[list[int]], list[Order]]:
    """Spend a budget over the rows of all problems.

    Args:
        problems: Blocks of rows; penalty and ball are left out.
        importance: What a unit of each row's loss is worth, one vector per problem.
        budget: Non-zeros to keep in all rows together, free features not counted.
        workers: Parallel blocks of rows.
        anchors: For each problem, the weights its data may leave as they are; zero without.

    Returns:
        The allowed loss, times importance, up to which weights were removed; how many each row
        keeps; and the order in which each problem's weights go.
    """
    # Every row keeps at least a quarter of budget/rows, so those last weights need no price.
    rows = sum(len(p.gram.R) for p in problems)
    surely = budget // (4 * rows)
    costs: list[Tensor] = []
    orders: list[Order] = []
    for problem, worth, anchor in zip(
        problems, importance, anchors or [None] * len(problems), strict=True
    ):
        keep = min(surely, int((~problem.free).sum()))
        order, cost = eliminate(*_least_squares(problem, anchor), problem.free, keep, workers)
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
    problem: RowProblem,
    keep: Sequence[int],
    order: Order | None = None,
    workers: int = 1,
    anchor: Anchor = None,
) -> Float[Tensor, "K N"]:
    """Eliminate weights until each row has its number, and refit.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted.
        order: In which the rows' weights go, if that is known.
        workers: Parallel blocks of rows.
        anchor: Weights that the data may leave as they are; zero without.

    Returns:
        Weights (K, N).
    """
    if order is None:
        most = min(keep, default=0)
        order, _ = eliminate(*_least_squares(problem, anchor), problem.free, most, workers)
    support = torch.ones_like(problem.gram.R, dtype=torch.bool)
    total = int((~problem.free).sum())
    for row, removed, left in zip(support, order, keep, strict=True):
        row[removed[: max(total - left, 0)]] = False
    return refit(problem, support) if anchor is None else refit_near(problem, support, anchor)


def refit_near(
    problem: RowProblem, support: Bool[Tensor, "K N"], anchor: Float[Tensor, "K N"]
) -> Float[Tensor, "K N"]:
    """Minimise the bare loss of each row over its own support, as near to given weights as may be.

    Where the data do not say what a weight should be (a state that is never on, fewer samples than
    features), it stays.

    Args:
        problem: The rows; penalty and ball are left out.
        support: Which weights may be non-zero, (K, N); free features may always.
        anchor: The weights to stay near to.

    Returns:
        Weights, (K, N), zero off the support.
    """
    W, small = torch.zeros_like(problem.gram.R), ridge(problem)
    for w, allowed, target, start in zip(W, support, problem.gram.R, anchor, strict=True):
        columns = (allowed | problem.free).nonzero()[:, 0]
        G = problem.gram.G[columns][:, columns]
        missing = target[columns] - G @ start[columns]
        G.diagonal().add_(small[columns])
        step = torch.cholesky_solve(missing[:, None], torch.linalg.cholesky(G))[:, 0]
        w[columns] = start[columns] + step
    return W


def ridge(problem: RowProblem) -> Float[Tensor, " N"]:
    """Say how much curvature keeps dependent features, and those that are never on, finite.

    States and inputs may be in units that are far apart, so each group has a ridge of its own.

    Args:
        problem: The rows.

    Returns:
        What is added to the diagonal of the Gram.
    """
    return RIDGE * problem.terms.rho**2 + torch.finfo(problem.gram.G.dtype).tiny


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


def _least_squares(problem: RowProblem, anchor: Anchor = None) -> tuple[Tensor, Tensor]:
    G = problem.gram.G.clone()
    G.diagonal().add_(ridge(problem))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(G))
    if anchor is None:
        return inverse, problem.gram.R @ inverse
    return inverse, anchor + (problem.gram.R - anchor @ problem.gram.G) @ inverse


def prune_smallest(W: Float[Tensor, "r c"], percentage: float) -> Float[Tensor, "r c"]:
    """Zero the given percentage of entries of smallest magnitude, as the seed does after a solve.

    Returns:
        A copy with zeros.
    """
    count = int(W.numel() * percentage / 100)
    pruned = W.clone()
    pruned.view(-1)[W.abs().view(-1).argsort(stable=True)[:count]] = 0.0
    return pruned
