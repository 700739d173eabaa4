"""Least squares on a chosen support, under the constraint; and the fit to an exact budget."""

from concurrent.futures import Executor
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simplicit.convex.cholesky import factor, solve_factored
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution
from simplicit.solvers import Callback, solve
from simplicit.sparsity.path import Level, solve_to_budget

RIDGE = 1e-9
"""Curvature of the refit relative to a feature's mean square: keeps dependent ones finite."""

REFILLS = 6
"""Most times more non-zeros are asked of the path, where the ball sets weights to zero."""


def fit_to_budget(
    problem: RowProblem,
    budget: int,
    *,
    start: float | None = None,
    tol: float = 1e-4,
    report: Level | None = None,
    callback: Callback | None = None,
    executor: Executor | None = None,
) -> tuple[RowProblem, Solution, Float[Tensor, "K N"]]:
    """Solve at the level that gives the budget, trim to it exactly, and refit.

    Where the ball is tight, least squares over a support leaves some of its weights at zero; then
    the path is asked for more.

    Args:
        problem: The rows, their penalty at level 1.
        budget: Non-zeros wanted in all rows together, free features not counted.
        start: A level to begin with.
        tol: Relative duality gap of each solve.
        report: Called with each level and its non-zeros.
        callback: Passed to every solve.
        executor: Takes rows side by side.

    Returns:
        The rows at the level found, their solution, and the refitted weights. These have `budget`
        non-zeros, fewer only where data and ball have no use for more.
    """
    wanted = budget
    for _ in range(REFILLS):
        level, (solution,) = solve_to_budget(
            [problem],
            wanted,
            start=start,
            tol=tol,
            report=report,
            callback=callback,
            executor=executor,
        )
        W = trim(problem, refit(problem, solution.W != 0), budget)
        short = budget - int(torch.count_nonzero(W[:, ~problem.free]))
        if short <= 0 or int(torch.count_nonzero(solution.W[:, ~problem.free])) < wanted:
            break
        wanted, start = wanted + 2 * short, level
    return replace(problem, penalty=problem.penalty * level), solution, W


def refit(
    problem: RowProblem, support: Bool[Tensor, "K N"], tol: float = 1e-6
) -> Float[Tensor, "K N"]:
    """Minimise the bare loss of each row over its own support, inside the ball.

    Args:
        problem: The rows; their penalty is left out, free features stay free.
        support: Which weights may be non-zero, (K, N).
        tol: Relative duality gap of the rows that are under the constraint.

    Returns:
        Weights, (K, N), zero off the support.
    """
    W = torch.zeros_like(problem.gram.R)
    omega, radius = problem.terms.omega, problem.terms.radius[:, 0]
    for k in range(len(W)):
        columns = (support[k] | problem.free).nonzero()[:, 0]
        if len(columns) == 0:
            continue
        gram = problem.gram.select(columns, slice(k, k + 1))
        row = solve_factored(_factor(gram.G), gram.R.T).T
        constrained = omega[columns] > 0
        if float(row.abs()[0] @ omega[columns]) > float(radius[k]):
            ball = Ball(constrained.nonzero()[:, 0], float(radius[k]), omega[columns][constrained])
            penalty = Penalty(scales=constrained.to(row))
            row = solve(RowProblem(gram, penalty, ball), tol=tol, warm_start=row).W
        W[k, columns] = row[0]
    return W


def trim(problem: RowProblem, W: Float[Tensor, "K N"], budget: int) -> Float[Tensor, "K N"]:
    """Keep the `budget` weights whose removal would cost the loss most, over all rows, and refit.

    The cost of w_j is w_j² / (2 [G_SS⁻¹]_jj) on its row's support S: the optimal-brain-surgeon
    saliency (Hassibi & Stork 1993) on the shared Gram.

    Args:
        problem: The rows.
        W: Refitted weights, (K, N); with fewer non-zeros than the budget all of them are kept.
        budget: Non-zeros to keep in all rows together, free features not counted.

    Returns:
        Refitted weights with that many non-zeros, (K, N).
    """
    saliency = torch.full_like(W, -torch.inf)
    for k in range(len(W)):
        columns = ((W[k] != 0) | problem.free).nonzero()[:, 0]
        inverse = torch.cholesky_inverse(_factor(problem.gram.G[columns][:, columns]))
        saliency[k, columns] = W[k, columns] ** 2 / inverse.diagonal()
    saliency[:, problem.free] = -torch.inf
    while True:
        keep = torch.zeros_like(W, dtype=torch.bool)
        keep.view(-1)[saliency.view(-1).topk(budget).indices] = True
        keep &= torch.isfinite(saliency)
        refitted = refit(problem, keep)
        lost = keep & (refitted == 0)
        if not bool(lost.any()):
            return refitted
        # the ball has no room for these: the next best take their place
        saliency[lost] = -torch.inf


# Cholesky factor of G with a ridge just large enough to have one.
def _factor(G: Float[Tensor, "s s"]) -> Float[Tensor, "s s"]:
    shifted = G.clone()
    shifted.diagonal().mul_(1 + RIDGE).add_(torch.finfo(G.dtype).tiny)
    return factor(shifted)
