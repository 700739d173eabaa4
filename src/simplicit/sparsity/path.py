"""One penalty level for all rows: the warm-started path to a number of non-zeros."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from math import exp, log, sqrt

import torch
from torch import Tensor

from simplicit.convex.gram import fit_free, pseudo_inverse
from simplicit.convex.problem import RowProblem
from simplicit.convex.shared import ScaledGram
from simplicit.convex.solution import Solution
from simplicit.errors import InputError
from simplicit.solvers import Callback, solve
from simplicit.solvers.working_set import pays

DESCENT = 1 / 30
"""The first level, as a share of the highest sensible one, and the longest step down."""

SLOPE = 0.8
"""How the logarithm of the non-zeros falls with that of the level, before two levels tell."""

TRIES = 40
"""Most levels; supports that jump may keep a budget from being met closely."""

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
        free = problem.free.nonzero()[:, 0]
        fit_free(problem.gram, free, pseudo_inverse(problem.gram.G[free][:, free]), empty)
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
    executor: Executor | None = None,
) -> tuple[float, list[Solution]]:
    """Find one level, common to all rows, at which they have `budget` non-zeros or slightly more.

    A secant through the last two levels soon finds it, and a bracket keeps it from going astray.
    Every solve starts from the nearest one so far; features' moments are scaled and factorised once
    per problem.

    Args:
        problems: Rows with their penalties at level 1.
        budget: Non-zeros wanted in all rows together, free features not counted.
        slack: Accepted surplus, a fraction of the budget.
        tol: Relative duality gap of each solve.
        start: A level to begin with; a thirtieth of the highest sensible one when omitted.
        report: Called with each level and its non-zeros.
        callback: Passed to every solve.
        executor: Takes rows side by side.

    Returns:
        The level and one solution per problem, with at least `budget` non-zeros unless even a
        vanishing penalty has fewer.

    Raises:
        InputError: If a row's penalty is zero, so that no level changes it.
    """
    if any(bool((p.terms.slope().amax(1) == 0).any()) for p in problems):
        raise InputError("a budget needs l1 > 0, or l0 > 0 and l2 > 0, in every row")
    designs = [None if pays(problem) else ScaledGram(problem) for problem in problems]
    top = zero_level(problems)

    def at(level: float, near: list[Solution] | None) -> tuple[int, list[Solution]]:
        solutions = [
            solve(
                replace(problem, penalty=problem.penalty * level),
                tol=tol,
                warm_start=None if near is None else near[i],
                callback=callback,
                design=designs[i],
                workers=1,
                executor=executor,
            )
            for i, problem in enumerate(problems)
        ]
        total = sum(count(s, p.free) for s, p in zip(solutions, problems, strict=True))
        if report is not None:
            report(level, total)
        return total, solutions

    if budget <= 0 or top == 0:
        return top, at(top, None)[1]
    if report is not None:
        report(top, 0)  # known without solving
    # two levels around the goal: `high` has too few non-zeros, `low` enough
    high, low = _Level(top, 0, None), None
    level = min(start or DESCENT * top, top)
    last = None
    for tried in range(TRIES):
        near = [end for end in (low, high) if end is not None and end.solutions is not None]
        near.sort(key=lambda end: abs(log(end.level / level)))
        here = _Level(level, *at(level, near[0].solutions if near else None))
        if here.weights < budget:
            high = here
        else:
            low = here
        met = low is not None and low.weights <= (1 + slack) * budget
        if met or (low or high).level <= 1e-9 * top or low and high.level <= low.level * (1 + 1e-9):
            break
        level = _next(last, here, low, high, (1 + slack / 2) * budget, tried)
        last = here
    found = low or high
    assert found.solutions is not None
    return found.level, found.solutions


@dataclass(frozen=True)
class _Level:
    """A level and what was found there."""

    level: float
    weights: int
    solutions: list[Solution] | None

    @property
    def root(self) -> float:
        """Nearly linear in the logarithm of the level, as measured on Fashion-MNIST."""
        return sqrt(self.weights)


def _next(
    last: _Level | None, here: _Level, low: _Level | None, high: _Level, goal: float, tried: int
) -> float:
    if last is None or last.weights == here.weights:
        wanted = here.level * (max(here.weights, 0.5) / goal) ** (1 / SLOPE)
    else:
        slope = (last.root - here.root) / log(here.level / last.level)
        wanted = here.level * exp(min(max((here.root - sqrt(goal)) / slope, -30.0), 30.0))
    if low is None:
        return min(max(wanted, DESCENT * here.level), 0.9 * here.level)
    # inside the bracket, and after a while at times in its middle, so that it shrinks in any case
    if (tried < 6 or tried % 3) and low.level < wanted < high.level:
        return wanted
    return (low.level * high.level) ** 0.5
