"""The solver as a scikit-learn regressor: many targets at once, each with its duality gap."""

import warnings
from typing import Any, no_type_check

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from simplicit.convex.duality import Loss
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem
from simplicit.solvers import solve


class CertifiedLasso(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Linear regression with l0 (perspective), l1 and l2 penalties, certified target by target.

    Each column t of y is a row problem of `simplicit.RowProblem` of its own,

        min  1/(2m) ‖t − X w − b‖²  +  Σ_j [l1 |w_j| + perspective(l0, l2)(w_j)],

    with only `l1` the objective of `sklearn.linear_model.Lasso(alpha=l1)`, with l1 and l2 that of
    `ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2))`. All columns share one Gram matrix.

    Args:
        l0: Price of a non-zero weight, by the perspective relaxation; needs l2 > 0.
        l1: Weight of |w|.
        l2: Weight of w²/2.
        radius: Bound on ‖w‖₁ of every target; None for none.
        loss: `squared`, or `root` for the root mean square residual instead of half its square.
        fit_intercept: Whether to add b, which is not penalised.
        tol: Duality gap, relative to the objective of w = 0, at which a target is solved.
        max_iter: Cap on iterations per target.

    Attributes:
        coef_: Weights, (n_features,) or (n_targets, n_features).
        intercept_: b, a number or (n_targets,).
        dual_gap_: Upper bound on the objective's distance from the optimum, a number or
            (n_targets,).
        n_iter_: Largest number of iterations of a target.
        n_features_in_: Columns of X.
    """

    # scikit-learn sets parameters to anything and expects `fit` to complain
    @no_type_check
    def __init__(
        self,
        l0: float = 0.0,
        l1: float = 1.0,
        l2: float = 0.0,
        *,
        radius: float | None = None,
        loss: Loss = "squared",
        fit_intercept: bool = True,
        tol: float = 1e-4,
        max_iter: int = 2000,
    ) -> None:
        self.l0 = l0
        self.l1 = l1
        self.l2 = l2
        self.radius = radius
        self.loss: Loss = loss
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> "CertifiedLasso":
        """Solve all targets.

        Args:
            X: Samples, anything scikit-learn takes as an array, (m, n_features).
            y: Targets, (m,) or (m, n_targets).

        Returns:
            The estimator.
        """
        checked: Any = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, order="C"
        )
        features, targets = (torch.from_numpy(np.array(a, dtype=np.float64)) for a in checked)
        single = targets.ndim == 1
        targets = targets[:, None] if single else targets
        centre, level = features.mean(0), targets.mean(0)
        if self.fit_intercept:
            # around the means the best b is 0 whatever w is
            features, targets = features - centre, targets - level
        ball = None if self.radius is None else Ball(slice(None), self.radius)
        penalty = Penalty(self.l0, self.l1, self.l2)
        problem = RowProblem(Gram.from_data(features, targets), penalty, ball, self.loss)
        solution = solve(problem, tol=self.tol, max_iterations=self.max_iter)
        if not bool(solution.solved.all()):
            open_targets = int((~solution.solved).sum())
            warnings.warn(
                f"{open_targets} of {len(solution.status)} targets not solved to tol={self.tol}: "
                "raise max_iter or tol; dual_gap_ says how far they can be from the optimum",
                ConvergenceWarning,
                stacklevel=2,
            )
        coef = solution.W
        intercept = level - coef @ centre if self.fit_intercept else 0 * level
        self.coef_: NDArray[np.float64] = (coef[0] if single else coef).numpy()
        self.intercept_ = float(intercept[0]) if single else intercept.numpy()
        self.dual_gap_ = float(solution.gap[0]) if single else solution.gap.numpy()
        # scikit-learn's convention: at least 1
        self.n_iter_ = max(1, int(solution.iterations.max()))
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Evaluate X w + b.

        Args:
            X: Samples, anything scikit-learn takes as an array, (m, n_features).

        Returns:
            Predictions, (m,) or (m, n_targets).
        """
        check_is_fitted(self)
        samples: Any = validate_data(self, X, reset=False, dtype=np.float64)
        return samples @ self.coef_.T + self.intercept_
