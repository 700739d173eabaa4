"""Rows of low rank against known optima, a slow twin and cvxpy; bounds that nothing beats."""

from dataclasses import replace
from math import inf

import cvxpy as cp
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simplicit.convex.nuclear import NuclearProblem
from simplicit.convex.solution import Status
from simplicit.solvers.nuclear import solve_nuclear, solve_to_rank, solve_within
from simplicit.sparsity.low_rank import regress


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(radius: float = inf, K: int = 6, n: int = 8, seed: int = 0) -> NuclearProblem:
    """Rows that are far from independent; a radius is relative to that of least squares."""
    V = random(60, n, seed=seed) @ random(n, n, seed=seed + 1)
    T = V @ random(n, K, seed=seed + 2) + random(60, K, seed=seed + 3)
    g = random(30, K, seed=seed + 4) @ random(K, K, seed=seed + 5)
    omega = 0.5 + random(n, seed=seed + 6).abs()
    free = NuclearProblem(V.T @ V / 60, T.T @ V / 60, g.T @ g / 30, omega, random(K) * 0 + inf)
    norm = free.ball.ball_norm(free.least_squares)
    return replace(free, radius=radius * norm if radius < inf else free.radius)


def white(K: int = 6, n: int = 8) -> NuclearProblem:
    eye, ones = (lambda k: torch.eye(k, dtype=torch.float64)), torch.ones
    radius = 1e3 * ones(K, dtype=torch.float64)
    return NuclearProblem(eye(n), random(K, n), eye(K), ones(n, dtype=torch.float64), radius)


@pytest.mark.parametrize("share", [0.9, 0.4, 0.05])
@pytest.mark.parametrize("ball", [True, False])
def test_white_features_give_the_soft_thresholded_decomposition(share, ball):
    problem = white() if ball else replace(white(), radius=torch.full((6,), inf).double())
    level = share * problem.top
    P, values, Q = torch.linalg.svd(problem.R, full_matrices=False)
    exact = (P * (values - level).clamp_min(0)) @ Q
    found = solve_nuclear(problem, level, tol=1e-12)
    torch.testing.assert_close(found.A, exact, rtol=1e-4, atol=1e-5)
    assert found.rank == int((values > level).sum())
    assert 0 <= found.gap <= 1e-12 * found.unit


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([inf, 1.5, 0.7, 0.2]), st.sampled_from([0.5, 0.1, 0.01])
)
def test_gaps_close_and_no_weights_beat_the_bound(seed, radius, share):
    problem = rows(radius, seed=seed)
    found = solve_nuclear(problem, share * problem.top, tol=1e-6)
    assert found.status is Status.SOLVED and 0 <= found.gap <= 1e-6 * found.unit
    assert found.objective == pytest.approx(problem.objective(found.A, found.level), rel=1e-9)
    assert (problem.ball.ball_norm(found.A) <= problem.radius * (1 + 1e-12)).all()
    assert int((torch.linalg.svdvals(found.A) > 1e-9 * problem.top).sum()) <= found.rank
    bound = found.objective - found.gap
    for k in range(20):
        size = 10.0 ** -(k % 5)
        other = problem.ball.into_ball(found.A + size * random(6, 8, seed=seed + 50 + k))
        assert problem.objective(other, found.level) >= bound - 1e-12 * found.unit


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 2.0), st.floats(1e-3, 3.0))
def test_any_errors_and_any_part_of_the_ball_give_a_bound(seed, size, share):
    problem = rows(0.5, seed=seed)
    best = solve_nuclear(problem, 0.1 * problem.top, tol=1e-8)
    A, Y = size * random(6, 8, seed=seed + 9), share * problem.top * random(6, 8, seed=seed + 10)
    bound = problem.bound(best.A + A, best.level, Y)
    assert bound <= best.objective * (1 + 1e-12)
    within = solve_within(problem, best.basis, tol=1e-8)
    other = problem.bound_within(best.A + A, Y, best.basis)
    assert other <= within.objective * (1 + 1e-12)


@pytest.mark.parametrize(("radius", "share"), [(0.6, 0.1), (0.2, 0.02), (inf, 0.1)])
def test_it_is_the_optimum_of_an_interior_point_method(radius, share):
    problem = rows(radius)
    level = share * problem.top
    A = cp.Variable((6, 8))
    left = torch.linalg.cholesky(problem.S).T.numpy()
    right = torch.linalg.cholesky(problem.G).numpy()
    E = problem.least_squares.numpy() - A
    loss = 0.5 * cp.sum_squares(left @ E @ right) + level * cp.normNuc(A)
    ball = [cp.abs(A) @ problem.omega.numpy() <= problem.radius.numpy()] * (radius < inf)
    cp.Problem(cp.Minimize(loss), ball).solve(solver=cp.CLARABEL)
    found = solve_nuclear(problem, level, tol=1e-7)
    assert found.objective == pytest.approx(float(loss.value), rel=1e-5)
    assert found.objective - found.gap <= float(loss.value) * (1 + 1e-6)


