"""The course of some rows: homotopy, first-order steps, Newton; σ of rooted rows by bisection."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from simplicit.convex.products import fill
from simplicit.convex.scaled import SMALLEST, Scaled
from simplicit.solvers.methods import homotopy, newton
from simplicit.solvers.methods.admm import Admm

TILE = 64
"""Rows solved together: two blocks."""

FIRST_STEPS, MOST_STEPS = 32, 256
"""ADMM steps before the first hand-over to Newton, and before a later one; they double between."""

NEWTON_ROUNDS = 12
"""Rounds before a row that does not close its gap goes back to ADMM."""

ROOT_STEPS, MOST_SIGMAS = 64, 60
"""ADMM steps before σ of a rooted row is found by bisection instead, and its squared solves."""

CAREFUL_ROUNDS = 60
"""Rounds that end at the first change of a sign, for rows that plain rounds did not bring there;
as the steps, they double from one hand-over to the next. A row may need three per feature."""

NEAR = 1e-2
"""Relative gap below which a warm start goes to Newton at once."""

Method = Any  # Admm or Fista, each with its own state
State = Any

METHODS: tuple[Method, ...] = (Admm(), Admm(dtype=torch.float64))
"""The second takes over rows that float32 could not bring near their support."""


class Tile:
    """Rows solved together: the best certified iterate of each, and which are not done.

    Only rows that are not done are worked on, in whole blocks (see `blocks`); no row's course
    depends on what the others do.
    """

    def __init__(self, scaled: Scaled, V: Tensor, tol: Tensor, most: int) -> None:
        self.scaled, self.tol, self.most = scaled, tol, most
        self.V, self.gap = V.clone(), torch.full_like(scaled.t2, torch.inf)
        self.mu = torch.zeros_like(scaled.t2)[:, None]
        self.sigma = torch.ones_like(self.mu)
        self.iterations = torch.zeros(len(V), dtype=torch.long, device=V.device)

    @property
    def open(self) -> Bool[Tensor, " K"]:
        """Rows whose gap is not closed."""
        return ~(self.gap <= self.tol)

    @property
    def todo(self) -> Bool[Tensor, " K"]:
        """Those of them with iterations left."""
        return self.open & (self.iterations < self.most)

    @property
    def bisects(self) -> bool:
        """Whether σ may have to be bisected: rests on exact squared solves, hence on Newton."""
        return self.scaled.loss == "root" and NEWTON_ROUNDS > 0

    def consider(
        self, state: newton.NewtonState, rows: Int[Tensor, " k"], chosen: Bool[Tensor, " k"]
    ) -> None:
        """Keep the chosen iterates, of the given rows, that are better than the best so far."""
        chosen = (chosen & (state.flips[: len(rows)] == 0)).nonzero()[:, 0]
        if not len(chosen):
            return
        state, filled = state.rows(fill(chosen)), fill(rows[chosen])
        scaled = self.scaled.rows(filled)
        gap = scaled.gap(state.V, state.moments, state.mu / state.sigma, state.sigma)[: len(chosen)]
        better = (gap < self.gap[rows[chosen]]).nonzero()[:, 0]
        rows = rows[chosen[better]]
        self.V[rows], self.gap[rows] = state.V[better], gap[better]
        self.mu[rows], self.sigma[rows] = state.mu[better], state.sigma[better]

    def advance(self, method: Method, low: Scaled, state: State, rows: Tensor, steps: int) -> State:
        """Do first-order steps; a row whose iterations run out stands still.

        Returns:
            The state after them.
        """
        left = (self.most - self.iterations[rows]).clamp(0, steps)
        short = set(left.tolist()) - {steps}
        whole = fill(torch.arange(len(rows), device=rows.device))
        for i in range(int(left.max())):
            old = _rows(state, whole) if short else state  # a copy: a step uses its state up
            state = method.step(low, state)
            if short:
                state = _where((left > i)[whole], state, old)
        self.iterations[rows] += left
        return state

    def run(self, warm: bool, look: Callable[[], bool], inverses: bool = True) -> None:
        """Iterate until every row is done, gives up, or `look` says to stop.

        Args:
            warm: Whether the rows start from weights of a similar problem.
            look: Called after each stage.
            inverses: Whether rows may take steps that need one.
        """
        rows = self.open.nonzero()[:, 0]
        if not len(rows):
            look()
            return
        scaled, V = self.scaled.rows(fill(rows)), self.V[fill(rows)]
        sigma = scaled.root_mean_square(V)
        first = newton.init(scaled, V, scaled.multiplier(V, sigma), sigma)
        self.consider(first, rows, self.open[rows])
        if warm:
            self.newton(first, rows, self.todo & (self.gap <= NEAR))
        elif NEWTON_ROUNDS > 0:
            self.descend(first, rows)
        stop = look()
        methods, most = (METHODS[:1], ROOT_STEPS) if self.bisects else (METHODS, MOST_STEPS)
        for method in methods:
            if stop or not inverses or not bool(self.todo.any()):
                break
            rows = self.todo.nonzero()[:, 0]
            low = self.scaled.rows(fill(rows)).to(method.dtype)
            state = method.init(low, self.V[fill(rows)].to(method.dtype))
            steps = first = FIRST_STEPS // 2 if warm else FIRST_STEPS
            while steps <= most and len(rows) and not stop:
                state = self.advance(method, low, state, rows, steps)
                W, mu, sigma = state.W.double(), state.mu.double(), state.sigma.double()
                found = newton.init(self.scaled.rows(fill(rows)), W, mu, sigma)
                self.newton(found, rows, self.todo)
                if steps > first and scaled.loss == "squared":
                    rounds = CAREFUL_ROUNDS * steps // (2 * FIRST_STEPS)
                    self.newton(found, rows, self.todo, rounds, careful=True)
                # only where Newton did not close the gap may what it started from be better
                self.consider(found, rows, self.open[rows])
                stop = look()
                keep = self.todo[rows].nonzero()[:, 0]
                rows = rows[keep]
                if len(rows):
                    state, low = _rows(state, fill(keep)), low.rows(fill(keep))
                last = method is METHODS[-1] and not self.bisects
                steps = min(2 * steps, most) if last else 2 * steps

    def bisect_sigma(self, look: Callable[[], bool]) -> None:
        """Solve rooted rows as squared ones with the penalty times σ, and find σ.

        √q is the least of q/(2σ) + σ/2 (Sun & Zhang 2012), whose derivative in σ has the sign of
        σ − √q(σ): bisection finds σ also where a target can be matched exactly and σ vanishes.
        """
        rows = self.todo.nonzero()[:, 0]
        if not len(rows):
            return
        V = self.V[fill(rows)]
        sigma = self.scaled.rows(fill(rows)).root_mean_square(V).clamp(SMALLEST, 1.0)
        low, high = torch.full_like(sigma, SMALLEST), torch.ones_like(sigma)
        for i in range(MOST_SIGMAS):
            if look():
                break
            scaled = self.scaled.rows(fill(rows))
            squared = replace(scaled, loss="squared", terms=scaled.terms.times(sigma))
            # a gap of the squared problem weighs 1/σ in the rooted one
            tol = (0.5 * self.tol[fill(rows)] * sigma[:, 0]).clamp_min(1e-14)
            K = len(rows)
            inner = Tile(squared.rows(slice(0, K)), V[:K], tol[:K], self.most)
            inner.iterations = self.iterations[rows]
            inner.run(True, look)
            self.iterations[rows] = inner.iterations
            filled = fill(torch.arange(K, device=rows.device))
            V = inner.V[filled]
            none = torch.zeros(len(V), dtype=torch.long, device=V.device)
            found = newton.NewtonState(V, scaled.moments(V), inner.mu[filled], sigma, none)
            self.consider(found, rows, self.open[rows])
            # with σ near and the support right, the rooted systems end it
            self.newton(found, rows, self.todo)
            residual = scaled.root_mean_square(V)
            low = torch.where(residual > sigma, sigma, low)
            high = torch.where(residual > sigma, high, sigma)
            # the residual itself is a good guess; every other time make sure to halve
            sigma = torch.sqrt(low * high) if i % 2 else residual.clamp(low, high)
            keep = self.todo[rows].nonzero()[:, 0]
            if not len(keep):
                break
            rows, keep = rows[keep], fill(keep)
            V, sigma, low, high = V[keep], sigma[keep], low[keep], high[keep]
        look()

    def settle(
        self, state: newton.NewtonState, rows: Int[Tensor, " k"], keep: Int[Tensor, " m"]
    ) -> tuple[newton.NewtonState, Int[Tensor, " m"], Bool[Tensor, " m"]]:
        """Do the rounds that need no exact moments, and certify where they end.

        Returns:
            The state of the rows to keep, their numbers, and which of them are worth exact rounds.
        """
        rows = rows[keep]
        scaled = self.scaled.rows(fill(rows))
        part, state = self.scaled.rows(rows), state.rows(keep)
        tells = newton.tells(part, state)
        most = (self.most - self.iterations[rows]).clamp_max(NEWTON_ROUNDS) * tells
        found, done = newton.settle(part, state, most)
        self.iterations[rows] += done
        some = fill(torch.arange(len(rows), device=rows.device))
        found = newton.init(scaled, found.V[some], found.mu[some], found.sigma[some])
        self.consider(found, rows, tells)
        return found, rows, (done < most) | ~tells

    def descend(self, state: newton.NewtonState, rows: Int[Tensor, " k"]) -> None:
        """Start from zero by homotopy, and finish the rows that come near their solution."""
        keep = self.todo[rows].nonzero()[:, 0]
        state, rows = state.rows(keep), rows[keep]
        scaled = self.scaled.rows(rows)
        most = (self.most - self.iterations[rows]) * newton.tells(scaled, state)
        found, there, done = homotopy.descend(scaled, state, most)
        self.iterations[rows] += done
        moving = torch.zeros_like(self.todo)
        moving[rows] = there
        self.newton(found, rows, moving & self.todo)

    def newton(
        self,
        state: newton.NewtonState,
        rows: Int[Tensor, " k"],
        moving: Bool[Tensor, " K"],
        rounds: int | None = None,
        careful: bool = False,
    ) -> None:
        """Do Newton rounds until each moving row closes its gap or stands still.

        Args:
            state: Where to start, of the given rows and what fills their blocks.
            rows: Rows of the tile.
            moving: Which rows of the tile to move.
            rounds: Most rounds; `NEWTON_ROUNDS` when omitted.
            careful: Whether a round ends at the first change of a sign.
        """
        keep, scaled = moving[rows].nonzero()[:, 0], None
        if not careful and len(keep):
            state, rows, stand = self.settle(state, rows, keep)
            keep = (stand & self.todo[rows]).nonzero()[:, 0]
        for _ in range(NEWTON_ROUNDS if rounds is None else rounds):
            if not len(keep):
                break
            if scaled is None or len(keep) < len(rows):
                state, rows = state.rows(fill(keep)), rows[keep]
                scaled = self.scaled.rows(fill(rows))
            K = len(rows)
            old, state = state, newton.step(scaled, state, K, careful)
            self.iterations[rows] += 1
            moved = ((state.V - old.V).abs().sum(1) > 0) | (state.sigma != old.sigma)[:, 0]
            moved |= (state.flips != old.flips) & careful
            self.consider(state, rows, torch.ones_like(moved[:K]))
            keep = (moved[:K] & self.todo[rows]).nonzero()[:, 0]


def _rows(state: State, rows: Tensor) -> State:
    pairs = ((f.name, getattr(state, f.name)) for f in fields(state))
    return replace(state, **{name: x[rows] if x.ndim else x for name, x in pairs})


# Row by row the one state or the other.
def _where(rows: Tensor, one: State, other: State) -> State:
    pairs = ((f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return replace(
        one, **{name: torch.where(rows[:, None], a, b) if a.ndim else a for name, a, b in pairs}
    )
