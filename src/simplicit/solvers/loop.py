"""The one loop: a few ADMM steps, Newton rounds, a float64 certificate; until every row is done."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from threading import Lock
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from joblib import Parallel, delayed
from torch import Tensor

from ..errors import InputError
from ..problem import RowProblem, mean_square
from ..solution import Solution, Status
from . import newton
from .admm import Admm
from .scaled import SMALLEST, Design, Scaled

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


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each stage.

    Attributes:
        rows: Which rows the numbers belong to.
        iteration: Iterations of those rows so far.
        seconds: Since `solve` was called.
        gap: Their relative duality gaps, (k,).
        solved: Rows finished so far, of `total`.
        total: All rows.
    """

    rows: Int[Tensor, " k"]
    iteration: int
    seconds: float
    gap: Float[Tensor, " k"]
    solved: int
    total: int


Callback = Callable[[Progress], bool | None]


def solve(
    problem: RowProblem,
    tol: float = 1e-4,
    max_iterations: int = 2000,
    time_limit: float | None = None,
    device: torch.device | str | None = None,
    warm_start: Solution | Float[Tensor, "K N"] | None = None,
    callback: Callback | None = None,
    design: Design | None = None,
    workers: int = 1,
) -> Solution:
    """Solve every row and certify each in float64.

    Args:
        problem: K rows on one Gram.
        tol: Accepted duality gap, relative to ½·t2 of the row (rooted loss: to √t2).
        max_iterations: Cap on first-order steps and Newton rounds per row.
        time_limit: Seconds after which no further stage is started.
        device: Where to iterate; the Gram's own by default.
        warm_start: Weights (K, N), or the solution of a similar problem. Its interrupted rows
            start anew, so stopping and going on gives the same bits as never stopping.
        callback: Called after each stage; returning True stops.
        design: Scaled Gram and factorisation of another problem on the same Gram with the same
            free features; saves that work on a path.
        workers: Threads that solve blocks of rows side by side. They share the arrays; the blocks,
            and with one BLAS thread the bits, do not depend on how many there are.

    Returns:
        Weights, gaps, objectives, multipliers, statuses and iterations.

    Raises:
        InputError: If an argument is not usable.
    """
    if not 0 <= tol < float("inf"):
        raise InputError(f"tol={tol}: must be finite and at least 0")
    if max_iterations < 0:
        raise InputError(f"max_iterations={max_iterations}: must be at least 0")
    if time_limit is not None and not time_limit >= 0:
        raise InputError(f"time_limit={time_limit}: must be at least 0, in seconds")
    start, known_mu = _start(warm_start, problem)
    warm = (start != 0).any(1)
    watch = _Watch(time_limit, callback, len(start))
    if not len(start):
        return _solution(problem, start, known_mu, known_mu.long(), tol, watch)
    tiles = []
    for mask, part in problem.parts:
        same = torch.equal(part.free | part.shut, problem.free)
        known = design if design is not None and same else Design(part, device)
        # cold and warm rows apart: no row's schedule depends on another's
        for rows in (mask & ~warm, mask & warm):
            tiles += [(part, known, some) for some in rows.nonzero()[:, 0].split(TILE) if len(some)]
    pool = Parallel(n_jobs=max(1, min(workers, len(tiles))), backend="threading")
    solutions = pool(
        delayed(_solve_tile)(part, known, start, known_mu, rows, tol, max_iterations, watch)
        for part, known, rows in tiles
    )
    order = torch.cat([rows for _, _, rows in tiles])
    return Solution.concatenate(cast(list[Solution], solutions)).rows(order.argsort())


