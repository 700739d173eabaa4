"""The course of a few rows: first-order steps, Newton rounds, and σ of rooted rows by bisection."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from . import newton
from .admm import Admm
from .scaled import SMALLEST, Scaled

TILE = 32
"""Rows per product: always as many, so a row's bits do not depend on its neighbours."""

FIRST_STEPS, MOST_STEPS = 24, 200
"""ADMM steps before the first hand-over to Newton, and before a later one; they double between."""

NEWTON_ROUNDS = 12
"""Rounds before a row that does not close its gap goes back to ADMM."""

ROOT_STEPS, MOST_SIGMAS = 48, 60
"""ADMM steps before σ of a rooted row is found by bisection instead, and its squared solves."""

NEAR = 1e-2
"""Relative gap below which a warm start goes to Newton at once."""

Method = Any  # Admm or Fista, each with its own state
State = Any

METHODS: tuple[Method, ...] = (Admm(), Admm(dtype=torch.float64))
"""The second takes over rows that float32 could not bring near their support."""


class Tile:
    """`TILE` rows solved together: the best certified iterate of each, and which are not done.

    The first K are looked at; no row's course depends on what the others do.
    """

    def __init__(self, scaled: Scaled, V: Tensor, K: int, tol: Tensor, most: int) -> None:
        self.scaled, self.K, self.most = scaled, K, most
        self.tol = tol
        self.V, self.gap = V, torch.full_like(scaled.t2, torch.inf)
        self.mu = torch.zeros_like(scaled.t2)[:, None]
        self.sigma = torch.ones_like(self.mu)
        self.iterations = torch.zeros(len(V), dtype=torch.long, device=V.device)
        self.rows = torch.arange(len(V), device=V.device) < K

    @property
    def open(self) -> Bool[Tensor, " K"]:
        """Rows whose gap is not closed."""
        return self.rows & ~(self.gap <= self.tol)

    @property
    def todo(self) -> Bool[Tensor, " K"]:
        """Those of them with iterations left."""
        return self.open & (self.iterations < self.most)

    @property
    def bisects(self) -> bool:
        """Whether σ may have to be bisected: rests on exact squared solves, hence on Newton."""
        return self.scaled.loss == "root" and NEWTON_ROUNDS > 0

    def consider(self, state: newton.NewtonState, rows: Tensor) -> None:
        """Keep the iterates of the marked rows that are better than the best so far."""
        gap = self.scaled.gap(state.V, state.moments, state.mu / state.sigma, state.sigma)
        better = (rows & (state.flips == 0) & (gap < self.gap))[:, None]
        self.V = torch.where(better, state.V, self.V)
        self.mu = torch.where(better, state.mu, self.mu)
        self.sigma = torch.where(better, state.sigma, self.sigma)
        self.gap = torch.where(better[:, 0], gap, self.gap)

    def advance(self, method: Method, low: Scaled, state: State, steps: int) -> State:
        """Do first-order steps; a row whose iterations run out stands still.

        Returns:
            The state after them.
        """
        open = self.open
        left = torch.where(open, (self.most - self.iterations).clamp(0, steps), 0)
        short = set(left[open].tolist()) - {steps}
        for i in range(int(left.max())):
            old, state = state, method.step(low, state)
            if short:
                state = _where(left > i, state, old)
        self.iterations += left
        return state

    def run(self, warm: bool, look: Callable[[], bool]) -> None:
        """Iterate until every row is done, gives up, or `look` says to stop."""
        scaled, V = self.scaled, self.V
        sigma = scaled.root_mean_square(V)
        first = newton.init(scaled, V, scaled.multiplier(V, sigma), sigma)
        self.consider(first, self.rows)
        if warm:
            self.newton(first, self.todo & (self.gap <= NEAR))
        stop = look()
        methods, most = (METHODS[:1], ROOT_STEPS) if self.bisects else (METHODS, MOST_STEPS)
        for method in methods:
            if stop or not bool(self.todo.any()):
                break
            low = scaled.to(method.dtype)
            state = method.init(low, self.V.to(method.dtype))
            steps = FIRST_STEPS // 2 if warm else FIRST_STEPS
            while steps <= most and bool(self.todo.any()) and not stop:
                state = self.advance(method, low, state, steps)
                W, mu, sigma = state.W.double(), state.mu.double(), state.sigma.double()
                self.newton(newton.init(scaled, W, mu, sigma), self.open)
                stop = look()
                last = method is METHODS[-1] and not self.bisects
                steps = min(2 * steps, most) if last else 2 * steps

    def bisect_sigma(self, look: Callable[[], bool]) -> None:
        """Solve rooted rows as squared ones with the penalty times σ, and find σ.

        √q is the least of q/(2σ) + σ/2 (Sun & Zhang 2012), whose derivative in σ has the sign of
        σ − √q(σ): bisection finds σ also where a target can be matched exactly and σ vanishes.
        """
        V, none = self.V, torch.zeros_like(self.iterations)
        low, high = torch.full_like(self.sigma, SMALLEST), torch.ones_like(self.sigma)
        sigma = self.scaled.root_mean_square(V).clamp(SMALLEST, 1.0)
        for i in range(MOST_SIGMAS):
            if not bool(self.todo.any()) or look():
                break
            terms = self.scaled.terms.times(sigma)
            squared = replace(self.scaled, loss="squared", terms=terms)
            # a gap of the squared problem weighs 1/σ in the rooted one
            tol = (0.5 * self.tol * sigma[:, 0]).clamp_min(1e-14)
            inner = Tile(squared, V, self.K, tol, self.most)
            inner.rows, inner.iterations = self.todo, self.iterations
            inner.run(True, look)
            V, self.iterations = inner.V, inner.iterations
            found = newton.NewtonState(V, self.scaled.moments(V), inner.mu, sigma, none)
            self.consider(found, self.open)
            residual = self.scaled.root_mean_square(V)
            low = torch.where(residual > sigma, sigma, low)
            high = torch.where(residual > sigma, high, sigma)
            # the residual itself is a good guess; every other time make sure to halve
            sigma = torch.sqrt(low * high) if i % 2 else residual.clamp(low, high)

    def newton(self, state: newton.NewtonState, rows: Tensor) -> None:
        """Do Newton rounds on the marked rows until each closes its gap or stands still."""
        self.consider(state, rows)
        moving = rows
        for _ in range(NEWTON_ROUNDS):
            moving = moving & self.todo
            if not bool(moving.any()):
                break
            old, state = state, newton.step(self.scaled, state, moving)
            self.iterations += moving
            self.consider(state, moving)
            moving = moving & ((state.V != old.V).any(1) | (state.sigma != old.sigma)[:, 0])


# Row by row the one state or the other.
def _where(rows: Tensor, one: State, other: State) -> State:
    pairs = ((f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return replace(
        one, **{name: torch.where(rows[:, None], a, b) if a.ndim else a for name, a, b in pairs}
    )
