"""Least squares on a support: its normal equations, its constraint; and budgets met to the unit."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import Loss, RowProblem
from simplicit.sparsity.refit import fit_to_budget, refit, trim

N, K, M = 12, 5, 80
BALL = slice(0, 6)
OMEGA = torch.linspace(0.5, 2, 6, dtype=torch.float64)
SCALES = torch.cat([torch.ones(N), torch.zeros(1)]).double()


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    V = torch.randn(M, N, generator=random).double() @ torch.randn(N, N, generator=random).double()
    V = torch.cat([V, torch.ones(M, 1).double()], 1)
    W = torch.randn(K, N + 1, generator=random).double()
    return V, V @ W.T + 3 * torch.randn(M, K, generator=random).double()


def rows(ball: Ball | None = None, loss: Loss = "squared") -> RowProblem:
    return RowProblem(Gram.from_data(*data()), Penalty(l1=1.0, scales=SCALES), ball, loss)


def support(seed: int = 3) -> Tensor:
    mask = torch.rand(K, N + 1, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[0] = False
    return mask


@pytest.mark.parametrize("loss", ["squared", "root"])
def test_the_residual_is_orthogonal_to_the_support_and_the_bias(loss):
    problem, mask = rows(loss=loss), support()
    W = refit(problem, mask)
    mask[:, N] = True
    assert not W[~mask].any() and (W[mask] != 0).all()
    moments = problem.gradient_moments(W)
    assert moments[mask].abs().max() <= 1e-7 * problem.gram.R.abs().max()


def test_a_row_without_support_has_its_mean_as_bias():
    W = refit(rows(), torch.zeros(K, N + 1, dtype=torch.bool))
    assert not W[:, :N].any()
    torch.testing.assert_close(W[:, N], data()[1].mean(0), rtol=1e-8, atol=0)
    nothing = RowProblem(Gram.from_data(*data()), Penalty(l1=1.0))
    assert not refit(nothing, torch.zeros(K, N + 1, dtype=torch.bool)).any()


def test_features_that_are_copies_of_each_other_stay_finite():
    V, T = data()
    V[:, 1] = V[:, 0]
    V[:, 2] = 0
    problem = RowProblem(Gram.from_data(V, T), Penalty(l1=1.0, scales=SCALES))
    W = refit(problem, torch.ones(K, N + 1, dtype=torch.bool))
    assert torch.isfinite(W).all()
    best = np.linalg.lstsq(V.numpy(), T.numpy())[0]
    residual, least = (T - V @ W.T).square().sum(), (T - V @ torch.tensor(best)).square().sum()
    assert residual <= least * (1 + 1e-7)


def test_in_the_ball_it_is_what_cvxpy_finds():
    V, T = data()
    radius = torch.tensor([0.3, 0.5, 1.0, 2.0, 100.0], dtype=torch.float64)
    problem, mask = rows(Ball(BALL, radius, OMEGA)), support()
    mask[:, 0] = True
    W = refit(problem, mask, tol=1e-9)
    assert (W[:, BALL].abs() @ OMEGA <= radius * (1 + 1e-12)).all()
    assert not W[:, :N][~mask[:, :N]].any()
    mask[:, N] = True
    for k in range(K):
        w = cp.Variable(N + 1)
        fixed = [w[j] == 0 for j in range(N + 1) if not mask[k, j]]
        ball = cp.norm1(cp.multiply(OMEGA.numpy(), w[BALL])) <= float(radius[k])
        loss = cp.sum_squares(T[:, k].numpy() - V.numpy() @ w) / (2 * M)
        best = cp.Problem(cp.Minimize(loss), [*fixed, ball]).solve(solver=cp.CLARABEL)
        mine = float((T[:, k] - V @ W[k]).square().sum() / (2 * M))
        assert mine == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("budget", [0, 1, 13, 29])
def test_trim_leaves_exactly_the_budget(budget):
    problem = rows()
    W = refit(problem, torch.ones(K, N + 1, dtype=torch.bool))
    trimmed = trim(problem, W, budget)
    assert int(torch.count_nonzero(trimmed[:, :N])) == budget
    torch.testing.assert_close(trimmed, refit(problem, trimmed != 0), rtol=1e-12, atol=0)


def test_trimming_by_one_removes_the_cheapest_weight():
    problem = rows()
    W = refit(problem, torch.ones(K, N + 1, dtype=torch.bool))
    costs = torch.full((K, N), torch.inf, dtype=torch.float64)
    bare = RowProblem(problem.gram, Penalty())
    for k in range(K):
        for j in range(N):
            mask = W != 0
            mask[k, j] = False
            costs[k, j] = bare.objective(refit(problem, mask)).sum()
    k, j = divmod(int(costs.argmin()), N)
    trimmed = trim(problem, W, K * N - 1)
    assert (trimmed[:, :N] == 0).nonzero().tolist() == [[k, j]]


def test_trim_keeps_all_where_there_is_less_than_the_budget():
    problem, mask = rows(), support()
    W = refit(problem, mask)
    assert torch.equal(trim(problem, W, K * N), W)


@pytest.mark.parametrize("radius", [float("inf"), 0.4])
@pytest.mark.parametrize("budget", [1, 30])
def test_a_budget_is_met_to_the_unit_whether_the_ball_is_tight_or_not(budget, radius):
    problem, solution, W = fit_to_budget(rows(Ball(BALL, radius, OMEGA)), budget)
    assert int(torch.count_nonzero(W[:, :N])) == budget
    assert (W[:, BALL].abs() @ OMEGA <= radius * (1 + 1e-12)).all()
    assert solution.solved.all()
    torch.testing.assert_close(problem.objective(solution.W), solution.objective)
    # the refit is no worse than the penalised weights it came from, trimmed to the same support
    bare = RowProblem(problem.gram, Penalty())
    assert (bare.objective(W) <= bare.objective(solution.W.where(W != 0, 0)) + 1e-12).all()
