"""One penalty level for all rows: the warm-started path down to a number of non-zeros."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .errors import InputError
from .problem import RowProblem
from .solution import Solution
from .solvers import Callback, solve
from .solvers.scaled import Design

DESCENT = 0.6
"""Factor between two levels on the way down to the budget."""

BISECTIONS = 30
"""Most halvings of the bracket; supports that jump may keep a budget from being met closely."""

Level = Callable[[float, int], None]
"""Called with each level tried and the non-zeros it gave."""


def zero_level(problems: Sequence[RowProblem]) -> float:
    """Find the level at and above which every penalised weight is zero.

    Args:
        problems: Rows whose penalties are to be multiplied by a level.

    Returns:
        The largest ratio of a moment at zero weights to the penalty's slope there.
    """
    largest = 0.0
    for problem in problems:
        empty = torch.zeros_like(problem.gram.R)
        Design(problem).recover_free(problem.gram, empty)
        moments, slope = problem.gradient_moments(empty), problem.terms.slope()
        if problem.loss == "root":
            # the rooted loss' gradient is c/‖r‖
            residual = torch.sqrt(2 * replace(problem, loss="squared").objective(empty))
            moments = moments / residual.clamp_min(torch.finfo(moments.dtype).tiny)[:, None]
        ratio = torch.where(slope > 0, moments.abs() / slope, 0.0)
        largest = max(largest, float(ratio.max()))
    return largest


def count(solution: Solution, free: Tensor) -> int:
    """Count the penalised non-zeros.

    Returns:
        How many weights of the features that are not free are non-zero.
    """
    return int(torch.count_nonzero(solution.W[:, ~free]))


def solve_to_budget(
    problems: Sequence[RowProblem],
    budget: int,
    *,
    slack: float = 0.02,
    tol: float = 1e-4,
    start: float | None = None,
    report: Level | None = None,
    callback: Callback | None = None,
    workers: int = 1,
) -> tuple[float, list[Solution]]:
    """Lower one level, common to all rows, until they have `budget` non-zeros or slightly more.

    Every solve starts from the nearest one so far; features' moments are scaled and factorised
    once per problem.

    Args:
        problems: Rows with their penalties at level 1.
        budget: Non-zeros wanted in all rows together, free features not counted.
        slack: Accepted surplus, a fraction of the budget.
        tol: Relative duality gap of each solve.
        start: A level to begin with; the highest sensible one when omitted.
        report: Called with each level and its non-zeros.
        callback: Passed to every solve.
        workers: Parallel blocks of rows in every solve.

    Returns:
        The level and one solution per problem, with at least `budget` non-zeros unless even a
        vanishing penalty has fewer.

    Raises:
        InputError: If a row's penalty is zero, so that no level changes it.
    """
    if any(bool((p.terms.slope().amax(1) == 0).any()) for p in problems):
        raise InputError("a budget needs l1 > 0, or l0 > 0 and l2 > 0, in every row")
    designs = [Design(problem) for problem in problems]
    top = zero_level(problems)

    def at(level: float, near: list[Solution] | None) -> tuple[int, list[Solution]]:
        solutions = [
            solve(
                replace(problem, penalty=problem.penalty * level),
                tol=tol,
                warm_start=None if near is None else near[i],
                callback=callback,
                design=designs[i],
                workers=workers,
            )
            for i, problem in enumerate(problems)
        ]
        total = sum(count(s, p.free) for s, p in zip(solutions, problems, strict=True))
        if report is not None:
            report(level, total)
        return total, solutions

    level = min(start or top, top)
    total, solutions = at(level, None)
    # bracket: `high` has too few non-zeros, `low` enough
    high = low = (level, total, solutions)
    while low[1] < budget and low[0] > 1e-9 * top:
        high = low
        level *= DESCENT
        low = (level, *at(level, high[2]))
    while high[1] >= budget and high[0] < top:
        low = high
        level = high[0] / DESCENT
        high = (level, *at(level, low[2]))
    for _ in range(BISECTIONS):
        if low[1] <= (1 + slack) * budget or low[1] < budget or high[0] <= low[0] * (1 + 1e-9):
            break
        middle = (low[0] * high[0]) ** 0.5
        trial = (middle, *at(middle, high[2]))
        low, high = (trial, high) if trial[1] >= budget else (low, trial)
    return low[0], low[2]
