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

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.scaled import SMALLEST, ScaledRows
from simplicit.solvers.methods.supports import Supports

PROXIMAL = 1e-6
"""Proximal term of careful rounds: it bounds their steps along the null space of a support."""

ROUGH = 1e-6
"""Least difference of moment and price that float32 can tell. The moment of a weight that has just
left is its price up to rounding: with a smaller threshold it would come and go for ever."""


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

    def rows(self, index: Int[Tensor, " k"]) -> "NewtonState":
        """Keep some rows.

        Args:
            index: Which rows, in this order, (k,).

        Returns:
            Their state.
        """
        return NewtonState(*(getattr(self, f.name)[index] for f in fields(self)))

    def put(self, index: Int[Tensor, " k"], rows: "NewtonState") -> None:
        """Replace some rows.

        Args:
            index: Which rows to replace, (k,).
            rows: The state of the new ones, in this order.
        """
        for f in fields(self):
            getattr(self, f.name)[index] = getattr(rows, f.name)

    def copy(self) -> "NewtonState":
        """Copy all rows.

        Returns:
            A state that shares nothing.
        """
        return NewtonState(*(getattr(self, f.name).clone() for f in fields(self)))


def init(problem: ScaledRows, V: Tensor, mu: Tensor, sigma: Tensor) -> NewtonState:
    """Start from weights and multipliers of another method.

    Args:
        problem: The rows, float64.
        V: Scaled weights, (K, n).
        mu: The ball's multiplier, (K, 1).
        sigma: Root mean square residual for the rooted loss, else 1; (K, 1).

    Returns:
        The first state.
    """
    V = problem.terms.into_ball(V)
    return NewtonState(
        V, problem.moments(V), mu, sigma, torch.zeros(len(V), dtype=torch.long, device=V.device)
    )


def step(problem: ScaledRows, state: NewtonState, K: int, careful: bool = False) -> NewtonState:
    """Do one round.

    Args:
        problem: The rows, float64.
        state: The current state.
        K: How many of the rows matter; the others fill a block, and are set to zero.
        careful: Stop where the first weight changes its sign or passes the knee. A feature
            enters only after a round that nothing stopped: the one with the largest moment. The
            objective of the squared loss then falls with every round.

    Returns:
        The next state.
    """
    active, excess = state.V != 0, beyond(problem, state)
    if careful:
        most, which = excess.masked_fill(active, -torch.inf).max(1)
        rows = ((most > 1e-15) & (state.flips == 0)).nonzero()[:, 0]
        active[rows, which[rows]] = True
    else:
        active |= excess > 1e-15
    active[K:] = False
    return on_support(problem, state, active, problem.moments, careful)


def beyond(problem: ScaledRows, state: NewtonState) -> Float[Tensor, "K n"]:
    """Compute by how much each feature's moment exceeds its price.

    Args:
        problem: The rows, float64.
        state: Their weights, moments and multipliers.

    Returns:
        |c| − s slope − μ ω, positive where a weight has to leave zero; (K, n).
    """
    return state.moments.abs().sub_(price(problem, state), alpha=1 + 1e-9)


def price(problem: ScaledRows, state: NewtonState) -> Float[Tensor, "K n"]:
    """Compute the price of each feature: the moment above which its weight leaves zero.

    Args:
        problem: The rows, float64.
        state: Their multipliers.

    Returns:
        s slope + μ ω, (K, n).
    """
    terms = problem.terms
    slope = (terms.times(state.sigma) if problem.loss == "root" else terms).slope()
    return slope + state.mu * terms.omega if terms.has_ball else slope


def tells(problem: ScaledRows, state: NewtonState) -> Bool[Tensor, " K"]:
    """Tell which rows may use rough moments: those whose prices are far above their error.

    Args:
        problem: The rows, float64.
        state: Their multipliers.

    Returns:
        One truth value a row.
    """
    return (price(problem, state) > 100 * ROUGH).all(1)


