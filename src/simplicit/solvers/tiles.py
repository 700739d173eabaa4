"""A tile of rows, from where they start to their certificate on the problem as given.

A tile is data: what is asked for (`Call`), the Gram in unit scale, the problem of its own rows and
their start. So any worker can solve it, in this process or in another one.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.convex.gram import fit_free
from simplicit.convex.problem import RowProblem
from simplicit.convex.products import fill
from simplicit.convex.scaled import ScaledRows
from simplicit.convex.shared import ScaledGram
from simplicit.convex.solution import Solution
from simplicit.solvers import stages
from simplicit.solvers.settings import Settings
from simplicit.solvers.status import certify
from simplicit.solvers.watch import Watch
from simplicit.solvers.working_set import WorkingSets

CLOSER = 0.9
"""Tolerance inside the solver, in that of the call: the certificate on the problem as given differs
from the solver's own by rounding."""


@dataclass(frozen=True)
class Start:
    """Where rows start.

    Attributes:
        W: Weights, (K, N).
        mu: Multipliers that belong to them, NaN where unknown, (K,).
        iterations: Iterations that have been spent on them, (K,).
    """

    W: Float[Tensor, "K N"]
    mu: Float[Tensor, "K"]
    iterations: Int[Tensor, "K"]

    def rows(self, index: Int[Tensor, " k"]) -> "Start":
        """Keep some rows.

        Args:
            index: Which, in this order, (k,).

        Returns:
            Where these start.
        """
        return Start(self.W[index], self.mu[index], self.iterations[index])


@dataclass(frozen=True)
class Call:
    """What one call of `solve` asks for.

    Attributes:
        tol: Accepted gap, relative to the row's unit.
        max_iterations: Cap on the iterations of a row.
        watch: Clock and callback.
        settings: Numbers of the stages.
        device: Where to iterate; the Gram's own if None.
    """

    tol: float
    max_iterations: int
    watch: Watch
    settings: Settings
    device: torch.device | str | None = None


@dataclass(frozen=True)
class Piece:
    """Some rows of a problem, all cold or all warm, and what it takes to solve them.

    Attributes:
        shared: The whole Gram in unit scale; or, for a single row, what rows share that are solved
            by working sets.
        rows: Their numbers among all rows of the call, (k,).
        problem: These rows, on the whole Gram.
        start: Where these rows start.
    """

    shared: ScaledGram | WorkingSets
    rows: Int[Tensor, " k"]
    problem: RowProblem
    start: Start


@dataclass(frozen=True)
class Answer:
    """What comes of a piece.

    Attributes:
        solution: That of its rows.
        left: Which of all rows need more than the piece had, (w,): an inverse of the whole Gram, or
            a larger working set.
        away: Whether another process found it, so that the callback has not seen it.
    """

    solution: Solution
    left: Int[Tensor, " w"]
    away: bool

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back from another process, or from a file: the callback has not seen it.

        Args:
            state: The attributes.
        """
        self.__dict__.update(state | {"away": True})


def solve_piece(asked: tuple[Call, Piece]) -> Answer:
    """Solve the rows of a piece.

    Args:
        asked: What is asked for, and the rows.

    Returns:
        Their solution.
    """
    call, piece = asked
    if isinstance(piece.shared, WorkingSets):
        solution, left = _solve_row(call, piece.shared, piece)
    else:
        solution = solve_tile(call, piece.shared, piece)
        left = torch.zeros_like(piece.problem.valid)
        if not piece.shared.inverses:
            more = solution.iterations < call.max_iterations
            left = piece.problem.valid & ~solution.solved.to(left.device) & more.to(left.device)
    call.watch.finish(len(left) - int(left.sum()))
    return Answer(solution, piece.rows[left.to(piece.rows.device)], call.watch.away)


def solve_tile(call: Call, shared: ScaledGram, piece: Piece) -> Solution:
    """Solve rows together.

    Args:
        call: What is asked for.
        shared: The whole Gram in unit scale. Without its inverses some rows may be left.
        piece: The rows.

    Returns:
        Their solution.
    """
    K = len(piece.rows)
    # the last row repeated fills whole blocks, and is not looked at
    whole = fill(torch.arange(K, device=piece.rows.device))
    problem, W = piece.problem.select(whole), piece.start.W[whole]
    warm = bool((W != 0).any())
    filled = ScaledRows.of(problem, shared)
    scaled, V = filled.rows(slice(0, K)), filled.scale(W)[:K]
    tol = torch.full_like(scaled.t2, CLOSER * call.tol)
    tile = stages.Tile(scaled, V, tol, call.max_iterations, call.settings)
    tile.iterations = piece.start.iterations.to(V.device)
    # what is certified already stays as it is, bit for bit
    given = torch.zeros_like(problem.valid)
    if warm:
        gap, unit = problem.gap(W), problem.unit
        given = gap <= call.tol * unit
        known = given[:K].to(tile.gap.device)
        tile.gap[known] = torch.where(unit > 0, gap / unit, 0.0)[:K][given[:K]].to(tile.gap)
        tile.tol[known] = torch.inf

    def look() -> bool:
        done = K - int(tile.todo.sum())
        return call.watch.look(piece.rows, tile.gap.clone(), int(tile.iterations.max()), done)

    stages.run(tile, warm, look, shared.inverses)
    found = torch.zeros_like(W)
    found[:K, shared.keep] = scaled.unscale(tile.V).to(W)
    fit_free(problem.gram, shared.free, shared.inverse_free, found)
    found[given] = W[given]
    before, mu = piece.start.mu[whole], scaled.unscale_multiplier(tile.mu, tile.sigma)[:, 0]
    mu = torch.where(given & ~before.isnan(), before, mu[whole.to(mu.device)].to(W))
    iterations = tile.iterations[whole.to(V.device)].to(W.device)
    solution = certify(problem, found, mu, iterations, call.tol, call.watch.stop)
    return solution.rows(whole[:K])


# one row on working sets, and whether it would have needed too large a one
def _solve_row(call: Call, sets: WorkingSets, row: Piece) -> tuple[Solution, Tensor]:
    problem, W, known, watch = row.problem, row.start.W, row.start.mu, call.watch
    mu, used, wide = known.nan_to_num(), row.start.iterations, False

    def on_set(part: RowProblem, W: Tensor, tol: float, left: int) -> Solution:
        one = torch.zeros(1, dtype=torch.long, device=W.device)
        inner = replace(call, tol=tol, max_iterations=left, watch=watch.quiet)
        shared = ScaledGram(part, call.device)
        return solve_tile(inner, shared, Piece(shared, one, part, Start(W, 0 * mu, one)))

    def look(gap: float, iterations: int, done: bool) -> bool:
        return watch.look(row.rows, W.new_tensor([gap]), iterations, int(done))

    if bool(problem.valid) and watch.stop is None:
        most = call.max_iterations - int(used)
        found = sets.solve(problem, W, call.tol, most, on_set, look)
        kept = found.W is W and not bool(known.isnan())
        W, mu, used = found.W, known if kept else found.mu, used + found.iterations
        wide = found.wide
    solution = certify(problem, W, mu, used, call.tol, watch.stop)
    return solution, torch.full_like(problem.valid, wide)
