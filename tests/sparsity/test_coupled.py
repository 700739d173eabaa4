import pytest
import torch

from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Penalty
from simplicit.convex.problem import RowProblem
from simplicit.sparsity import coupled
from simplicit.sparsity.choice import choose, refit_near
from simplicit.sparsity.coupled import DAMPING, refit_coupled, shifted


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(K=6, N=12):
    V, teacher = random(200, N) @ random(N, N, seed=1), random(K, N, seed=2)
    target = V @ teacher.T + 0.1 * random(200, K, seed=3)
    problem = RowProblem(Gram.from_data(V, target), Penalty())
    g = random(50, K, seed=4) @ random(K, K, seed=5)
    return problem, torch.zeros_like(problem.gram.R), g.T @ g / 50


def loss(problem, W, S):
    """tr(S E G E') up to a constant, S damped as it is solved."""
    S = S + DAMPING * S.diagonal().diag()
    return float((S * (W @ problem.gram.G @ W.T - 2 * W @ problem.gram.R.T)).sum())


def test_rows_that_make_up_for_each_other_are_better_together(monkeypatch):
    problem, anchor, S = rows()
    W = choose(problem, [4] * len(S), anchor=anchor)
    once = refit_coupled(problem, W, S)
    assert loss(problem, once, S) < loss(problem, W, S)
    assert torch.equal(once != 0, W != 0)
    monkeypatch.setattr(coupled, "SWEEPS", 500)
    best = refit_coupled(problem, W, S)
    damped = S + DAMPING * S.diagonal().diag()
    slope = damped @ (problem.gram.R - best @ problem.gram.G)
    assert slope[W != 0].abs().max() < 1e-4 * (damped @ problem.gram.R).abs().max()


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
