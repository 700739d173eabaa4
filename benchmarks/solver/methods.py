"""One function per method: it lays out the data as that method likes, and returns what is timed.

What is timed returns weights (k, N) of the first k rows. Each method is called at its best: given
the Gram where it takes one, no copies, no checks, no intercept.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from problems import Rows

from simplicit.convex.problem import RowProblem
from simplicit.solvers import solve

Timed = Callable[[], np.ndarray]


def ours(rows: Rows, problem: RowProblem, tol: float, k: int) -> Timed:
    return lambda: solve(problem, tol=tol, workers=1).W.numpy()


def scikit_learn(rows: Rows, problem: RowProblem, tol: float, k: int) -> Timed:
    from sklearn.linear_model import lasso_path

    gram, m = problem.gram, problem.gram.m
    X, G, R = rows.V.numpy(), gram.G.numpy() * m, gram.R.numpy() * m
    W, y, l1 = np.empty((k, X.shape[1])), np.zeros(m), problem.penalty.l1.tolist()

    def timed() -> np.ndarray:
        for i in range(k):
            y[0] = float(gram.t2[i] * m) ** 0.5  # only its norm is used: the unit of tol
            W[i] = lasso_path(
                X,
                y,
                alphas=[l1[i]],
                precompute=G,
                Xy=R[i],
                check_input=False,
                copy_X=False,
                tol=tol,
                max_iter=100_000,
            )[1][:, 0]
        return W

    return timed


def celer(rows: Rows, problem: RowProblem, tol: float, k: int) -> Timed:
    from celer import Lasso

    return _fit(Lasso, rows, problem, tol, k)


def skglm(rows: Rows, problem: RowProblem, tol: float, k: int) -> Timed:
    from skglm import Lasso

    return _fit(Lasso, rows, problem, tol, k)


def _fit(Lasso, rows: Rows, problem: RowProblem, tol: float, k: int) -> Timed:
    X, T = np.asfortranarray(rows.V.numpy()), np.asfortranarray(rows.T.numpy())
    models = [
        Lasso(alpha=l1, fit_intercept=False, tol=tol, max_iter=500)
        for l1 in problem.penalty.l1[:k].tolist()
    ]
    return lambda: np.stack([model.fit(X, T[:, i]).coef_ for i, model in enumerate(models)])


def adelie(rows: Rows, problem: RowProblem, tol: float, k: int) -> Timed:
    from adelie.solver import gaussian_cov

    G, R = np.asfortranarray(problem.gram.G.numpy()), problem.gram.R.numpy()
    W, l1 = np.empty((k, len(G))), problem.penalty.l1.numpy()

    def timed() -> np.ndarray:
        for i in range(k):
            state = gaussian_cov(
                G, R[i], lmda_path=l1[i : i + 1], early_exit=False, progress_bar=False, tol=tol
            )
            W[i] = state.betas.toarray()[-1] if state.betas.shape[0] else 0.0
        return W

    return timed


def clarabel(rows: Rows, problem: RowProblem, tol: float, k: int) -> Timed:
    """The vectorised conic model, on a square root of the Gram (N, N) instead of the samples."""
    import cvxpy as cp

    gram, p = problem.gram, problem.penalty
    values, vectors = torch.linalg.eigh(gram.G)
    root = values.clamp_min(1e-14 * values.max()).sqrt()
    F = (vectors * root).T.numpy()
    N = len(F)

    def row(i: int) -> np.ndarray:
        h = ((gram.R[i] @ vectors) / root).numpy()
        rest = float((gram.t2[i] - torch.as_tensor(h).square().sum()).clamp_min(0))
        w, l1, l0, l2 = cp.Variable(N), *(_row(x, i) for x in (p.l1, p.l0, p.l2))
        residual = F @ w - h
        if problem.loss == "root":
            loss = cp.norm2(cp.hstack([residual, rest**0.5]))
        else:
            loss = 0.5 * cp.sum_squares(residual)
        penalty, constraints = l1 * cp.norm1(w), []
        if l0 > 0:
            z, s = cp.Variable(N), cp.Variable(N)
            constraints = [z <= 1, cp.SOC(s + z, cp.vstack([2 * w, s - z]), axis=0)]
            penalty = penalty + l0 * cp.sum(z) + 0.5 * l2 * cp.sum(s)
        if problem.ball is not None:
            constraints.append(cp.norm1(w) <= _row(problem.ball.radius, i))
        model = cp.Problem(cp.Minimize(loss + penalty), constraints)
        model.solve(
            solver=cp.CLARABEL, tol_gap_rel=tol, tol_gap_abs=tol, tol_feas=tol, max_threads=1
        )
        v = np.asarray(w.value)
        if problem.ball is not None:
            v = v * min(1.0, _row(problem.ball.radius, i) / np.abs(v).sum() * (1 - 1e-12))
        return v

    return lambda: np.stack([row(i) for i in range(k)])


def _row(value, i: int) -> float:
    return float(value[i]) if isinstance(value, torch.Tensor) and value.ndim else float(value)


def torchidl(rows: Rows, problem: RowProblem, tol: float, k: int) -> Timed:
    """The papers' authors' ADMM; its penalty is one number and its epochs take the place of tol."""
    from torchidl.sim.solvers.admm_consensus import ADMM_CD

    K, m = len(problem.gram.R), problem.gram.m
    level = float(problem.penalty.l1.mean()) * m
    V, T = rows.V.float(), rows.T.float()

    def timed() -> np.ndarray:
        admm = ADMM_CD(V.shape[1], K, 10.0, level, device="cpu")
        for _ in range(int(tol)):
            admm.step(V, T)
        return admm.CD.T.double().numpy()

    return timed


LASSO = {
    # name: (function, rows, loosest tolerance, factor to the next)
    "simplicit": (ours, None, 1e-2, 0.1),
    "scikit-learn (Gram)": (scikit_learn, None, 1e-3, 0.6),
    "adelie (Gram)": (adelie, 2, 1e-5, 0.2),
    "celer": (celer, 1, 1e-3, 0.4),
    "skglm": (skglm, 1, 1e-3, 0.4),
    "cvxpy + Clarabel": (clarabel, 1, 1e-4, 0.2),
    "torchidl ADMM": (torchidl, None, 20, 5),  # epochs
}
STEPS = 20
"""Most tolerances of a method."""

OTHERS = {name: LASSO[name] for name in ("simplicit", "cvxpy + Clarabel")}

warnings.simplefilter("ignore")
