"""The course of a tile, or of rows by working sets: watched, and certified in float64 as given."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Lock

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.convex.duality import mean_square
from simplicit.convex.gram import fit_free
from simplicit.convex.problem import RowProblem
from simplicit.convex.products import fill
from simplicit.convex.scaled import SMALLEST, Scaled
from simplicit.convex.shared import Design
from simplicit.convex.solution import Solution, Status
from simplicit.solvers.stages import Tile
from simplicit.solvers.working_set import WorkingSets


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


@dataclass(frozen=True)
class Start:
    """Where rows start.

    Attributes:
        W: Weights, (K, N).
        mu: Multipliers that belong to them, NaN where unknown, (K,).
        iterations: What has been spent on them, (K,).
    """

    W: Float[Tensor, "K N"]
    mu: Float[Tensor, "K"]
    iterations: Int[Tensor, "K"]


@dataclass
class Watch:
    """Clock and callback of one call."""

    limit: float | None
    callback: Callback | None
    total: int
    begin: float = field(default_factory=time.monotonic)
    done: int = 0
    stop: Status | None = None
    lock: Lock = field(default_factory=Lock)

    def look(
        self, rows: Int[Tensor, " k"], gap: Float[Tensor, " k"], iteration: int, done: int
    ) -> bool:
        """Report the relative gaps of rows, of which some are done.

        Returns:
            Whether to stop.
        """
        with self.lock:
            seconds = time.monotonic() - self.begin
            if self.limit is not None and seconds > self.limit:
                self.stop = self.stop or Status.TIME_LIMIT
            if self.callback is not None and self.stop is None:
                seen = Progress(rows, iteration, seconds, gap, self.done + done, self.total)
                if self.callback(seen):
                    self.stop = Status.INTERRUPTED
            return self.stop is not None

    def finish(self, rows: int) -> None:
        """Count rows as done."""
        with self.lock:
            self.done += rows

    @property
    def quiet(self) -> "Watch":
        """The same clock, without the callback."""
        return Watch(self.limit, None, self.total, self.begin)


@dataclass(frozen=True)
class Course:
    """How rows are solved.

    Attributes:
        tol: Accepted gap, relative to the row's unit.
        most: Cap on iterations per row.
        watch: Clock and callback.
        device: Where to iterate.
    """

    tol: float
    most: int
    watch: Watch
    device: torch.device | str | None = None

    def tile(
        self,
        design: Design,
        problem: RowProblem,
        rows: Int[Tensor, " k"],
        start: Start,
        inverses: bool = True,
    ) -> Solution:
        """Solve some rows of a problem together.

        Args:
            design: Factorised Gram.
            problem: All rows.
            rows: Which of them, all cold or all warm.
            start: Where all rows start.
            inverses: Whether rows may take steps that need one; without them some may be left.

        Returns:
            The solution of these rows.
        """
        # the last row repeated fills whole blocks, and is not looked at
        K, whole = len(rows), fill(rows)
        problem, W = problem.select(whole), start.W[whole]
        warm = bool((W != 0).any())
        filled = Scaled.of(problem, design)
        scaled, V = filled.rows(slice(0, K)), filled.scale(W)[:K]
        # the certificate on the problem as given differs by rounding: stay a little below
        tile = Tile(scaled, V, torch.full_like(scaled.t2, 0.9 * self.tol), self.most)
        tile.iterations = start.iterations[rows].to(V.device)
        # what is certified already stays as it is, bit for bit
        given = torch.zeros_like(problem.valid)
        if warm:
            gap, unit = problem.gap(W), problem.unit
            given = gap <= self.tol * unit
            known = given[:K].to(tile.gap.device)
            tile.gap[known] = torch.where(unit > 0, gap / unit, 0.0)[:K][given[:K]].to(tile.gap)
            tile.tol[known] = torch.inf

        def look() -> bool:
            done = K - int(tile.todo.sum())
            return self.watch.look(rows, tile.gap.clone(), int(tile.iterations.max()), done)

        tile.run(warm, look, inverses)
        if inverses and tile.bisects and self.watch.stop is None:
            tile.bisect_sigma(look)
        self.watch.finish(K if inverses else K - int(tile.open.sum()))
        found = torch.zeros_like(W)
        found[:K, design.keep] = scaled.unscale(tile.V).to(W)
        fit_free(problem.gram, design.free, design.inverse_free, found)
        found[given] = W[given]
        before = start.mu[whole]
        mu = scaled.unscale_multiplier(tile.mu, tile.sigma)[:, 0][fill(torch.arange(K))].to(W)
        mu = torch.where(given & ~before.isnan(), before, mu)
        iterations = tile.iterations[fill(torch.arange(K))].to(W.device)
        solution = certify(problem, found, mu, iterations, self.tol, self.watch.stop)
        return solution.rows(torch.arange(K))

    def by_sets(
        self, sets: WorkingSets, problem: RowProblem, rows: Int[Tensor, " k"], start: Start
    ) -> Solution:
        """Solve some rows of a problem one by one, after what needs no inverse of the whole Gram.

        Args:
            sets: What the rows share; learns which of them are too wide.
            problem: All rows.
            rows: Which of them, all cold or all warm.
            start: Where all rows start.

        Returns:
            The solution of these rows.
        """
        if sets.design is None:
            return Solution.concatenate(
                [self._row(sets, problem.select(k[None]), k, start) for k in rows]
            )
        first = self.tile(sets.design, problem, rows, start, inverses=False)
        used = start.iterations.clone()
        used[rows] = first.iterations
        start, found = replace(start, iterations=used), [first]
        left = (~first.solved & problem.valid[rows]).nonzero()[:, 0]
        found += [self._row(sets, problem.select(k[None]), k, start) for k in rows[left]]
        place = torch.arange(len(rows), device=rows.device)
        place[left] = torch.arange(len(left), device=rows.device) + len(rows)
        return Solution.concatenate(found).rows(place)

    def _row(
        self, sets: WorkingSets, problem: RowProblem, k: Int[Tensor, ""], start: Start
    ) -> Solution:
        W, known, watch = start.W[k][None], start.mu[k][None], self.watch
        mu, used = known.nan_to_num(), start.iterations[k][None]

        def inner(part: RowProblem, W: Tensor, tol: float, left: int) -> Solution:
            one = torch.zeros(1, dtype=torch.long, device=W.device)
            course = Course(tol, left, watch.quiet, self.device)
            return course.tile(Design(part, self.device), part, one, Start(W, 0 * mu, one))

        def look(gap: float, iterations: int, done: bool) -> bool:
            return watch.look(k[None], W.new_tensor([gap]), iterations, int(done))

        if bool(problem.valid) and watch.stop is None:
            found = sets.solve(problem, W, self.tol, self.most - int(used), inner, look)
            kept = found.W is W and not bool(known.isnan())
            W, mu, used = found.W, known if kept else found.mu, used + found.iterations
            if found.wide:
                sets.wide.append(int(k))
                return certify(problem, W, mu, used, self.tol, watch.stop)
        watch.finish(1)
        return certify(problem, W, mu, used, self.tol, watch.stop)


def certify(
    problem: RowProblem, W: Tensor, mu: Tensor, iterations: Tensor, tol: float, stop: Status | None
) -> Solution:
    """Certify W on the problem as given and name every row's status.

    Args:
        problem: The rows.
        W: Their weights, (K, N); rows that are not finite become zero.
        mu: Multipliers of the ball, (K,).
        iterations: What was spent, (K,).
        tol: Accepted relative gap.
        stop: Why the course was stopped, if it was.

    Returns:
        The solution.
    """
    finite = torch.isfinite(W).all(1)
    W = W if bool(finite.all()) else torch.where(finite[:, None], W, 0.0)
    moments = problem.gradient_moments(W)
    gap, objective = problem.gap(W, moments), problem.objective(W, moments)
    if bool(problem.shut.any()):
        # no solver saw that ball; what widening it would be worth follows from the moments
        q = mean_square(problem.gram, W, moments).clamp_min(SMALLEST**2 * problem.gram.t2)
        c = moments / torch.where(q > 0, q, 1.0).sqrt()[:, None]
        c = c if problem.loss == "root" else moments
        mu = problem.terms.dual_multiplier(c)[:, 0]
    out_of_budget = stop or Status.MAX_ITERATIONS
    status = []
    numbers = (gap, tol * problem.unit, problem.valid, finite)
    for value, limit, valid, whole in zip(*(x.tolist() for x in numbers), strict=True):
        if not valid:
            status.append(Status.INVALID_INPUT)
        elif not (value == value and whole):
            status.append(Status.NUMERICAL_ERROR)
        elif value <= limit:
            status.append(Status.SOLVED)
        elif value <= 100 * limit and stop is None:
            status.append(Status.SOLVED_INACCURATE)
        else:
            status.append(out_of_budget)
    return Solution(W, gap, objective, mu, tuple(status), iterations)