def on_support(
    problem: ScaledRows,
    state: NewtonState,
    active: Bool[Tensor, "K n"],
    moments: Callable[[Tensor], Tensor],
    careful: bool = False,
) -> NewtonState:
    """Solve the optimality system on given supports.

    Args:
        problem: The rows, float64.
        state: The current state; weights outside the support are zero.
        active: The supports.
        moments: Gives c = R − V G of weights V.
        careful: See `step`.

    Returns:
        The next state.
    """
    terms, root = problem.terms, problem.loss == "root"
    on = Supports.of(active)
    v, R, rho = on.gather(state.V), on.gather(problem.R), terms.rho[on.column]
    l1, l2, huber, knee, old = (
        x[on.row, 0] for x in (terms.l1, terms.l2, terms.huber, terms.knee, state.sigma)
    )
    sign = torch.where(v != 0, v.sign(), on.gather(state.moments).sign())
    curved = (v.abs() * rho > knee) | (knee == 0)
    pull, ball = (l1 + huber * ~curved) * rho * sign, terms.omega[on.column] * sign
    curvature = old * l2 * rho**2 * curved
    # w = a − σ b − μ e, where σ and μ are one number a row
    sides = [R, pull] if root else [R - pull]
    if careful:
        curvature, sides[0] = curvature + PROXIMAL, sides[0] + PROXIMAL * v
    found = on.solve(problem.shared, curvature, v, sides + [ball] * terms.has_ball)
    a, b = found[0], found[1] if root else torch.zeros_like(v)
    sigma, mu, radius = state.sigma[:, 0], torch.zeros_like(state.sigma[:, 0]), terms.radius[:, 0]
    at = bt = mu
    if terms.has_ball:
        e, reach = found[-1], on.sum(ball * found[-1])
        tight = (on.sum(ball * (a - old * b)) > radius) & (reach > 0)
        # μ = at − σ bt keeps a tight row on the sphere for every σ
        at = torch.where(tight, (on.sum(ball * a) - radius) / reach, 0.0)
        bt = torch.where(tight, on.sum(ball * b) / reach, 0.0)
        a, b = a - at[on.row] * e, b - bt[on.row] * e
    if root:
        # the systems say what G a and G b are
        Ga = R - at[on.row] * ball - curvature * a
        Gb = pull - bt[on.row] * ball - curvature * b
        q0 = (problem.t2 - 2 * on.sum(R * a) + on.sum(a * Ga)).clamp_min(0)
        sigma = _residual(q0, 2 * on.sum(R * b - a * Gb), 1 - on.sum(b * Gb), sigma)
    w, mu = a - sigma[on.row] * b, (at - sigma * bt).clamp_min(0)
    # a system without a solution in numbers leaves its row as it was
    w, mu = torch.where(torch.isfinite(w), w, v), torch.where(torch.isfinite(mu), mu, 0.0)
    if careful:
        w, changed = _first_break(on, v, w, sign, knee / rho, curved)
    flip = w * sign <= 0
    kept = w.masked_fill(flip, 0.0)
    if terms.has_ball:
        norm = on.sum(ball.abs() * kept.abs())
        shrink = torch.where(norm > radius, radius / norm * (1 - 1e-15), 1.0)
        kept = torch.where(ball != 0, kept * shrink[on.row], kept)
    if careful:
        w = kept
    else:
        # beyond rounding, being pulled into the ball is a change the moments do not know of
        changed = flip | ((kept - w).abs() > 1e-12 * w.abs())
    flips = on.sum(changed.to(w)).long()
    return NewtonState(on.spread(kept), moments(on.spread(w)), mu[:, None], sigma[:, None], flips)


def settle(
    problem: ScaledRows, state: NewtonState, most: Int[Tensor, " K"]
) -> tuple[NewtonState, Int[Tensor, " K"]]:
    """Do rounds with rough moments until each row's support stands still.

    Args:
        problem: The rows, float64.
        state: Where to start.
        most: Most rounds of each row.

    Returns:
        Weights that solve the systems exactly, with rough moments; and the rounds done.
    """
    state, done = state.copy(), torch.zeros_like(most)
    active = (state.V != 0) | (beyond(problem, state) > ROUGH)
    going = (most > 0).nonzero()[:, 0]
    while len(going):
        part, old = problem.rows(going), active[going]
        now = on_support(part, state.rows(going), old, part.rough_moments)
        state.put(going, now)
        done[going] += 1
        active[going] = new = (now.V != 0) | (beyond(part, now) > ROUGH)
        moves = (new & ~old).any(1) | (now.flips > 0)
        going = going[moves & (done < most)[going]]
    return state, done


def _residual(q0: Tensor, q1: Tensor, q2: Tensor, old: Tensor) -> Tensor:
    # positive root of s² = q(s) = q0 + q1 s + (1 − q2) s²
    s = (q1 + torch.sqrt((q1 * q1 + 4 * q2 * q0).clamp_min(0))) / (2 * q2)
    good = (q2 > 0) & torch.isfinite(s) & (s > 0)
    return torch.where(good, s, old).clamp_min(SMALLEST)


def _first_break(
    on: Supports, v: Tensor, w: Tensor, sign: Tensor, knee: Tensor, curved: Tensor
) -> tuple[Tensor, Tensor]:
    # the way from v to w, as far as every weight keeps its sign and its side of the knee; and
    # which weights stopped it
    size, speed = v.abs(), (w - v) * sign
    to_zero = torch.where(speed < 0, size / -speed, torch.inf)
    ahead = (knee > 0) & torch.where(curved, speed < 0, speed > 0)
    to_knee = torch.where(ahead, (knee - size) / speed, torch.inf)
    first = torch.minimum(to_zero, to_knee)
    part = torch.ones_like(on.active[:, 0], dtype=v.dtype)
    part = part.scatter_reduce(0, on.row, first, "amin")[on.row]
    cut = (first <= part) & (part < 1)
    w = torch.where(part < 1, v + part * (w - v), w)
    w = torch.where(cut & (to_zero <= part), 0.0, w)
    # a last bit beyond the knee: the next round is to see the other side
    beyond = knee * (1 + 1e-12 * (1 - 2 * curved.to(knee)))
    return torch.where(cut & (to_knee <= part), beyond * sign, w), cut
