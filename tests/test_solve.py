"""`solve` against scikit-learn and its own certificate, for each penalty, ball and loss."""

import itertools

import pytest
import torch
from sklearn.linear_model import Lasso

from cases import LOSSES, PENALTIES
from simplicit.gram import Gram
from simplicit.problem import Ball, Loss, Penalty, RowProblem
from simplicit.solution import Status
from simplicit.solvers import solve

CASES = list(itertools.product([n for n in PENALTIES if n != "none"], (None, 0.4), LOSSES))


def problem(penalty="l1", radius=None, loss: Loss = "squared", rows=3):
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(60, 12, generator=generator, dtype=torch.float64)
    T = torch.randn(60, rows, generator=generator, dtype=torch.float64) + V[:, :rows]
    ball = None if radius is None else Ball(slice(0, 6), radius)
    return V, T, RowProblem(Gram.from_data(V, T), Penalty(**PENALTIES[penalty]), ball, loss)


@pytest.mark.parametrize(("penalty", "radius", "loss"), CASES)
def test_rows_are_solved_certified_and_stationary(penalty, radius, loss):
    _, _, rows = problem(penalty, radius, loss)
    solution = solve(rows, tol=1e-9)
    assert set(solution.status) == {Status.SOLVED}
    # a gap of g leaves the weights within about √g of the optimum
    assert (rows.kkt_residual(solution.W) <= 1e-4).all()
    assert (rows.terms.ball_norm(solution.W) <= rows.terms.radius[:, 0] * (1 + 1e-12)).all()


def test_l1_is_the_lasso_of_scikit_learn():
    V, T, _ = problem()
    rows = RowProblem(Gram.from_data(V, T), Penalty(l1=0.1))
    theirs = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(V, T)
    torch.testing.assert_close(
        solve(rows, tol=1e-12).W, torch.tensor(theirs.coef_), atol=1e-6, rtol=0.0
    )


def test_a_bad_row_leaves_the_others_bit_identical():
    _, _, rows = problem(rows=5)
    R = rows.gram.R.clone()
    R[2] = float("nan")
    spoilt = RowProblem(rows.gram.with_targets(R, rows.gram.t2), rows.penalty)
    mine, theirs = solve(rows), solve(spoilt)
    assert theirs.status[2] is Status.INVALID_INPUT
    others = [0, 1, 3, 4]
    assert torch.equal(mine.W[others], theirs.W[others])


def test_gap_bounds_the_suboptimality_of_a_stopped_solve():
    _, _, rows = problem("elastic", 0.4)
    best = solve(rows, tol=1e-12).objective
    for most in range(4):
        stopped = solve(rows, tol=0.0, max_iterations=most)
        assert (stopped.objective - best <= stopped.gap + 1e-12).all()
