"""The one loop: rows in tiles side by side, or one by one on sets of features; all certified."""

from typing import cast

import torch
from jaxtyping import Float, Int
from joblib import Parallel, delayed
from torch import Tensor

from simplicit.convex.problem import RowProblem
from simplicit.convex.shared import Design
from simplicit.convex.solution import Solution, Status
from simplicit.errors import InputError
from simplicit.solvers import working_set
from simplicit.solvers.stages import TILE
from simplicit.solvers.tiles import Callback, Course, Progress, Start, Watch, certify
from simplicit.solvers.working_set import WorkingSets

__all__ = ["Callback", "Progress", "solve"]


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
    start = _start(warm_start, problem)
    watch = Watch(time_limit, callback, len(start.W))
    if not len(start.W):
        return certify(problem, start.W, start.mu, start.iterations, tol, None)
    course = Course(tol, max_iterations, watch, device)
    every = torch.arange(len(start.W), device=start.W.device)
    few, many, shared = [], [], []
    for mask, part in problem.parts:
        tiles = _tiles(every[mask], start)
        if working_set.pays(part):
            sets = WorkingSets(part, workers, device)
            shared.append((sets, part))
            many += [(sets, part, rows) for rows in tiles]
        else:
            known = design if design is not None and design.fits(part) else Design(part, device)
            few += [(known, part, rows) for rows in tiles]
    jobs = [delayed(course.tile)(*job, start) for job in few]
    jobs += [delayed(course.by_sets)(*job, start) for job in many]
    pool = Parallel(n_jobs=max(1, min(workers, len(jobs))), backend="threading")
    found = Solution.concatenate(cast(list[Solution], pool(jobs)))
    order = torch.cat([rows for *_, rows in few + many]).argsort()
    found = found.rows(order)
    for sets, part in shared:
        if not sets.wide or watch.stop is not None:
            continue
        sets.design = None  # makes room
        try:
            known = Design(part, device)
        except InputError:  # no room for the whole Gram: these rows keep what they have
            continue
        start = Start(found.W, found.multiplier, found.iterations)
        tiles = _tiles(torch.tensor(sorted(sets.wide), device=every.device), start)
        more = pool(delayed(course.tile)(known, part, rows, start) for rows in tiles)
        place = every.clone()
        place[torch.cat(tiles)] = torch.arange(len(sets.wide), device=every.device) + len(every)
        found = Solution.concatenate([found, *cast(list[Solution], more)]).rows(place)
    return found


def _tiles(rows: Int[Tensor, " k"], start: Start) -> list[Int[Tensor, " t"]]:
    # cold and warm rows apart: no row's schedule depends on another's
    warm = (start.W[rows] != 0).any(1)
    return [some for part in (rows[~warm], rows[warm]) for some in part.split(TILE) if len(some)]


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