def test_long_proximal_gradient_finds_no_less():
    problem = rows()
    level = 0.05 * problem.top
    step = 1 / float(
        torch.linalg.matrix_norm(problem.G, 2) * torch.linalg.matrix_norm(problem.S, 2)
    )
    A = torch.zeros_like(problem.R)
    for _ in range(20_000):
        P, s, Q = torch.linalg.svd(A + step * problem.moments(A), full_matrices=False)
        A = (P * (s - step * level).clamp_min(0)) @ Q
    found, slow = solve_nuclear(problem, level, tol=1e-8), problem.objective(A, level)
    assert found.objective - found.gap <= slow
    assert found.objective <= slow + found.gap


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("radius", [inf, 1.2, 0.3])
def test_the_least_level_of_a_rank(rank, radius):
    problem = rows(radius)
    found = solve_to_rank(problem, rank)
    assert 0 < found.rank <= rank and found.status is Status.SOLVED
    lower = solve_nuclear(problem, found.level / 1.2, tol=1e-6)
    assert lower.rank > rank or found.level < 2e-5 * problem.top


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([5.0, 0.7, 0.2]), st.integers(1, 5))
@example(26, 0.2, 2)  # ρ went to and fro without end
@example(47, 0.2, 5)  # slow: 2,640 steps
def test_the_best_weights_of_a_row_space(seed, radius, rank):
    problem = rows(radius, seed=seed)
    regression = regress(problem.G, problem.R, problem.S)
    V = torch.linalg.qr(regression.right[:rank].T).Q
    found = solve_within(problem, V, tol=1e-7)
    assert found.status is Status.SOLVED and 0 <= found.gap <= 1e-7 * found.unit
    torch.testing.assert_close(found.A @ V @ V.T, found.A)
    assert (problem.ball.ball_norm(found.A) <= problem.radius * (1 + 1e-12)).all()
    # no weights of that rank have less, by the theorem of Eckart and Young
    assert found.objective >= float(regression.excess[rank]) - 1e-9 * found.unit
    if radius > 1:
        return
    bound = found.objective - found.gap
    for k in range(10):
        other = found.A + 10.0 ** -(k % 4) * random(6, rank, seed=seed + k) @ V.T
        assert problem.loss(problem.ball.into_ball(other)) >= bound


def test_without_a_ball_in_the_way_a_row_space_has_the_regression():
    problem = rows(50.0)
    regression = regress(problem.G, problem.R, problem.S)
    V = torch.linalg.qr(regression.right[:2].T).Q
    found = solve_within(problem, V, tol=1e-9)
    torch.testing.assert_close(found.A, regression.weights(2), rtol=1e-3, atol=1e-3)


def test_nothing_to_match_gives_nothing():
    problem = replace(rows(0.5), R=torch.zeros(6, 8, dtype=torch.float64))
    found = solve_to_rank(problem, 2)
    assert found.rank == 0 and not found.A.any() and found.gap == 0 and found.relative_gap == 0


def test_at_the_highest_level_nothing_is_left_and_just_below_something_is():
    problem = rows(0.5)
    assert solve_nuclear(problem, problem.top * 1.001).rank == 0
    assert solve_nuclear(problem, problem.top * 0.95, tol=1e-8).rank >= 1


def test_steps_that_run_out_are_said_and_their_gap_is_true():
    problem = rows(0.3)
    best = solve_nuclear(problem, 0.02 * problem.top, tol=1e-8)
    rough = solve_nuclear(problem, 0.02 * problem.top, tol=1e-8, max_iterations=3)
    assert rough.status is Status.MAX_ITERATIONS
    assert rough.objective - rough.gap <= best.objective <= rough.objective + best.gap


def test_the_better_row_space_depends_on_the_ball():
    found = {}
    for radius in (50.0, 0.1):
        problem = rows(radius, K=12, n=16)
        regression = torch.linalg.qr(regress(problem.G, problem.R, problem.S).right[:6].T).Q
        spaces = solve_to_rank(problem, 6).basis, regression
        found[radius] = [solve_within(problem, V, tol=1e-5).objective for V in spaces]
    assert found[50.0][1] < found[50.0][0] and found[0.1][0] < found[0.1][1]
