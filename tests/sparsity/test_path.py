"""The level of a budget: at least as many non-zeros as asked for, few more, solved rows."""

import pytest
import torch
from torch import Tensor

from simplicit.convex.duality import Loss
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Status
from simplicit.errors import InputError
from simplicit.solvers import solve
from simplicit.sparsity.path import count, solve_to_budget, zero_level

N, K = 12, 5
SCALES = torch.cat([torch.linspace(0.5, 2, N), torch.zeros(1)]).double()
PENALTIES = {
    "l1": Penalty(l1=1.0, scales=SCALES),
    "l0 + l2": Penalty(l0=1.0, l2=0.5, scales=SCALES),
    "l0 + l1 + l2": Penalty(l0=0.2, l1=1.0, l2=0.2, scales=SCALES),
}


def rows(
    penalty: Penalty, loss: Loss = "squared", ball: Ball | None = None, seed: int = 0
) -> RowProblem:
    """Rows on correlated features and a column of ones."""
    random = torch.Generator().manual_seed(seed)
    V = torch.randn(80, N, generator=random).double() @ torch.randn(N, N, generator=random).double()
    V = torch.cat([V, torch.ones(80, 1).double()], 1)
    W = torch.randn(K, N + 1, generator=random).double()
    T = V @ W.T + 3 * torch.randn(80, K, generator=random).double()
    return RowProblem(Gram.from_data(V, T), penalty, ball, loss)


def at(problem: RowProblem, level: float) -> Tensor:
    return solve(RowProblem(problem.gram, problem.penalty * level, problem.ball, problem.loss)).W


@pytest.mark.parametrize("loss", ["squared", "root"])
@pytest.mark.parametrize("name", PENALTIES)
def test_zero_level_is_where_the_first_weight_enters(name, loss):
    problems = [rows(PENALTIES[name], loss, seed=seed) for seed in (0, 1)]
    top = zero_level(problems)
    assert not any(at(problem, top * (1 + 1e-6))[:, :N].any() for problem in problems)
    assert any(at(problem, top * 0.98)[:, :N].any() for problem in problems)


@pytest.mark.parametrize("loss", ["squared", "root"])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_budget_is_met_within_the_slack(name, loss):
    problems = [rows(PENALTIES[name], loss, seed=seed) for seed in (0, 1)]
    last = float("inf")
    for budget in (0, 23, 60):
        level, solutions = solve_to_budget(problems, budget, slack=0.1)
        total = sum(count(s, p.free) for s, p in zip(solutions, problems, strict=True))
        assert budget <= total <= max(1.1 * budget, budget + 2)  # rows may enter two at a time
        assert level <= last
        last = level
        for solution, problem in zip(solutions, problems, strict=True):
            assert set(solution.status) == {Status.SOLVED}
            assert count(solution, problem.free) == int(torch.count_nonzero(solution.W[:, :N]))
            alone = at(problem, level)
            torch.testing.assert_close(solution.W, alone, rtol=0, atol=0.2)


@pytest.mark.parametrize("factor", [0.1, 1e3])
def test_any_start_meets_the_budget(factor):
    problem = rows(PENALTIES["l1"])
    level, _ = solve_to_budget([problem], 20)
    near, (solution,) = solve_to_budget([problem], 20, start=factor * level)
    assert 20 <= count(solution, problem.free) <= 21
    assert near == pytest.approx(level, rel=0.3)


def test_the_ball_stays():
    weights = torch.linspace(1, 2, 6, dtype=torch.float64)
    problem = rows(PENALTIES["l1"], ball=Ball(slice(0, 6), 0.5, weights))
    _, (solution,) = solve_to_budget([problem], 25)
    assert count(solution, problem.free) >= 25
    assert (solution.W[:, :6].abs() @ weights <= 0.5 * (1 + 1e-12)).all()


def test_more_than_there_is_gives_all_there_is():
    problem = rows(PENALTIES["l1"])
    problem.gram.R[:, 3] = 0
    problem.gram.G[3], problem.gram.G[:, 3] = 0, 0
    level, (solution,) = solve_to_budget([problem], 10**6)
    assert count(solution, problem.free) == K * (N - 1)
    assert level < 1e-6 * zero_level([problem])


def test_targets_that_vanish_need_no_level():
    problem = rows(PENALTIES["l1"])
    problem.gram.R.zero_()
    problem.gram.t2.zero_()
    _, (solution,) = solve_to_budget([problem], 7)
    assert not solution.W.any()


def test_each_level_is_reported():
    seen = []
    level, (solution,) = solve_to_budget(
        [rows(PENALTIES["l1"])], 20, report=lambda *event: seen.append(event)
    )
    assert seen[0][1] == 0 and (level, int(torch.count_nonzero(solution.W[:, :N]))) in seen
    ordered = [weights for _, weights in sorted(seen, reverse=True)]
    assert ordered == sorted(ordered)


def test_few_levels_are_needed():
    """A ceiling, so that slow is a failure; the first level is known without solving."""
    random = torch.Generator().manual_seed(0)
    V, W = torch.randn(200, 60, generator=random), torch.randn(30, 60, generator=random)
    T = V @ W.T + torch.randn(200, 30, generator=random)
    problem = RowProblem(Gram.from_data(V, T), Penalty(l1=1.0))
    for budget in (90, 450, 1200):
        seen = []
        solve_to_budget([problem], budget, report=lambda *event, seen=seen: seen.append(event))
        assert len(seen) <= 8


@pytest.mark.parametrize("penalty", [Penalty(l2=1.0), Penalty(l1=torch.tensor([1.0, 0, 1, 1, 1]))])
def test_rows_that_no_level_makes_sparse_are_refused(penalty):
    with pytest.raises(InputError, match="a budget needs l1 > 0, or l0 > 0 and l2 > 0, in every"):
        solve_to_budget([rows(penalty)], 3)
