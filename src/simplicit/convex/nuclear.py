"""Rows of low rank as a convex problem: the nuclear norm takes the place of the rank.

With least squares A* of all rows, G the Gram of what they read (all else projected out) and S how
errors of the rows weigh together,

    min_A  ½ tr(S E G E')  +  λ ‖A‖_*     s.t.  Σ_j ω_j |a_ij| ≤ radius_i,      E = A* − A.

‖·‖_* is the sum of the singular values, the largest convex function below the rank on matrices of
norm 1 (Fazel, 2002). With the ball's rows it is the low-rank problem of State-driven Implicit
Modeling (arXiv 2209.09389).

The dual point is s M with M = S E G, which is split into Y₁ + Y₂: Y₁ has spectral norm ≤ λ, the
dual ball of ‖·‖_*, and Y₂ costs radius_i max_j |y_ij| / ω_j a row. It proves

    optimum  ≥  s ⟨M, A*⟩ − ½ s² ⟨M, E⟩ − s Σ_i radius_i max_j |y_ij| / ω_j .
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.cholesky import factor, solve_factored
from simplicit.convex.prox import Separable


@dataclass(frozen=True, eq=False)
class NuclearProblem:
    """Rows that are to have a small nuclear norm together.

    Args:
        G: Gram of the features, positive definite, float64.
        R: Moments of targets and features.
        S: How errors of the rows weigh together, positive definite.
        omega: ω > 0 of each feature in the ball.
        radius: Of each row's ball; infinite in all rows where there is none.
    """

    G: Float[Tensor, "n n"]
    R: Float[Tensor, "K n"]
    S: Float[Tensor, "K K"]
    omega: Float[Tensor, " n"]
    radius: Float[Tensor, " K"]

    @cached_property
    def least_squares(self) -> Float[Tensor, "K n"]:
        """A*, with A* G = R."""
        return solve_factored(factor(self.G), self.R.T).T

    @cached_property
    def ball(self) -> Separable:
        """The ball of every row, without a penalty."""
        none = torch.zeros_like(self.radius)[:, None]
        ones = torch.ones_like(self.omega)
        return Separable(none, none, none, ones, self.omega, self.radius[:, None])

    @cached_property
    def unit(self) -> float:
        """Loss at A = 0, the unit of relative gaps: above that, nothing is explained."""
        return self.loss(torch.zeros_like(self.R))

    @cached_property
    def top(self) -> float:
        """The least level at which A = 0 is optimal."""
        return float(torch.linalg.matrix_norm(self.S @ self.R, 2))

    def moments(self, A: Float[Tensor, "K n"]) -> Float[Tensor, "K n"]:
        """Correlate features and errors: M = S E G, minus the loss' gradient.

        Args:
            A: Weights.

        Returns:
            M.
        """
        return self.S @ (self.R - A @ self.G)

    def loss(self, A: Float[Tensor, "K n"]) -> float:
        """Evaluate the loss that A adds to that of least squares.

        Args:
            A: Weights.

        Returns:
            ½ tr(S E G E'), never negative.
        """
        E = self.least_squares - A
        return max(0.5 * float((self.S @ E @ self.G * E).sum()), 0.0)

    def objective(self, A: Float[Tensor, "K n"], level: float) -> float:
        """Evaluate loss and penalty; the ball is not checked.

        Args:
            A: Weights.
            level: λ.

        Returns:
            The objective.
        """
        return self.loss(A) + level * float(torch.linalg.matrix_norm(A, "nuc"))

    def bound(self, A: Float[Tensor, "K n"], level: float, Y: Float[Tensor, "K n"]) -> float:
        """Bound the optimum from below at the errors of any weights.

        Args:
            A: Weights, which need not be in the ball.
            level: λ.
            Y: Guess of the ball's part Y₂ of the moments; any is valid, and 0 without a ball.

        Returns:
            A number that no weights in the ball have a smaller objective than.
        """
        M = self.moments(A)
        norm = float(torch.linalg.matrix_norm(M - Y, 2)) * (1 + 1e-12)
        most = min(level / norm, 1.0) if norm > 0 else 1.0
        return self._best(A, M, Y, most)

    def bound_within(
        self, A: Float[Tensor, "K n"], Y: Float[Tensor, "K n"], basis: Float[Tensor, "n r"]
    ) -> float:
        """Bound the loss of all weights U V' in the ball, at λ = 0.

        Args:
            A: Weights, at whose errors the bound is taken.
            Y: Guess of the ball's part of the moments. All of them that V sees has to be in it: it
                is mended where it is not. Every radius has to be finite.
            basis: V, orthonormal.

        Returns:
            A number that no weights of this row space in the ball have a smaller loss than.
        """
        M = self.moments(A)
        return self._best(A, M, Y + (M - Y) @ basis @ basis.T, 1.0)

    # the dual value is concave in s
    def _best(self, A: Tensor, M: Tensor, Y: Tensor, most: float) -> float:
        paid = 0.0
        if self.ball.has_ball:
            paid = float((self.radius * (Y.abs() / self.omega).amax(1)).sum())
        earned = float((M * self.least_squares).sum()) - paid
        curve = float((M * (self.least_squares - A)).sum())
        s = most if curve <= 0 else min(max(earned / curve, 0.0), most)
        return max(s * earned - 0.5 * s * s * curve, 0.0)
