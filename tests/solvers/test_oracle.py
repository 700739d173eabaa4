"""Against cvxpy and Clarabel, on rows sampled from a real design at reduced size.

The oracle solves all rows at once in cone form: the perspective as s·z ≥ v², 0 ≤ z ≤ 1 at the price
l0·z + (l2/2)·s, independent of the closed form the package uses. Its own accuracy is about 1e-8.
"""

import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from cases import LOSSES, generator, uniform
from certified import judge
from fista import Fista
from simplicit.convex.duality import Loss
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.solvers import Settings, solve

PENALTIES = {
    "l0+l2": dict(l0=0.005, l2=0.05),
    "l1": dict(l1=0.02),
    "elastic": dict(l1=0.01, l2=0.05),
    "ridge": dict(l2=0.1),
    "none": dict(),
}
ROWS, PIXELS, HIDDEN = 20, 16, 12


def digits() -> tuple[Tensor, Tensor]:
    """Features: some pixels and the hidden states of a random layer; targets: another layer's.

    Returns:
        (m, 28) and (m, 20).
    """
    images = torch.as_tensor(load_digits(return_X_y=True)[0][:300] / 16)
    draw = generator(0)
    alive = images.std(0).argsort(descending=True)[:PIXELS]
    weights = [
        torch.randn(a, b, dtype=torch.float64, generator=draw)
        for a, b in ((64, HIDDEN), (HIDDEN, ROWS))
    ]
    hidden = (images @ weights[0] / 8).relu()
    targets = hidden @ weights[1] / 3 + 0.2 * torch.randn(
        300, ROWS, dtype=torch.float64, generator=draw
    )
    return torch.cat([hidden, images[:, alive]], 1), targets


V, T = digits()
RHO = uniform(HIDDEN + PIXELS, seed=1, low=0.5, high=2)
OMEGA = uniform(HIDDEN, seed=2, low=0.5, high=2)


def oracle(penalty: dict[str, float], radius: float | None, loss: Loss) -> NDArray[np.float64]:
    """Weights of all rows, (20, 28)."""
    l0, l1, l2 = (penalty.get(name, 0.0) for name in ("l0", "l1", "l2"))
    m, N = V.shape
    # the triangular factor of [V T] has the same Gram matrix as the samples
    factor = np.linalg.qr(np.hstack([V.numpy(), T.numpy()]) / np.sqrt(m))[1]
    v, t = factor[:, :N], factor[:, N:]
    W = cp.Variable((ROWS, N))
    residual = t - v @ W.T
    scaled = cp.multiply(W, RHO.numpy()[None, :])
    if loss == "root":
        total = cp.sum(cp.norm(residual, 2, axis=0))
    else:
        total = cp.sum_squares(residual) / 2
    constraints = []
    if l1:
        total += l1 * cp.sum(cp.abs(scaled))
    if l0:
        s, z = cp.Variable(ROWS * N), cp.Variable(ROWS * N)
        flat = cp.vec(scaled, order="C")
        constraints += [cp.SOC(s + z, cp.vstack([2 * flat, s - z])), z >= 0, z <= 1]
        total += l0 * cp.sum(z) + l2 / 2 * cp.sum(s)
    elif l2:
        total += l2 / 2 * cp.sum_squares(scaled)
    if radius is not None:
        constraints.append(cp.abs(W[:, :HIDDEN]) @ OMEGA.numpy() <= radius)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": the comparison decides
        cp.Problem(cp.Minimize(total), constraints).solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
        )
    assert W.value is not None
    return W.value


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("radius", [None, 0.5], ids=["free", "ball"])
@pytest.mark.parametrize("name", PENALTIES)
def test_objective_is_that_of_clarabel(name, radius, loss):
    ball = None if radius is None else Ball(slice(0, HIDDEN), radius, OMEGA)
    problem = RowProblem(Gram.from_data(V, T), Penalty(**PENALTIES[name], scales=RHO), ball, loss)
    theirs = judge(problem, V, T, torch.as_tensor(oracle(PENALTIES[name], radius, loss)))
    mine = solve(problem, tol=1e-9)
    assert mine.solved.all(), [status.name for status in mine.status]
    verdict = judge(problem, V, T, mine.W)
    np.testing.assert_allclose(verdict.primal, theirs.primal, rtol=1e-6)
    # the reported bound holds against the oracle, which may be a little outside the ball
    assert ((mine.objective - mine.gap).numpy() <= theirs.primal * (1 + 1e-8)).all()
    if radius is not None:
        assert (verdict.norm >= 0.5 * (1 - 1e-6)).any() and (theirs.excess <= 1e-6).all()

    alone = Settings(methods=(Fista(),), newton_rounds=0)
    twin = solve(problem, tol=1e-5, max_iterations=3000, settings=alone)
    lower = (twin.objective - twin.gap).numpy()
    assert (lower <= theirs.primal * (1 + 1e-8)).all()
    assert (twin.objective.numpy() >= verdict.primal * (1 - 1e-8)).all()
    assert twin.solved.all(), [status.name for status in twin.status]