@dataclass
class _Watch:
    """Clock and callback of one call."""

    limit: float | None
    callback: Callback | None
    total: int
    begin: float = field(default_factory=time.monotonic)
    done: int = 0
    stop: Status | None = None
    lock: Lock = field(default_factory=Lock)

    # report a tile's state and tell whether to stop
    def look(self, tile: "_Tile", rows: Int[Tensor, " k"]) -> bool:
        with self.lock:
            seconds = time.monotonic() - self.begin
            if self.limit is not None and seconds > self.limit:
                self.stop = self.stop or Status.TIME_LIMIT
            if self.callback is not None and self.stop is None:
                gap, iteration = tile.gap[: len(rows)], int(tile.iterations.max())
                solved = self.done + len(rows) - int(tile.todo.sum())
                if self.callback(Progress(rows, iteration, seconds, gap, solved, self.total)):
                    self.stop = Status.INTERRUPTED
            return self.stop is not None

    def finish(self, rows: Int[Tensor, " k"]) -> None:
        """Count a tile as done."""
        with self.lock:
            self.done += len(rows)


class _Tile:
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
    def todo(self) -> Bool[Tensor, " K"]:
        return self.rows & ~(self.gap <= self.tol) & (self.iterations < self.most)

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
        open = self.rows & ~(self.gap <= self.tol)
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
        # bisection rests on exact squared solves, so on Newton
        bisect = scaled.loss == "root" and NEWTON_ROUNDS > 0
        sigma = scaled.root_mean_square(V)
        first = newton.init(scaled, V, scaled.multiplier(V, sigma), sigma)
        self.consider(first, self.rows)
        if warm:
            self.newton(first, self.todo & (self.gap <= NEAR))
        stop = look()
        methods, most = (METHODS[:1], ROOT_STEPS) if bisect else (METHODS, MOST_STEPS)
        for method in methods:
            if stop or not bool(self.todo.any()):
                break
            low = scaled.to(method.dtype)
            state = method.init(low, self.V.to(method.dtype))
            steps = FIRST_STEPS // 2 if warm else FIRST_STEPS
            while steps <= most and bool(self.todo.any()) and not stop:
                state = self.advance(method, low, state, steps)
                W, mu, sigma = state.W.double(), state.mu.double(), state.sigma.double()
                self.newton(newton.init(scaled, W, mu, sigma), self.rows & ~(self.gap <= self.tol))
                stop = look()
                last = method is METHODS[-1] and not bisect
                steps = min(2 * steps, most) if last else 2 * steps

    def bisect_sigma(self, look: Callable[[], bool]) -> None:
        """Solve rooted rows as squared ones with the penalty times σ, and find σ.

        √q is the least of q/(2σ) + σ/2 (Sun & Zhang 2012), whose derivative in σ has the sign of
        σ − √q(σ): bisection finds σ also where a target can be matched exactly and σ vanishes.
        """
        V, start = self.V, self.iterations.clone()
        low, high = torch.full_like(self.sigma, SMALLEST), torch.ones_like(self.sigma)
        sigma = self.scaled.root_mean_square(V).clamp(SMALLEST, 1.0)
        for i in range(MOST_SIGMAS if NEWTON_ROUNDS else 0):
            if not bool(self.todo.any()) or look():
                break
            terms = self.scaled.terms.times(sigma)
            squared = replace(self.scaled, loss="squared", terms=terms)
            # a gap of the squared problem weighs 1/σ in the rooted one
            tol = (0.5 * self.tol * sigma[:, 0]).clamp_min(1e-14)
            inner = _Tile(squared, V, self.K, tol, self.most)
            inner.rows, inner.iterations = self.todo, self.iterations
            inner.run(warm=True, look=lambda: False)
            V, self.iterations = inner.V, inner.iterations
            moments = self.scaled.moments(V)
            still = torch.zeros_like(start)
            self.consider(newton.NewtonState(V, moments, inner.mu, sigma, still), self.todo)
            found = self.scaled.root_mean_square(V)
            low, high = (
                torch.where(found > sigma, sigma, low),
                torch.where(found > sigma, high, sigma),
            )
            # the residual itself is a good guess; every other time make sure to halve
            middle = torch.sqrt(low * high)
            sigma = middle if i % 2 else found.clamp(low, high)

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


