"""ADMM for rows of low rank: singular values are thresholded, rows are projected into their balls.

    min  loss(X) + λ ‖Z₁‖_* + ball(Z₂)     s.t.  X = Z₁,  X = Z₂

(Boyd et al. 2011; Cai, Candès & Shen 2010 for the thresholding). X solves S X G + 2ρ X = B in the
eigenvectors of S and G, which are found once, so that ρ may change at no cost. Z₁ has the rank, and
a row that is shrunk into its ball keeps it: that is what is returned and certified.
"""

import time
from dataclasses import replace
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.nuclear import NuclearProblem
from simplicit.solvers.low import Loop, Low

MAX_STEPS = 10_000
"""Most steps at one level; 20 to 200 are usual on Fashion-MNIST, with relative gaps of 1e-4."""

LEAST = 1e-5
"""Least level of a path, relative to the one at which nothing is left. Chosen."""

CLOSE = 1.05
"""Ratio of the two levels around the wanted rank at which a path ends. Chosen."""


class Systems:
    """Solves S X V'GV + ρ X = B for any ρ.

    Args:
        problem: Rows.
        basis: V, orthonormal; the identity when omitted.

    Attributes:
        scale: Mean eigenvalue, where ρ starts.
    """

    def __init__(self, problem: NuclearProblem, basis: Float[Tensor, "n r"] | None = None) -> None:
        G = problem.G if basis is None else basis.T @ problem.G @ basis
        s, self._left = torch.linalg.eigh(problem.S)
        g, self._right = torch.linalg.eigh(G)
        self._values = s.clamp_min(0)[:, None] * g.clamp_min(0)
        self.scale = float(self._values.mean()) or 1.0

    def solve(self, B: Float[Tensor, "K r"], rho: float) -> Float[Tensor, "K r"]:
        """Solve for X.

        Args:
            B: Right-hand side.
            rho: ρ.

        Returns:
            X.
        """
        inner = self._left.T @ B @ self._right
        return self._left @ (inner / (self._values + rho)) @ self._right.T


def solve_nuclear(
    problem: NuclearProblem,
    level: float,
    tol: float = 1e-4,
    max_iterations: int = MAX_STEPS,
    start: Low | None = None,
    systems: Systems | None = None,
) -> Low:
    """Solve at one level.

    Args:
        problem: Rows; without a ball where every radius is infinite.
        level: λ > 0.
        tol: Accepted gap, relative to the loss at A = 0.
        max_iterations: Most steps.
        start: Solution at another level of the same problem.
        systems: Of the same problem, which saves its eigenvectors on a path.

    Returns:
        The solution, with its gap in any case.
    """
    systems = systems or Systems(problem)
    target, balls = problem.S @ problem.R, _Balls(problem)
    many = 1 + problem.ball.has_ball
    basis = target.new_zeros(target.shape[1], 0)

    def step(W: Tensor, rho: float) -> Tensor:
        nonlocal basis
        U, s, Vh = torch.linalg.svd(W[0], full_matrices=False)
        s = s - level / rho
        kept = int((s > 0).sum())
        basis = Vh[:kept].T
        low = (U[:, :kept] * s[:kept]) @ Vh[:kept]
        return torch.stack([low] if many == 1 else [low, balls(W[1])])

    def certify(X: Tensor, Z: Tensor, Y: Tensor) -> tuple[Tensor, float, float]:
        A = problem.ball.into_ball(Z[0])
        own = Y[1] if many == 2 else torch.zeros_like(A)
        bound = max(problem.bound(X, level, own), problem.bound(A, level, own))
        return A, problem.objective(A, level), bound

    loop = Loop(
        lambda B, rho: systems.solve(target + B.sum(0), many * rho),
        step,
        certify,
        lambda: basis,
        tol,
        problem.unit,
        systems.scale,
    )
    none = torch.zeros(many, *target.shape).to(target)
    return loop.run(level, max_iterations, start.state if start else (none, none, systems.scale))


def solve_within(
    problem: NuclearProblem,
    basis: Float[Tensor, "n r"],
    tol: float = 1e-4,
    max_iterations: int = MAX_STEPS,
) -> Low:
    """Minimise the loss over all weights of a row space that are in the ball.

    Args:
        problem: Rows, every radius finite.
        basis: V, orthonormal; A = U V'.
        tol: Accepted gap, relative to the loss at A = 0.
        max_iterations: Most steps.

    Returns:
        The solution, with its gap in any case.
    """
    systems, target, balls = Systems(problem, basis), problem.S @ problem.R, _Balls(problem)

    def certify(X: Tensor, Z: Tensor, Y: Tensor) -> tuple[Tensor, float, float]:
        A = problem.ball.into_ball(Z[0] @ basis @ basis.T)
        return A, problem.loss(A), problem.bound_within(X, Y[0], basis)

    loop = Loop(
        lambda B, rho: systems.solve((target + B[0]) @ basis, rho) @ basis.T,
        lambda W, _: balls(W[0])[None],
        certify,
        lambda: basis,
        tol,
        problem.unit,
        systems.scale,
    )
    none = torch.zeros_like(target)[None]
    return loop.run(0.0, max_iterations, (none, none, systems.scale))


def solve_to_rank(
    problem: NuclearProblem, rank: int, tol: float = 1e-4, within: float | None = None
) -> Low:
    """Find about the least level whose solution has at most a wanted rank.

    The rank need not fall with the level everywhere: bisection ends between a level with at most
    that rank and one with more.

    Args:
        problem: Rows.
        rank: Of A, at most.
        tol: Accepted gap at each level, relative to the loss at A = 0.
        within: Seconds after which no further level begins; None for no limit.

    Returns:
        The solution at that level; A = 0 is one at the highest.
    """
    systems, top = Systems(problem), problem.top
    found = solve_nuclear(problem, top, tol, systems=systems)
    low, high, steps = LEAST, 1.0, found.iterations
    last: Low = found
    until = inf if within is None else time.monotonic() + within
    while top > 0 and high / low > CLOSE and time.monotonic() < until:
        middle = (low * high) ** 0.5
        last = solve_nuclear(problem, middle * top, tol, start=last, systems=systems)
        steps += last.iterations
        if last.rank <= rank:
            high, found = middle, last
        else:
            low = middle
    return replace(found, iterations=steps)


class _Balls:
    """Projects rows into their balls, from the multipliers of the last time."""

    def __init__(self, problem: NuclearProblem) -> None:
        self._ball, self._ones = problem.ball, torch.ones_like(problem.omega)
        self._multiplier: Tensor | None = None

    def __call__(self, W: Tensor) -> Tensor:
        found, self._multiplier = self._ball.prox(W, self._ones, self._multiplier)
        return found
