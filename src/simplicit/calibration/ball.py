"""The l1 ball of a row: which features are in it, with which weights, and its radius.

`states` bounds Σ_j ω_j |a_ij| ≤ κ ω_i / L_i, which is ‖A‖∞,ω ≤ κ (arXiv 2209.09389). `row` has the
inputs in the ball too, Σ_j ω_j |a_ij| + Σ_j |b_ij| ≤ κ ω_i / L_i (Tsai, Gao, El Ghaoui, PMLR v260):
the smaller κ, the sparser the row.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.structure import RowBlock
from simplicit.convex.penalty import Ball
from simplicit.equations.network import StateEquations
from simplicit.model.certificate import nilpotent_weights

Constraint = Literal["states", "row"]


class RowConstraint:
    """The ball of every row of [A B], in weights in which the teacher fits.

    For a homogeneous φ the weights are the papers' rescaling of the teacher, exactly: A' = Ω⁻¹ A Ω.

    Args:
        equations: The teacher.
        kind: `states`: ω such that the teacher's own A has ‖A‖∞,ω < κ. `row`: ω such that each of
            the teacher's rows has norm 1, so that κ is the part of it that is left.
        kappa: κ in (0, 1).

    Attributes:
        omega: ω, (n,), float64, on the CPU.
    """

    def __init__(self, equations: StateEquations, kind: Constraint, kappa: float) -> None:
        A, B, *_ = equations.dense()
        slopes = [e.phi.lipschitz for e in reversed(equations.hidden) for _ in range(e.size)]
        lipschitz, kappa = torch.tensor(slopes, dtype=torch.float64), kappa
        if kind == "states":
            self.omega = nilpotent_weights(A.cpu(), lipschitz, kappa)
            inputs = torch.zeros(equations.p, dtype=torch.float64)
        else:
            self.omega = _unit_rows(A.cpu(), B.cpu(), lipschitz)
            inputs = torch.ones(equations.p, dtype=torch.float64)
        # the bias, which comes last in V = [X U 1], is never in the ball
        self._weights = torch.cat([self.omega, inputs, torch.zeros(1, dtype=torch.float64)])
        self._radius = kappa * self.omega / lipschitz

    def ball(self, block: RowBlock) -> Ball:
        """Write the ball of a block of states.

        Args:
            block: Rows of [A B b].

        Returns:
            The ball over the block's own columns.
        """
        weights = self._weights.to(block.columns.device)[block.columns]
        inside = (weights > 0).nonzero()[:, 0]
        return Ball(inside, self._radius[block.rows].to(weights), weights[inside])


# ω with L_i (Σ_j |a_ij| ω_j + Σ_j |b_ij|) = ω_i; 1 where the teacher's row is empty
def _unit_rows(
    A: Float[Tensor, "n n"], B: Float[Tensor, "n p"], lipschitz: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    M = lipschitz[:, None] * A.abs()
    inputs = lipschitz * B.abs().sum(1)
    inputs = torch.where((M.sum(1) == 0) & (inputs == 0), 1.0, inputs)
    eye = torch.eye(len(A), dtype=A.dtype)
    return torch.linalg.solve_triangular(eye - M, inputs[:, None], upper=True)[:, 0]
