"""The one loop: rows in tiles side by side, by any executor; all certified."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.convex.problem import RowProblem
from simplicit.convex.products import BLOCK
from simplicit.convex.shared import WIDE, ScaledGram
from simplicit.convex.solution import Solution, Status
from simplicit.errors import InputError
from simplicit.solvers import working_set
from simplicit.solvers.settings import DEFAULTS, Settings
from simplicit.solvers.status import certify
from simplicit.solvers.tiles import Answer, Call, Piece, Start, solve_piece
from simplicit.solvers.watch import Callback, Progress, Watch
from simplicit.solvers.working_set import WorkingSets
from simplicit.system import threads
from simplicit.workers.executors import count, of, pool
from simplicit.workers.run import run

PRODUCTS = 100.0
"""Products of a row with the Gram, about, until it is certified; fitted to times."""

FIRST = 3
"""Times as many steps, for rows that are too wide for working sets, before their systems: these are
large as long as many weights are to be zero yet."""

__all__ = ["Callback", "Progress", "solve"]


def solve(
    problem: RowProblem,
    tol: float = 1e-4,
    max_iterations: int = 2000,
    time_limit: float | None = None,
    device: torch.device | str | None = None,
    warm_start: Solution | Float[Tensor, "K N"] | None = None,
    callback: Callback | None = None,
    design: ScaledGram | None = None,
    workers: int | None = None,
    *,
    executor: Executor | None = None,
    settings: Settings | None = None,
) -> Solution:
    """Solve every row and certify each in float64.

    A row's bits depend neither on the other rows nor on who solves it, where all use as many torch
    threads. Several workers use one each.

    Args:
        problem: K rows on one Gram.
        tol: Accepted duality gap, relative to ½·t2 of the row (rooted loss: to √t2).
        max_iterations: Cap on first-order steps and Newton rounds per row.
        time_limit: Seconds after which no further stage is started.
        device: Where to iterate; the Gram's own by default.
        warm_start: Weights (K, N), or the solution of a similar problem. Its interrupted rows
            start anew, so stopping and going on gives the same bits as never stopping.
        callback: Called after each stage; returning True stops. Of rows that another process
            solves, it is called after the last stage.
        design: The Gram of another problem on the same data, in unit scale and factorised; saves
            that work on a path. Rows that it does not fit (other free features) get their own.
        workers: Threads that solve tiles of rows side by side; one a processor when omitted. They
            share the arrays.
        executor: Who solves the tiles instead of such threads, see `workers.run`.
        settings: Numbers of the solver's stages.

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
    many = count(workers) if executor is None else of(executor)
    start = _start(warm_start, problem)
    K = len(start.W)
    watch = Watch(time_limit, callback, K)
    if not K:
        return certify(problem, start.W, start.mu, start.iterations, tol, None)
    call = Call(tol, max_iterations, watch, settings or DEFAULTS, device)
    # rows apart by which features are free, cold and warm ones apart, in tiles
    every = torch.arange(K, device=start.W.device)
    large = [working_set.pays(part, call.settings) for _, part in problem.parts]
    cut = [
        (part, _tiles(every[mask], start, call, many, WIDE if pays else BLOCK))
        for (mask, part), pays in zip(problem.parts, large, strict=True)
    ]
    with ExitStack() as stack:
        wide = any(large)
        pieces = K if wide else sum(len(rows) for _, rows in cut)
        executor = executor or stack.enter_context(pool(many, pieces))
        if executor is not None:
            stack.enter_context(threads.single_threaded())
            # on an error, or Ctrl-C, tiles that are being solved end after their stage
            stack.callback(watch.end)
        groups = [_Group.of(part, rows, call, design, min(many, K)) for part, rows in cut]
        found, left = _solve(groups, start, call, executor)
        for group in groups:
            found = _finish(group, left, start, found, call, executor)
    return found


@dataclass
class _Group:
    """Rows that share more than the Gram.

    Attributes:
        problem: All rows of the call, whose free features are those of this group's rows.
        tiles: Row numbers, (t,) in each tile.
        shared: What the solvers need of the Gram.
        sets: Where there are many features, what rows share that are solved by working sets: all
            rows if the scaled Gram has no room, else those that coordinate descent leaves.
    """

    problem: RowProblem
    tiles: Sequence[Tensor]
    shared: ScaledGram | WorkingSets
    sets: WorkingSets | None = None

    @classmethod
    def of(
        cls,
        problem: RowProblem,
        tiles: Sequence[Tensor],
        call: Call,
        known: ScaledGram | None,
        workers: int,
    ) -> "_Group":
        if working_set.pays(problem, call.settings):
            sets = WorkingSets(problem, workers, call.device, call.settings)
            if sets.shared is None:
                return cls(problem, torch.cat([*tiles]).split(1), sets, sets)
            return cls(problem, tiles, sets.shared, sets)
        if known is None or not known.fits(problem):
            known = ScaledGram(problem, call.device)
        return cls(problem, tiles, known)

    def pieces(self, start: Start) -> Iterator[Piece]:
        """Make a piece of each tile when it is asked for.

        Args:
            start: Where all rows of the call start.

        Yields:
            The tiles' rows, with what they share.
        """
        for rows in self.tiles:
            yield Piece(self.shared, rows, self.problem.select(rows), start.rows(rows))


