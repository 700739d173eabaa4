"""Least squares near given weights: where the data do not say what a weight should be, it stays.

States that are never on, and features that outnumber the samples, leave weights open. A small ridge
around an anchor, the weights so far, decides them.
"""

from concurrent.futures import Executor
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.cholesky import factor, solve_factored
from simplicit.convex.gram import among, pseudo_inverse
from simplicit.convex.problem import RowProblem
from simplicit.workers.run import run

RIDGE = 1e-6
"""Curvature around the anchor, relative to the square of a feature's penalty scale."""

Anchor = Float[Tensor, "_ _"] | None
"""Weights (K, N) that the data may leave as they are; zero without."""


def ridge(problem: RowProblem) -> Float[Tensor, " N"]:
    """Say how much curvature keeps dependent features, and those that are never on, finite.

    States and inputs may be in units that are far apart, so each group has a ridge of its own.

    Args:
        problem: The rows.

    Returns:
        What is added to the diagonal of the Gram.
    """
    return RIDGE * problem.terms.rho**2 + torch.finfo(problem.gram.G.dtype).tiny


def normal_equations(
    problem: RowProblem, anchor: Anchor = None
) -> tuple[Float[Tensor, "N N"], Float[Tensor, "K N"]]:
    """Write W G = R, whose solution is the least squares of all features near the anchor.

    Args:
        problem: The rows; penalty and ball are left out.
        anchor: The weights to stay near to; zero without.

    Returns:
        G, positive definite, and R.
    """
    G, small = problem.gram.G.clone(), ridge(problem)
    G.diagonal().add_(small)
    return G, _right(problem, anchor, small)


# R of the normal equations
def _right(problem: RowProblem, anchor: Anchor, small: Tensor) -> Tensor:
    return problem.gram.R if anchor is None else problem.gram.R + small * anchor


def without_free(
    problem: RowProblem, anchor: Anchor = None
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "K n"]]:
    """Write the normal equations of the features that are not free, these projected out.

    Args:
        problem: The rows; penalty and ball are left out.
        anchor: The weights to stay near to; zero without.

    Returns:
        G, positive definite, and R.
    """
    free, own = problem.free.nonzero()[:, 0], (~problem.free).nonzero()[:, 0]
    if not len(free):
        return normal_equations(problem, anchor)
    whole, small = problem.gram.G, ridge(problem)
    R = _right(problem, anchor, small)
    G = among(whole, own).clone()
    G.diagonal().add_(small[own])
    between = whole[free][:, own]
    slopes = pseudo_inverse(among(whole, free) + small[free].diag()) @ between
    return G.addmm_(between.T, slopes, alpha=-1), R[:, own] - R[:, free] @ slopes


def refit_all(problem: RowProblem, anchor: Float[Tensor, "K N"]) -> Float[Tensor, "K N"]:
    """Minimise the bare loss of all rows over all of their features, near given weights.

    Args:
        problem: The rows; penalty and ball are left out.
        anchor: The weights to stay near to.

    Returns:
        Weights, (K, N).
    """
    G, R = normal_equations(problem, anchor)
    return solve_factored(factor(G), R.T).T


def refit_near(
    problem: RowProblem,
    support: Bool[Tensor, "K N"],
    anchor: Float[Tensor, "K N"],
    executor: Executor | None = None,
) -> Float[Tensor, "K N"]:
    """Minimise the bare loss of each row over its own support, as near to given weights as may be.

    Args:
        problem: The rows; penalty and ball are left out.
        support: Which weights may be non-zero, (K, N); free features may always.
        anchor: The weights to stay near to.
        executor: Takes rows side by side.

    Returns:
        Weights, (K, N), zero off the support.
    """
    W = torch.where(support | problem.free, anchor, 0.0)
    missing = problem.gram.R - W @ problem.gram.G
    pieces = zip(support | problem.free, missing, strict=True)
    one = partial(_step, problem, ridge(problem))
    steps = run(one, pieces, executor, work=_multiplications(support | problem.free))
    for w, (columns, step) in zip(W, steps, strict=True):
        w[columns] += step
    return W


def factorised(
    problem: RowProblem, small: Float[Tensor, " N"], columns: Int[Tensor, " s"]
) -> Float[Tensor, "s s"]:
    """Factorise the normal equations of a support.

    Args:
        problem: The rows.
        small: Their ridge.
        columns: The features of the support.

    Returns:
        The lower Cholesky factor of G with the ridge there.
    """
    G = problem.gram.G[columns[:, None], columns]
    G.diagonal().add_(small[columns])
    return factor(G)


# of the largest factor
def _multiplications(support: Tensor) -> float:
    return float(support.sum(1).max()) ** 3 / 3 if len(support) else 0.0


def _step(
    problem: RowProblem,
    small: Float[Tensor, " N"],
    row: tuple[Bool[Tensor, " N"], Float[Tensor, " N"]],
) -> tuple[Tensor, Tensor]:
    on, missing = row
    columns = on.nonzero()[:, 0]
    lower = factorised(problem, small, columns)
    return columns, solve_factored(lower, missing[columns, None])[:, 0]
