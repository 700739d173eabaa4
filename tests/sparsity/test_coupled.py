from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.sparsity import coupled
from simplicit.sparsity.choice import choose
from simplicit.sparsity.coupled import DAMPING, SWEEPS, refit_coupled, shifted
from simplicit.sparsity.near import refit_near


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(K=6, N=12, seed=0):
    V = random(200, N, seed=seed) @ random(N, N, seed=seed + 1)
    target = V @ random(K, N, seed=seed + 2).T + 0.1 * random(200, K, seed=seed + 3)
    problem = RowProblem(Gram.from_data(V, target), Penalty())
    g = random(50, K, seed=seed + 4) @ random(K, K, seed=seed + 5)
    return problem, torch.zeros_like(problem.gram.R), g.T @ g / 50


def loss(problem, W, S):
    """tr(S E G E') up to a constant, S damped as it is solved."""
    S = S + DAMPING * S.diagonal().diag()
    return float((S * (W @ problem.gram.G @ W.T - 2 * W @ problem.gram.R.T)).sum())


@pytest.mark.parametrize("K", [6, 21])
def test_rows_that_make_up_for_each_other_are_better_together(K):
    problem, anchor, S = rows(K)
    W = choose(problem, [4] * len(S), anchor=anchor)
    once = refit_coupled(problem, W, S)
    assert loss(problem, once, S) < loss(problem, W, S)
    assert torch.equal(once != 0, W != 0)
    best = once
    for _ in range(170):
        best = refit_coupled(problem, best, S)
    damped = S + DAMPING * S.diagonal().diag()
    slope = damped @ (problem.gram.R - best @ problem.gram.G)
    assert slope[W != 0].abs().max() < 1e-4 * (damped @ problem.gram.R).abs().max()


@pytest.mark.parametrize("K", [5, 16, 40])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_come_as_near_to_the_minimum_as_one_row_at_a_time(K, seed):
    problem, anchor, S = rows(K, 20, seed)
    first = choose(problem, [6] * K, anchor=anchor)
    G, damped = problem.gram.G, S + DAMPING * S.diagonal().diag()

    def one_by_one(sweeps):
        W = first.clone()
        for i in [*range(K)] * sweeps:
            c = (W[i] != 0).nonzero()[:, 0]
            wanted = damped[i] @ (problem.gram.R - W @ G) / damped[i, i]
            W[i, c] += torch.linalg.solve(G[c][:, c], wanted[c])
        return loss(problem, W, S)

    start, best = loss(problem, first, S), one_by_one(60)
    found = loss(problem, refit_coupled(problem, first, S), S)
    assert found - best <= one_by_one(SWEEPS) - best + 0.02 * (start - best)


def test_shifted_targets_are_what_a_row_should_do_given_the_others():
    problem, anchor, S = rows()
    W = choose(problem, [4] * len(S), anchor=anchor)
    gram = shifted(problem.gram, W, S)
    damped = S + DAMPING * S.diagonal().diag()
    for i, best in enumerate(torch.linalg.solve(gram.G, gram.R.T).T):
        moved = W.clone()
        moved[i] = best
        slope = damped[i] @ (problem.gram.R - moved @ problem.gram.G)
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-8)


@pytest.mark.parametrize("S", [torch.eye(6), torch.zeros(6, 6)])
def test_rows_that_nothing_couples_stay_by_themselves(S):
    problem, anchor, _ = rows()
    W = choose(problem, [4] * 6, anchor=anchor)
    near = refit_near(problem, W != 0, anchor)
    torch.testing.assert_close(refit_coupled(problem, W, S), near, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shifted(problem.gram, W, S).R, problem.gram.R)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_a_round_never_raises_what_the_outputs_feel(seed):
    problem, anchor, S = rows(K=6 + seed % 13, seed=seed)
    S = S * (torch.rand(len(S), generator=torch.Generator().manual_seed(seed)) < 0.8)[:, None]
    S = (S + S.T) / 2 + S.diagonal().diag()
    S = S @ S.T
    W = choose(problem, [3] * len(S), anchor=anchor)
    before = loss(problem, W, S)
    for _ in range(3):
        W = refit_coupled(problem, W, S)
        after = loss(problem, W, S)
        assert after <= before + 1e-9 * abs(before)
        before = after


@pytest.mark.parametrize("seed", range(4))
def test_directions_of_which_the_data_say_nothing_do_not_grow(seed):
    """Rounding of products in float32 leaves their curvature a little below zero, or above."""
    K, N = 6, 40
    V = random(200, 5, seed=seed) @ random(5, N, seed=seed + 1) * random(N, seed=seed + 2).exp()
    target = V @ random(K, N, seed=seed + 3).T
    exact = Gram.from_data(V, target)
    scale = exact.G.diagonal().sqrt()
    noise = 3e-7 * random(N, N, seed=seed + 4) * scale * scale[:, None]
    moments = exact.R + 3e-7 * random(K, N, seed=seed + 5) * scale * exact.t2.sqrt()[:, None]
    gram = Gram.of(exact.G + (noise + noise.T) / 2, moments, exact.t2, exact.m)
    assert float(torch.linalg.eigvalsh(gram.G / scale / scale[:, None])[0]) < -1e-7
    problem, g = RowProblem(gram, Penalty()), random(50, K, seed=seed + 6)
    start = W = random(K, N, seed=seed + 7)
    for _ in range(6):
        W = refit_coupled(problem, W, g.T @ g / 50)
    assert float((scale * (W - start)).norm()) < 10 * float((scale * start).norm())
    error = (target - V @ W.T).square().mean(0)
    assert float((error / exact.t2).max()) < 1e-5


def test_threads_leave_the_bits_as_they_are(monkeypatch):
    problem, anchor, S = rows(K=21)
    W = choose(problem, [5] * 21, anchor=anchor)
    alone = refit_coupled(problem, W, S)
    monkeypatch.setattr(coupled, "SIDE", 0.0)
    with ThreadPoolExecutor(3) as executor:
        assert torch.equal(refit_coupled(problem, W, S, executor), alone)


def test_factors_that_are_not_kept_are_made_for_one_sweep(monkeypatch):
    problem, anchor, S = rows(K=21)
    W = choose(problem, [5] * 21, anchor=anchor)
    monkeypatch.setattr(coupled, "SWEEPS", 1)
    once = refit_coupled(problem, W, S)
    monkeypatch.undo()
    monkeypatch.setattr(coupled, "KEPT", 0)
    assert torch.equal(refit_coupled(problem, W, S), once)