def _solve(
    groups: Sequence[_Group], start: Start, call: Call, executor: Executor | None
) -> tuple[Solution, Int[Tensor, " w"]]:
    # the rows of some groups in the order of their numbers, and those that need more
    # the call as it is when a piece goes: it may have been stopped meanwhile
    pieces = ((call, piece) for group in groups for piece in group.pieces(start))
    tiles = [(group, rows) for group in groups for rows in group.tiles]
    size = max(len(rows) for _, rows in tiles)
    work = PRODUCTS * size * float(start.W.shape[1]) ** 2
    answers: list[Answer] = []
    for (group, rows), answer in zip(
        tiles, run(solve_piece, pieces, executor, work=work), strict=True
    ):
        if answer.away:
            _report(call.watch, group.problem.unit[rows], rows, answer)
        answers.append(answer)
    order = torch.cat([rows for _, rows in tiles]).argsort()
    found = Solution.concatenate([answer.solution for answer in answers]).rows(order)
    return found, torch.cat([answer.left for answer in answers]).sort().values


def _report(watch: Watch, unit: Tensor, rows: Tensor, answer: Answer) -> None:
    # what another process has found, to the callback of this one
    gap = torch.where(unit > 0, answer.solution.gap / unit, 0.0)
    watch.finish(len(rows) - len(answer.left))
    watch.look(rows, gap, int(answer.solution.iterations.max()), 0)


# rows that are left by working sets, those for which these would be too large on the whole Gram
def _finish(
    group: _Group,
    left: Tensor,
    start: Start,
    found: Solution,
    call: Call,
    executor: Executor | None,
) -> Solution:
    mine = left[torch.isin(left, torch.cat([*group.tiles]))]
    if group.sets is None or not len(mine) or call.watch.stop is not None:
        return found
    if group.shared is not group.sets:
        group.shared, group.sets.shared = group.sets, None  # makes room
        own = Start(start.W, start.mu, found.iterations)
        found, mine = _again(replace(group, tiles=mine.split(1)), own, found, call, executor)
    if not len(mine) or call.watch.stop is not None:
        return found
    try:
        shared = ScaledGram(group.problem, call.device)
    except InputError:  # no room for the whole Gram: these rows keep what they have
        return found
    own = Start(found.W, found.multiplier, found.iterations)
    tiles = [some for tile in _tiles(mine, own, call, 1) for some in tile.split(WIDE)]
    given = call.settings
    steps = FIRST * given.first_steps
    settings = replace(
        given,
        first_steps=steps,
        most_steps=max(given.most_steps, steps),
        root_steps=max(given.root_steps, steps),
        descent=0.0,  # has left them before
        near=0.0,  # Newton would begin with a working set's weights
    )
    call = replace(call, settings=settings)
    return _again(_Group(group.problem, tiles, shared), own, found, call, executor)[0]


# what is found, some of its rows anew, and which of these need more
def _again(
    group: _Group, start: Start, found: Solution, call: Call, executor: Executor | None
) -> tuple[Solution, Tensor]:
    more, left = _solve([group], start, call, executor)
    place = torch.arange(len(found.W), device=left.device)
    mine = torch.cat([*group.tiles]).sort().values
    place[mine] = torch.arange(len(mine), device=left.device) + len(place)
    return Solution.concatenate([found, more]).rows(place), left


def _tiles(
    rows: Int[Tensor, " k"], start: Start, call: Call, many: int, block: int = BLOCK
) -> list[Int[Tensor, " t"]]:
    # cold and warm rows apart: no row's schedule depends on another's
    warm = (start.W[rows] != 0).any(1)
    found: list[Tensor] = []
    for part in (rows[~warm], rows[warm]):
        # few rows are cut so that all who work have some, but no block of a product
        some = -(-len(part) // (many * block)) * block
        found += part.split(min(call.settings.tile, max(some, 1)))
    return [tile for tile in found if len(tile)]


def _start(warm_start: Solution | Tensor | None, problem: RowProblem) -> Start:
    start = torch.zeros_like(problem.gram.R)
    mu = torch.full_like(problem.gram.t2, torch.nan)
    none = torch.zeros(len(start), dtype=torch.long, device=start.device)
    if isinstance(warm_start, Solution):
        fresh = [s in (Status.INTERRUPTED, Status.UNSOLVED) for s in warm_start.status]
        known = warm_start.W.masked_fill(torch.tensor(fresh, device=start.device)[:, None], 0.0)
    else:
        known = warm_start
    if known is None:
        return Start(start, mu, none)
    if known.shape != start.shape:
        raise InputError(
            f"warm_start {tuple(known.shape)}: accepted are weights {tuple(start.shape)}"
        )
    if not bool(torch.isfinite(known).all()):
        raise InputError("warm_start is not finite: give finite weights or leave it out")
    if isinstance(warm_start, Solution):
        mu = warm_start.multiplier.to(mu)
    return Start(known.to(start), mu, none)
