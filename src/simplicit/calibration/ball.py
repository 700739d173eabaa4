"""The l1 ball of a row: which features are in it, with which weights, and its radius.

`states` bounds Σ_j ω_j |a_ij| ≤ κ ω_i / L_i, which is ‖A‖∞,ω ≤ κ (arXiv 2209.09389). `row` has the
inputs in the ball too, Σ_j ω_j |a_ij| + Σ_j |b_ij| ≤ κ ω_i / L_i (Tsai, Gao, El Ghaoui, PMLR v260):
the smaller κ, the sparser the row.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.rows import Rows
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
        self._inputs = inputs
        self._radius = kappa * self.omega / lipschitz
        self._places = equations.slices

    def ball(self, rows: Rows, equations: StateEquations, free: int) -> Ball | None:
        """Write the ball of the rows of a hidden equation.

        Args:
            rows: The rows, of one position.
            equations: The network in the structure that is solved.
            free: Features behind those of the equation, which are never in the ball: the bias.

        Returns:
            The ball over the rows' own features; None for outputs.
        """
        if rows.index == len(equations.hidden):
            return None
        everything = [slice(0, len(self.omega))] if equations.feedback else self._places
        equation = equations.layers[rows.index]
        sizes = tuple(
            replace(t, fixed=t.fixed and t.fixed.absolute(), offset=None) for t in equation.terms
        )
        like = equations.like
        sources = [self.omega[place].to(like.device)[None] for place in everything]
        weights = rows.features(
            replace(equation, terms=sizes), [*sources, self._inputs.to(like.device)[None]]
        )[0, 0]
        weights = torch.cat([weights, weights.new_zeros(free)])
        inside = (weights > 0).nonzero()[:, 0]
        radius = self._radius[everything[rows.index]].to(weights)
        return Ball(inside, radius, weights[inside])


# ω with L_i (Σ_j |a_ij| ω_j + Σ_j |b_ij|) = ω_i; 1 where the teacher's row is empty
def _unit_rows(
    A: Float[Tensor, "n n"], B: Float[Tensor, "n p"], lipschitz: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    M = lipschitz[:, None] * A.abs()
    inputs = lipschitz * B.abs().sum(1)
    inputs = torch.where((M.sum(1) == 0) & (inputs == 0), 1.0, inputs)
    eye = torch.eye(len(A), dtype=A.dtype)
    return torch.linalg.solve_triangular(eye - M, inputs[:, None], upper=True)[:, 0]
