"""The last word on every row: its certificate on the problem as given, and its status."""

import torch
from torch import Tensor

from simplicit.convex.duality import mean_square
from simplicit.convex.problem import RowProblem
from simplicit.convex.scaled import SMALLEST
from simplicit.convex.solution import Solution, Status

INACCURATE = 100
"""Tolerances within which a gap counts as solved inaccurately. Chosen."""


def certify(
    problem: RowProblem, W: Tensor, mu: Tensor, iterations: Tensor, tol: float, stop: Status | None
) -> Solution:
    """Certify weights in float64 on the problem as given, and name every row's status.

    Args:
        problem: The rows.
        W: Their weights, (K, N); rows that are not finite become zero.
        mu: Multipliers of the ball, (K,).
        iterations: Iterations spent on each row, (K,).
        tol: Accepted gap, relative to the row's unit.
        stop: Why the call was stopped; None if it was not.

    Returns:
        The solution.
    """
    finite = torch.isfinite(W).all(1)
    W = W if bool(finite.all()) else torch.where(finite[:, None], W, 0.0)
    moments = problem.gradient_moments(W)
    gap, objective = problem.gap(W, moments), problem.objective(W, moments)
    if bool(problem.shut.any()):
        # no solver saw that ball; what widening it would be worth follows from the moments
        q = mean_square(problem.gram, W, moments).clamp_min(SMALLEST**2 * problem.gram.t2)
        c = moments / torch.where(q > 0, q, 1.0).sqrt()[:, None]
        c = c if problem.loss == "root" else moments
        mu = problem.terms.dual_multiplier(c)[:, 0]
    limit = tol * problem.unit
    rows = zip(*(x.tolist() for x in (gap, limit, problem.valid, finite)), strict=True)
    status = tuple(_status(value, most, valid, whole, stop) for value, most, valid, whole in rows)
    return Solution(W, gap, objective, mu, status, iterations)


def _status(gap: float, limit: float, valid: bool, finite: bool, stop: Status | None) -> Status:
    if not valid:
        return Status.INVALID_INPUT
    if gap != gap or not finite:
        return Status.NUMERICAL_ERROR
    if gap <= limit:
        return Status.SOLVED
    if gap <= INACCURATE * limit and stop is None:
        return Status.SOLVED_INACCURATE
    return stop or Status.MAX_ITERATIONS
