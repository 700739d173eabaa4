"""Active-set (semismooth) Newton on each row's support, in float64.

On a fixed support A with signs σ_A, curved part Q and an active ball, a row's optimality system

    (G_AA + l2 diag(ρ² 1_Q)) w_A = R_A − s (l1 + √(2 l0 l2) 1_{not Q}) ρ σ_A − μ ω σ_A,
    Σ ω σ_A w_A = radius

is linear in w and in the ball's multiplier μ; s is 1 for the squared loss and the root mean square
residual for the rooted one, where s² = q(w(s)) is a scalar quadratic. A round solves it and then
lets weights that changed sign leave and features whose moment exceeds the threshold enter.
It has no globalisation: from a good start it ends at the solution in a few rounds, and a row whose
gap does not close goes back to the first-order method.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .scaled import SMALLEST, Scaled

PAD = 32
"""Supports are padded to a multiple of this, so that rows of one size are factorised together."""


@dataclass(frozen=True)
class NewtonState:
    """Iterates of some rows.

    Attributes:
        V: Weights, (K, n).
        moments: c = R − V G, (K, n).
        mu: The ball's multiplier, (K, 1).
        sigma: Root mean square residual for the rooted loss, else 1; (K, 1).
        flips: Weights changed after the last solve: set to zero because their sign turned, or
            pulled into the ball; (K,). The moments belong to the solve before that, so V is
            certified only where there are none.
    """

    V: Float[Tensor, "K n"]
    moments: Float[Tensor, "K n"]
    mu: Float[Tensor, "K 1"]
    sigma: Float[Tensor, "K 1"]
    flips: Int[Tensor, " K"]


def init(problem: Scaled, V: Tensor, mu: Tensor, sigma: Tensor) -> NewtonState:
    """Start from weights and multipliers of another method.

    Returns:
        The first state.
    """
    V = problem.terms.into_ball(V)
    return NewtonState(
        V, problem.moments(V), mu, sigma, torch.zeros(len(V), dtype=torch.long, device=V.device)
    )


def step(problem: Scaled, state: NewtonState, rows: Bool[Tensor, " K"]) -> NewtonState:
    """Do one round on the marked rows, leave the others.

    Args:
        problem: The rows, float64.
        state: The current state.
        rows: Which rows to move, (K,).

    Returns:
        The next state.
    """
    V, mu, sigma = state.V.clone(), state.mu.clone(), state.sigma.clone()
    terms = problem.terms.times(state.sigma) if problem.loss == "root" else problem.terms
    threshold = mu * terms.omega + terms.slope()
    enter = (V == 0) & (state.moments.abs() > threshold * (1 + 1e-9) + 1e-15)
    active = ((V != 0) | enter) & rows[:, None]
    count = active.sum(1)
    padded = (count + PAD - 1) // PAD * PAD
    V[rows & (count == 0)] = 0.0
    mu[rows & (count == 0)] = 0.0
    sign = torch.where(V != 0, V.sign(), state.moments.sign())
    for size in padded.unique().tolist():
        if size == 0:
            continue
        group = (padded == size).nonzero()[:, 0]
        V[group], mu[group], sigma[group] = _solve(
            problem, state, group, active[group], count[group], size
        )
    moments = torch.where(rows[:, None], problem.moments(V), state.moments)
    flip = active & (V * sign <= 0)
    inside = problem.terms.into_ball(V.masked_fill(flip, 0.0))
    # beyond rounding, being pulled into the ball is a change the moments do not know of
    pulled = ~flip & ((inside - V).abs() > 1e-12 * V.abs())
    return NewtonState(inside, moments, mu, sigma, (flip | pulled).sum(1))


def _solve(
    problem: Scaled, state: NewtonState, group: Tensor, active: Tensor, count: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    # solves the linear optimality systems of rows whose padded supports have one size
    terms = problem.terms.rows(group)
    root = problem.loss == "root"
    V, R, sigma = state.V[group], problem.R[group], state.sigma[group]
    # column numbers of each row's support, padded with column 0 behind a mask
    row, column = active.nonzero(as_tuple=True)
    position = active.cumsum(1)[row, column] - 1
    index = torch.zeros(len(group), size, dtype=torch.long, device=V.device)
    index[row, position] = column
    mask = torch.arange(size, device=V.device) < count[:, None]

    def gather(x: Tensor) -> Tensor:
        return x.expand(len(group), V.shape[1]).gather(1, index) * mask

    v, rhs = gather(V), gather(R)
    sign = torch.where(v != 0, v.sign(), gather(state.moments[group]).sign())
    rho, omega = gather(terms.rho), gather(terms.omega)
    curved = (v.abs() * rho > terms.knee) | (terms.knee == 0)
    pull = (terms.l1 + terms.huber * ~curved) * rho * sign
    curvature = sigma * terms.l2 * rho**2 * curved
    ball = omega * sign

    H = problem.design.submatrices(index)
    H *= mask[:, :, None] & mask[:, None, :]
    H.diagonal(dim1=1, dim2=2).add_(curvature + ~mask)
    factor, failed = torch.linalg.cholesky_ex(H)
    bad = failed > 0
    if bool(bad.any()):
        # a proximal term keeps a singular support solvable; its pull fades as rounds repeat
        ridge = 1e-9
        H[bad] += ridge * torch.eye(size, dtype=H.dtype, device=H.device)
        rhs = torch.where(bad[:, None], rhs + ridge * v, rhs)
        factor[bad] = torch.linalg.cholesky_ex(H[bad])[0]
    a, b, e = torch.cholesky_solve(torch.stack([rhs, pull, ball], dim=2), factor).unbind(2)

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(1, keepdim=True)

    slack = dot(ball, ball) == 0
    reach = torch.where(slack, 1.0, dot(ball, e))
    norm = dot(ball, a) - sigma * dot(ball, b)
    tight = (norm > terms.radius) & ~slack
    radius = torch.where(tight, terms.radius, 0.0)
    # w = a − s b − μ e, and μ keeps a tight row on the sphere for every s
    a = a - tight * e * (dot(ball, a) - radius) / reach
    b_free = b
    b = b - tight * e * dot(ball, b) / reach
    if root:
        sigma = _residual(problem.t2[group][:, None], rhs, H, curvature, a, b, sigma)
    w = a - sigma * b
    mu = torch.where(tight, (norm - radius + (state.sigma[group] - sigma) * dot(ball, b_free)), 0.0)
    mu = (mu / reach).clamp_min(0)
    moved = torch.zeros_like(V)
    moved.scatter_add_(1, index, w * mask)
    return moved, mu, sigma


def _residual(
    t2: Tensor, rhs: Tensor, H: Tensor, curvature: Tensor, a: Tensor, b: Tensor, old: Tensor
) -> Tensor:
    # positive root of s² = ‖t − V (a − s b)‖²/m, a quadratic in s

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(1, keepdim=True)

    # not a batched product, whose bits depend on how many rows there are
    Ga = (H * a[:, None]).sum(2) - curvature * a
    Gb = (H * b[:, None]).sum(2) - curvature * b
    q0 = (t2 - 2 * dot(rhs, a) + dot(a, Ga)).clamp_min(0)
    q1 = 2 * dot(rhs, b) - 2 * dot(a, Gb)
    q2 = 1 - dot(b, Gb)
    s = (q1 + torch.sqrt((q1 * q1 + 4 * q2 * q0).clamp_min(0))) / (2 * q2)
    good = (q2 > 0) & torch.isfinite(s) & (s > 0)
    return torch.where(good, s, old).clamp_min(SMALLEST)