def _solve_tile(
    problem: RowProblem,
    design: Design,
    start: Tensor,
    known_mu: Tensor,
    rows: Tensor,
    tol: float,
    max_iterations: int,
    watch: _Watch,
) -> Solution:
    K = len(rows)
    # the last row repeated fills the tile, and is not looked at
    whole = torch.cat([rows, rows[-1:].expand(max(TILE - K, 0))])
    problem, start = problem.select(whole), start[whole]
    warm = bool((start != 0).any())
    scaled = Scaled.of(problem, design)
    # the certificate on the problem as given differs by rounding: stay a little below
    below = torch.full_like(scaled.t2, 0.9 * tol)
    tile = _Tile(scaled, scaled.scale(start), K, below, max_iterations)
    # what is certified already stays as it is, bit for bit
    given = problem.gap(start) <= tol * problem.unit if warm else torch.zeros_like(problem.valid)
    tile.rows = tile.rows & ~given.to(tile.rows.device)

    def look() -> bool:
        return watch.look(tile, rows)

    tile.run(warm, look)
    if problem.loss == "root" and watch.stop is None and bool(tile.todo.any()):
        tile.bisect_sigma(look)
    watch.finish(rows)
    W = torch.zeros_like(start)
    W[:, design.keep] = scaled.unscale(tile.V).to(start)
    design.recover_free(problem.gram, W)
    W = torch.where(given[:, None], start, W)
    mu = scaled.unscale_multiplier(tile.mu, tile.sigma)[:, 0].to(start)
    mu = torch.where(given & ~known_mu[whole].isnan(), known_mu[whole], mu)
    return _solution(problem, W, mu, tile.iterations.to(start.device), tol, watch).rows(
        torch.arange(K)
    )


# Certifies W on the problem as given and names every row's status.
def _solution(
    problem: RowProblem, W: Tensor, mu: Tensor, iterations: Tensor, tol: float, watch: _Watch
) -> Solution:
    finite = torch.isfinite(W).all(1)
    W = torch.where(finite[:, None], W, 0.0)
    moments = problem.gradient_moments(W)
    gap, objective = problem.gap(W, moments), problem.objective(W, moments)
    if bool(problem.shut.any()):
        sigma = torch.sqrt(mean_square(problem.gram, W, moments))[:, None]
        root = problem.loss == "root"
        mu = problem.terms.dual_multiplier(moments / sigma if root else moments)[:, 0]
    limits = tol * problem.unit
    out_of_budget = watch.stop or Status.MAX_ITERATIONS
    status = []
    for k in range(len(W)):
        value, limit = float(gap[k]), float(limits[k])
        if not bool(problem.valid[k]):
            status.append(Status.INVALID_INPUT)
        elif not (value == value and bool(finite[k])):
            status.append(Status.NUMERICAL_ERROR)
        elif value <= limit:
            status.append(Status.SOLVED)
        elif value <= 100 * limit and watch.stop is None:
            status.append(Status.SOLVED_INACCURATE)
        else:
            status.append(out_of_budget)
    return Solution(W, gap, objective, mu, tuple(status), iterations)


# Weights to start from and, NaN where unknown, the multipliers that belong to them.
def _start(warm_start: Solution | Tensor | None, problem: RowProblem) -> tuple[Tensor, Tensor]:
    start = torch.zeros_like(problem.gram.R)
    mu = torch.full_like(problem.gram.t2, torch.nan)
    if isinstance(warm_start, Solution):
        fresh = [s in (Status.INTERRUPTED, Status.UNSOLVED) for s in warm_start.status]
        known = warm_start.W.masked_fill(torch.tensor(fresh, device=start.device)[:, None], 0.0)
    else:
        known = warm_start
    if known is None:
        return start, mu
    if known.shape != start.shape:
        raise InputError(
            f"warm_start {tuple(known.shape)}: accepted are weights {tuple(start.shape)}"
        )
    if not bool(torch.isfinite(known).all()):
        raise InputError("warm_start is not finite: give finite weights or leave it out")
    if isinstance(warm_start, Solution):
        mu = warm_start.multiplier.to(mu)
    return known.to(start), mu
