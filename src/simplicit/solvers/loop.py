"""The one loop: rows in tiles side by side, each row certified in float64 as it was given."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import cast

import torch
from jaxtyping import Float, Int
from joblib import Parallel, delayed
from torch import Tensor

from ..blocks import fill
from ..duality import mean_square
from ..errors import InputError
from ..problem import RowProblem
from ..solution import Solution, Status
from .scaled import SMALLEST, Design, Scaled
from .tile import TILE, Tile


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
        design: Scaled Gram and factorisation of another problem on the same Gram; saves that work
            on a path. Rows it does not fit (other free features) get their own.
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
        known = design if design is not None and design.fits(part) else Design(part, device)
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
    def look(self, tile: Tile, rows: Int[Tensor, " k"]) -> bool:
        with self.lock:
            seconds = time.monotonic() - self.begin
            if self.limit is not None and seconds > self.limit:
                self.stop = self.stop or Status.TIME_LIMIT
            if self.callback is not None and self.stop is None:
                gap, iteration = tile.gap.clone(), int(tile.iterations.max())
                solved = self.done + len(rows) - int(tile.todo.sum())
                if self.callback(Progress(rows, iteration, seconds, gap, solved, self.total)):
                    self.stop = Status.INTERRUPTED
            return self.stop is not None

    def finish(self, rows: Int[Tensor, " k"]) -> None:
        """Count a tile as done."""
        with self.lock:
            self.done += len(rows)


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
    # the last row repeated fills whole blocks, and is not looked at
    K, whole = len(rows), fill(rows)
    problem, start = problem.select(whole), start[whole]
    warm = bool((start != 0).any())
    filled = Scaled.of(problem, design)
    scaled, V = filled.rows(slice(0, K)), filled.scale(start)[:K]
    # the certificate on the problem as given differs by rounding: stay a little below
    tile = Tile(scaled, V, torch.full_like(scaled.t2, 0.9 * tol), max_iterations)
    # what is certified already stays as it is, bit for bit
    given = torch.zeros_like(problem.valid)
    if warm:
        gap, unit = problem.gap(start), problem.unit
        given = gap <= tol * unit
        known = given[:K].to(tile.gap.device)
        tile.gap[known] = torch.where(unit > 0, gap / unit, 0.0)[:K][given[:K]].to(tile.gap)
        tile.tol[known] = torch.inf

    def look() -> bool:
        return watch.look(tile, rows)

    tile.run(warm, look)
    if tile.bisects and watch.stop is None:
        tile.bisect_sigma(look)
    watch.finish(rows)
    W = torch.zeros_like(start)
    W[:K, design.keep] = scaled.unscale(tile.V).to(start)
    design.recover_free(problem.gram, W)
    W = torch.where(given[:, None], start, W)
    before = known_mu[whole]
    mu = scaled.unscale_multiplier(tile.mu, tile.sigma)[:, 0][fill(torch.arange(K))].to(start)
    mu = torch.where(given & ~before.isnan(), before, mu)
    iterations = tile.iterations[fill(torch.arange(K))].to(start.device)
    return _solution(problem, W, mu, iterations, tol, watch).rows(torch.arange(K))


# Certifies W on the problem as given and names every row's status.
def _solution(
    problem: RowProblem, W: Tensor, mu: Tensor, iterations: Tensor, tol: float, watch: _Watch
) -> Solution:
    finite = torch.isfinite(W).all(1)
    W = torch.where(finite[:, None], W, 0.0)
    moments = problem.gradient_moments(W)
    gap, objective = problem.gap(W, moments), problem.objective(W, moments)
    if bool(problem.shut.any()):
        # no solver saw that ball; what widening it would be worth follows from the moments
        q = mean_square(problem.gram, W, moments).clamp_min(SMALLEST**2 * problem.gram.t2)
        c = moments / torch.where(q > 0, q, 1.0).sqrt()[:, None]
        c = c if problem.loss == "root" else moments
        mu = problem.terms.dual_multiplier(c)[:, 0]
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
