"""Weights of low rank, certified, and the steps of ADMM that find them (Boyd et al. 2011)."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.solution import Status

LOOK = 10
"""Steps between two certificates, and two changes of ρ. Chosen: a certificate takes as long as two
or three steps."""

RELAXED = 1.6
"""Over-relaxation; 1.5 to 1.8 are usual (Boyd et al. 2011, section 3.4.3)."""

BALANCE = 3.0
"""Ratio of the relative residuals above which ρ moves by its root. Chosen."""

RANGE = 1e8
"""How far ρ may go from where it starts: residuals near rounding say nothing. Chosen."""

CHANGES = 8
"""Changes of ρ before it stays: with endless ones the steps need not converge (Boyd et al. 2011,
section 3.4.1), and did not for one problem in 200 of the tests'."""

State = tuple[Float[Tensor, "splits K n"], Float[Tensor, "splits K n"], float]
"""Z, multipliers and ρ."""


@dataclass(frozen=True, eq=False)
class Low:
    """Weights of low rank, certified.

    Attributes:
        A: Weights, in the ball.
        level: λ; 0 for weights within a given row space.
        objective: Loss and penalty of A.
        gap: Its duality gap.
        unit: Loss at A = 0, the unit of relative gaps.
        basis: Orthonormal basis of the row space of A.
        status: Why the solver stopped.
        iterations: Steps, of all levels on a path.
        state: Where another level goes on from: Z, multipliers and ρ.
    """

    A: Float[Tensor, "K n"]
    level: float
    objective: float
    gap: float
    unit: float
    basis: Float[Tensor, "n r"]
    status: Status
    iterations: int
    state: State

    @property
    def rank(self) -> int:
        """Singular values that are left."""
        return self.basis.shape[1]

    @property
    def relative_gap(self) -> float:
        """The gap, relative to the loss at A = 0; 0 where that is."""
        return self.gap / self.unit if self.unit > 0 else 0.0


@dataclass(frozen=True)
class Loop:
    """The steps, whatever is split off.

    Args:
        solve: X from ρ Z − Y, and ρ.
        step: Z from what it is to be near to, and ρ.
        certify: From X, Z and Y weights, their objective, and a bound on it.
        basis: Of the row space of the last Z.
        tol: Accepted gap, relative to the unit.
        unit: Loss at A = 0.
        scale: Where ρ starts.
    """

    solve: Callable[[Tensor, float], Tensor]
    step: Callable[[Tensor, float], Tensor]
    certify: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, float, float]]
    basis: Callable[[], Tensor]
    tol: float
    unit: float
    scale: float

    def run(self, level: float, most: int, state: State) -> Low:
        """Go on until the gap is closed.

        Args:
            level: λ.
            most: Steps.
            state: Z, multipliers and ρ.

        Returns:
            The best weights that were certified.
        """
        Z, Y, rho = state
        best, bound, kept, done, changes = inf, 0.0, (Z[0], self.basis()), 0, 0
        for done in range(1, most + 1):
            X = self.solve(rho * Z - Y, rho)
            W = RELAXED * X + (1 - RELAXED) * Z + Y / rho
            old, Z = Z, self.step(W, rho)
            Y = rho * (W - Z)
            if done % LOOK and done < most:
                continue
            A, objective, proved = self.certify(X, Z, Y)
            bound = max(bound, proved)
            if objective < best:
                best, kept = objective, (A, self.basis())
            if best - bound <= self.tol * self.unit:
                break
            if changes < CHANGES:
                before, rho = rho, self._balanced(rho, X - Z, rho * (Z - old).sum(0), Z, Y)
                changes += rho != before
        gap = max(best - bound, 0.0)
        solved = Status.SOLVED if gap <= self.tol * self.unit else Status.MAX_ITERATIONS
        return Low(kept[0], level, best, gap, self.unit, kept[1], solved, done, (Z, Y, rho))

    def _balanced(self, rho: float, primal: Tensor, dual: Tensor, Z: Tensor, Y: Tensor) -> float:
        tiny = torch.finfo(Z.dtype).tiny
        off = float(primal.norm()) / max(float(Z.norm()), tiny)
        moved = float(dual.norm()) / max(float(Y.norm()), tiny)
        if off == 0 or moved == 0 or 1 / BALANCE <= off / moved <= BALANCE:
            return rho
        factor = min(max((off / moved) ** 0.5, 0.1), 10.0)
        return min(max(rho * factor, self.scale / RANGE), self.scale * RANGE)
