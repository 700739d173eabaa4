"""The stages that rows go through, from where they start to a closed gap: `run` is the list.

Every stage works on the rows that are not done, in whole blocks (`convex.products.fill`), and on
each row by itself: what a row goes through does not depend on the others.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.products import fill
from simplicit.convex.scaled import SMALLEST, ScaledRows
from simplicit.solvers.methods import coordinates, newton
from simplicit.solvers.methods.first_order import Method
from simplicit.solvers.settings import Settings

Look = Callable[[], bool]
"""Called after each stage; says whether to stop."""

PASSES = 16
"""Passes over all features before a row is left; others need 4 to 10."""

FINEST = 1e-7
"""Change of a weight that sums of float32 still tell."""

SYSTEM = 8.0
"""A linear system of s weights takes as long as s³ / 8 multiplications of coordinate descent."""

ADMM_WORK = 10.0
"""Steps of ADMM before the first Newton rounds take as long as this many multiplications of
coordinate descent for each entry of the Gram."""


class Tile:
    """Rows that are solved together: the best certified iterate of each, and which are not done.

    Args:
        scaled: The rows, K over n features, in scaled coordinates and float64.
        V: Scaled weights to start from, inside the ball, (K, n).
        tol: Relative gap at which each row is done, (K,).
        most: Cap on the iterations of a row.
        settings: Numbers of the stages.

    Attributes:
        V: Best weights so far, (K, n).
        gap: Their relative gap, infinite before the first certificate, (K,).
        mu: The ball's multiplier that belongs to them, (K, 1).
        sigma: Root mean square residual for the rooted loss, else 1; (K, 1).
        iterations: Iterations of each row so far, (K,).
    """

    def __init__(
        self,
        scaled: ScaledRows,
        V: Float[Tensor, "K n"],
        tol: Float[Tensor, " K"],
        most: int,
        settings: Settings,
    ) -> None:
        self.scaled, self.tol, self.most, self.settings = scaled, tol, most, settings
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
        return self.scaled.loss == "root" and self.settings.newton_rounds > 0

    def keep_better(
        self, state: newton.NewtonState, rows: Int[Tensor, " k"], chosen: Bool[Tensor, " k"]
    ) -> None:
        """Certify the chosen iterates, and keep those that are better than the best so far.

        Args:
            state: Iterates of the rows, and of what fills their block, (k or more, n).
            rows: Rows of the tile that they belong to, (k,).
            chosen: Which of them to certify, (k,).
        """
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


def run(tile: Tile, warm: bool, look: Look, inverses: bool = True) -> None:
    """Take the rows of a tile through all stages, until each is done or has no iterations left.

    Args:
        tile: The rows; the best iterate of each is left there.
        warm: Whether the rows start from weights of a similar problem; else all weights are 0.
        look: Called after each stage.
        inverses: Whether rows may take steps that need an inverse of the whole Gram; without them
            some rows may be left.
    """
    rows = tile.open.nonzero()[:, 0]
    if not len(rows):
        look()
        return
    # the start itself may be good enough
    start = certify_start(tile, rows)
    stop = look()
    if not stop and descends(tile):
        descend(tile, start, rows, look)
        stop = look()
    elif not stop and warm:  # from near the solution Newton is all it takes
        newton_rounds(tile, start, rows, tile.todo & (tile.gap <= tile.settings.near))
        stop = look()
    # first-order steps find the support nearly, Newton finishes; the last method has the last word
    methods = tile.settings.methods[: 1 if tile.bisects else None]
    for method in methods if inverses else ():
        if not stop and bool(tile.todo.any()):
            stop = first_order_steps(tile, method, warm, look)
    # what is left of the rooted loss is solved as squared problems, whose σ is bisected
    if inverses and tile.bisects and not stop:
        bisect_sigma(tile, look)


def certify_start(tile: Tile, rows: Int[Tensor, " k"]) -> newton.NewtonState:
    """Certify the weights that rows start from.

    Args:
        tile: The rows.
        rows: Which of them, (k,).

    Returns:
        Their state, and that of what fills their block.
    """
    scaled, V = tile.scaled.rows(fill(rows)), tile.V[fill(rows)]
    sigma = scaled.root_mean_square(V)
    start = newton.init(scaled, V, scaled.multiplier(V, sigma), sigma)
    tile.keep_better(start, rows, tile.open[rows])
    return start


def descends(tile: Tile) -> bool:
    """Say whether rows go by coordinate descent.

    Args:
        tile: The rows.

    Returns:
        Whether they do: not on a device, and not for the rooted loss inside a ball, as σ and the
        ball's multiplier at once are more than its passes find.
    """
    settings, scaled = tile.settings, tile.scaled
    both = scaled.loss == "root" and scaled.terms.has_ball
    here = tile.V.device.type == "cpu" and tile.V.shape[1] > 0
    return here and not both and settings.newton_rounds > 0 and settings.descent > 0


def descend(tile: Tile, start: newton.NewtonState, rows: Int[Tensor, " k"], look: Look) -> None:
    """Bring rows near their solution by coordinate descent, and finish those that come there.

    Args:
        tile: The rows.
        start: Where some rows, and what fills their block, start; with exact moments.
        rows: Which rows of the tile, (k,).
        look: Called now and then where the work is long.
    """
    settings, near = tile.settings, tile.settings.handover
    keep = tile.todo[rows].nonzero()[:, 0]
    part, rows = start.rows(keep), rows[keep]
    for rounds in range(settings.descents):
        if not len(rows):
            break
        # systems of many weights take long: they come only when passes bring nothing more
        last = rounds + 1 == settings.descents
        part, rows = descend_once(tile, part, rows, near, last, look)
        near = max(near * settings.finer, FINEST)


def descend_once(
    tile: Tile,
    start: newton.NewtonState,
    rows: Int[Tensor, " k"],
    near: float,
    last: bool,
    look: Look,
) -> tuple[newton.NewtonState, Int[Tensor, " l"]]:
    """Go down by coordinate descent, once, and on by Newton where that takes less.

    Args:
        tile: The rows.
        start: Where some rows start, with exact moments, (k, n).
        rows: Which rows of the tile, (k,).
        near: Change of a weight below which coordinate descent ends.
        last: Whether Newton is to go on in any case.
        look: Called now and then where the work is long. Rows that are stopped before their turn
            stay where they are.

    Returns:
        Where rows are that may go further down, with exact moments, and which these are, (l,).
    """
    settings, entries = tile.settings, float(tile.V.shape[1]) ** 2
    left = (tile.most - tile.iterations[rows]).clamp_max(PASSES)
    work = settings.descent * entries
    found = coordinates.descend(tile.scaled.rows(rows), start, left, near, work, look)
    tile.iterations[rows] += found.passes
    system = (found.state.V != 0).sum(1).double() ** 3 / SYSTEM
    # Newton may bring few weights to their end from further away, too
    few = settings.newton_rounds * system < ADMM_WORK * entries
    there = (found.there | few & (found.passes > 0)).nonzero()[:, 0]
    rows, moving = rows[there], torch.zeros_like(tile.todo)
    moving[rows] = (system < found.work)[there]
    newton_rounds(tile, found.state.rows(there), rows, moving & tile.todo)
    keep = tile.todo[rows].nonzero()[:, 0]
    if not len(keep):
        return start.rows(keep), rows[keep]
    near_enough, rows, some = found.there[there[keep]], rows[keep], fill(there[keep])
    scaled, rough = tile.scaled.rows(fill(rows)), found.state.rows(some)
    exact = newton.init(scaled, rough.V, rough.mu, rough.sigma)
    tile.keep_better(exact, rows, torch.ones_like(rows, dtype=torch.bool))
    if last:
        newton_rounds(tile, exact, rows, tile.todo)
    keep = (near_enough & tile.todo[rows]).nonzero()[:, 0]
    return exact.rows(keep), rows[keep]


def first_order_steps(tile: Tile, method: Method, warm: bool, look: Look) -> bool:
    """Do first-order steps, twice as many each time, and try Newton from where they lead.

    Args:
        tile: The rows.
        method: Does the steps.
        warm: Whether the rows started from weights of a similar problem.
        look: Called after each hand-over.

    Returns:
        Whether `look` said to stop.
    """
    settings, stop = tile.settings, False
    rows = tile.todo.nonzero()[:, 0]
    low = tile.scaled.rows(fill(rows)).to(method.dtype)
    state = method.init(low, tile.V[fill(rows)].to(method.dtype))
    steps = first = settings.first_steps // 2 if warm else settings.first_steps
    most = settings.root_steps if tile.bisects else settings.most_steps
    # the last method goes on with `most` steps at a time, the others end after them
    last = method is settings.methods[-1] and not tile.bisects
    while steps <= most and len(rows) and not stop:
        state = advance(tile, method, low, state, rows, steps)
        W, mu, sigma = state.W.double(), state.mu.double(), state.sigma.double()
        found = newton.init(tile.scaled.rows(fill(rows)), W, mu, sigma)
        newton_rounds(tile, found, rows, tile.todo)
        if steps > first and tile.scaled.loss == "squared":
            careful = settings.careful_rounds * steps // (2 * settings.first_steps)
            newton_rounds(tile, found, rows, tile.todo, careful)
        # only where Newton did not close the gap may what it started from be better
        tile.keep_better(found, rows, tile.open[rows])
        stop = look()
        keep = tile.todo[rows].nonzero()[:, 0]
        rows = rows[keep]
        if len(rows):
            state, low = _rows(state, fill(keep)), low.rows(fill(keep))
        steps = min(2 * steps, most) if last else 2 * steps
    return stop


def advance(
    tile: Tile, method: Method, low: ScaledRows, state: Any, rows: Int[Tensor, " k"], steps: int
) -> Any:
    """Do some first-order steps; a row whose iterations run out stands still.

    Args:
        tile: The rows.
        method: Does the steps.
        low: Some rows, and what fills their block, in the method's precision.
        state: The method's state of these.
        rows: Which rows of the tile they are, (k,).
        steps: How many steps.

    Returns:
        The state after them.
    """
    left = (tile.most - tile.iterations[rows]).clamp(0, steps)
    short = set(left.tolist()) - {steps}
    whole = fill(torch.arange(len(rows), device=rows.device))
    for i in range(int(left.max())):
        old = _rows(state, whole) if short else state  # a copy: a step uses its state up
        state = method.step(low, state)
        if short:
            state = _where((left > i)[whole], state, old)
    tile.iterations[rows] += left
    return state


def newton_rounds(
    tile: Tile,
    state: newton.NewtonState,
    rows: Int[Tensor, " k"],
    moving: Bool[Tensor, " K"],
    careful: int | None = None,
) -> None:
    """Do Newton rounds until each moving row closes its gap or stands still.

    Args:
        tile: The rows.
        state: Where to start, of some rows and what fills their block.
        rows: Which rows of the tile, (k,).
        moving: Which rows of the tile to move, (K,).
        careful: Most rounds that end at the first change of a sign; when omitted, plain rounds,
            as many as `settings` says.
    """
    keep, scaled = moving[rows].nonzero()[:, 0], None
    rounds = tile.settings.newton_rounds if careful is None else careful
    if careful is None and len(keep):
        state, rows, stand = settle_supports(tile, state, rows, keep)
        keep = (stand & tile.todo[rows]).nonzero()[:, 0]
    for _ in range(rounds):
        if not len(keep):
            break
        if scaled is None or len(keep) < len(rows):
            state, rows = state.rows(fill(keep)), rows[keep]
            scaled = tile.scaled.rows(fill(rows))
        K = len(rows)
        old, state = state, newton.step(scaled, state, K, careful is not None)
        tile.iterations[rows] += 1
        moved = ((state.V - old.V).abs().sum(1) > 0) | (state.sigma != old.sigma)[:, 0]
        if careful is not None:
            moved |= state.flips != old.flips
        tile.keep_better(state, rows, torch.ones_like(moved[:K]))
        keep = (moved[:K] & tile.todo[rows]).nonzero()[:, 0]


def settle_supports(
    tile: Tile, state: newton.NewtonState, rows: Int[Tensor, " k"], keep: Int[Tensor, " m"]
) -> tuple[newton.NewtonState, Int[Tensor, " m"], Bool[Tensor, " m"]]:
    """Do the Newton rounds that need no exact moments, and certify where they end.

    Args:
        tile: The rows.
        state: Where to start, of some rows and what fills their block.
        rows: Which rows of the tile, (k,).
        keep: Which of these to move, (m,).

    Returns:
        The state of the rows to move, their numbers in the tile, and which of them are worth exact
        rounds.
    """
    rows = rows[keep]
    scaled = tile.scaled.rows(fill(rows))
    part, state = tile.scaled.rows(rows), state.rows(keep)
    tells = newton.tells(part, state)
    most = (tile.most - tile.iterations[rows]).clamp_max(tile.settings.newton_rounds) * tells
    found, done = newton.settle(part, state, most)
    tile.iterations[rows] += done
    some = fill(torch.arange(len(rows), device=rows.device))
    found = newton.init(scaled, found.V[some], found.mu[some], found.sigma[some])
    tile.keep_better(found, rows, tells)
    return found, rows, (done < most) | ~tells


def bisect_sigma(tile: Tile, look: Look) -> None:
    """Solve rooted rows as squared ones with the penalty times σ, and find σ.

    √q is the least of q/(2σ) + σ/2 (Sun & Zhang 2012), whose derivative in σ has the sign of
    σ − √q(σ): bisection finds σ also where a target can be matched exactly and σ vanishes.

    Args:
        tile: The rows, of the rooted loss.
        look: Called after each stage.
    """
    rows = tile.todo.nonzero()[:, 0]
    if not len(rows):
        return
    V = tile.V[fill(rows)]
    sigma = tile.scaled.rows(fill(rows)).root_mean_square(V).clamp(SMALLEST, 1.0)
    low, high = torch.full_like(sigma, SMALLEST), torch.ones_like(sigma)
    for i in range(tile.settings.most_sigmas):
        if look():
            break
        V = solve_at_sigma(tile, rows, V, sigma, look)
        residual = tile.scaled.rows(fill(rows)).root_mean_square(V)
        low = torch.where(residual > sigma, sigma, low)
        high = torch.where(residual > sigma, high, sigma)
        # the residual itself is a good guess; every other time make sure to halve
        sigma = torch.sqrt(low * high) if i % 2 else residual.clamp(low, high)
        keep = tile.todo[rows].nonzero()[:, 0]
        if not len(keep):
            break
        rows, keep = rows[keep], fill(keep)
        V, sigma, low, high = V[keep], sigma[keep], low[keep], high[keep]
    look()


def solve_at_sigma(
    tile: Tile,
    rows: Int[Tensor, " k"],
    V: Float[Tensor, "b n"],
    sigma: Float[Tensor, "b 1"],
    look: Look,
) -> Float[Tensor, "b n"]:
    """Solve rooted rows as squared ones at one σ each, and try rooted Newton rounds from there.

    Args:
        tile: The rows, of the rooted loss.
        rows: Which of them, (k,).
        V: Where they, and what fills their block, start, (b, n).
        sigma: Their σ, (b, 1).
        look: Called after each stage.

    Returns:
        The solutions of the squared problems, (b, n).
    """
    scaled, K = tile.scaled.rows(fill(rows)), len(rows)
    squared = replace(scaled, loss="squared", terms=scaled.terms.times(sigma))
    # a gap of the squared problem weighs 1/σ in the rooted one
    tol = (0.5 * tile.tol[fill(rows)] * sigma[:, 0]).clamp_min(1e-14)
    # rows that come here are none for coordinate descent
    settings = replace(tile.settings, descent=0.0)
    inner = Tile(squared.rows(slice(0, K)), V[:K], tol[:K], tile.most, settings)
    inner.iterations = tile.iterations[rows]
    run(inner, True, look)
    tile.iterations[rows] = inner.iterations
    filled = fill(torch.arange(K, device=rows.device))
    V = inner.V[filled]
    none = torch.zeros(len(V), dtype=torch.long, device=V.device)
    found = newton.NewtonState(V, scaled.moments(V), inner.mu[filled], sigma, none)
    tile.keep_better(found, rows, tile.open[rows])
    # with σ near and the support right, the rooted systems end it
    newton_rounds(tile, found, rows, tile.todo)
    return V


def _rows(state: Any, rows: Tensor) -> Any:
    pairs = ((f.name, getattr(state, f.name)) for f in fields(state))
    return replace(state, **{name: x[rows] if x.ndim else x for name, x in pairs})


# Row by row the one state or the other.
def _where(rows: Tensor, one: Any, other: Any) -> Any:
    pairs = ((f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return replace(
        one, **{name: torch.where(rows[:, None], a, b) if a.ndim else a for name, a, b in pairs}
    )
