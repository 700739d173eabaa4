"""Networks of convolutions, shortcuts and pooling: matched layer by layer on the model's states."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simplicit.calibration.batches import Batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Candidate, moments
from simplicit.calibration.rows import Channels, channels, follow
from simplicit.convex.gram import Gram
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution
from simplicit.equations.network import Equation, StateEquations
from simplicit.matching.checkpoint import Checkpoint
from simplicit.matching.plan import Plan, Share, anchor, plan_layers, row_problem
from simplicit.matching.records import Row, row_records, trace_records
from simplicit.recipe import Recipe, prune_smallest
from simplicit.solvers import Callback, Progress, solve
from simplicit.sparsity.choice import bounded, choose, refit_near
from simplicit.sparsity.coupled import refit_coupled, shifted
from simplicit.sparsity.refit import fit_to_budget
from simplicit.system import progress

CHOICES = (2.0, 1.4, 1.0)
"""Parts of its share that a row keeps, each time its support is chosen."""

REFITS = 2
"""Rounds after that in front of a ReLU, with the supports as they are."""


class LayerwiseMatching:
    """The model while it is built: equations like the teacher's, one after another.

    Args:
        equations: The teacher.
        stream: Calibration inputs.
        recipe: What to solve; structure `layered`.
        workers: Parallel blocks of rows.
        checkpoint: Folder that keeps finished layers.

    Attributes:
        model: The equations matched so far.
        rows: One record per row problem.
        trace: Relative gaps against time.
        earlier: Seconds of each phase before a stop.
    """

    def __init__(
        self,
        equations: StateEquations,
        stream: Batches,
        recipe: Recipe,
        workers: int,
        checkpoint: Path | None,
    ) -> None:
        self.equations, self.stream, self.recipe, self.workers = equations, stream, recipe, workers
        self.layers = channels(equations)
        self.every = equations.layers
        self.model: list[Equation] = []
        self.planned: Plan | None = None
        self.rows: list[Row] = []
        self.trace: list[Row] = []
        self.start = time.monotonic()
        self.earlier = {"level": 0.0, "solve": 0.0}
        shapes = [tuple(rows.weights(self.every[rows.index]).shape) for rows in self.layers]
        sizes = f"{sum(len(u) for u in stream)} {float(sum(u.double().sum() for u in stream)):.6e}"
        self.checkpoint = Checkpoint(checkpoint, recipe, shapes, sizes)

    def plan(self) -> None:
        """Under a budget, find the level and each row's share on the teacher's own states."""
        if self.recipe.sparsity is None:
            return
        if saved := self._restore("plan", "level"):
            shares = list(zip(*(saved[1][name] for name in ("rows", "keep", "quota")), strict=True))
            coupling = saved[0][:, 0].cpu().split([K * K for K, _, _ in shares])
            flat = iter(
                Share(S.view(K, K), keep, quota)
                for S, (K, keep, quota) in zip(coupling, shares, strict=True)
            )
            groups = [rows.groups for rows in self.layers]
            parts = [[next(flat) for _ in range(n)] for n in groups]
            self.planned = Plan(saved[1]["level"], parts, saved[1]["coherence"])
            return
        begin = time.monotonic()
        self.planned = plan_layers(
            self.equations, self.layers, self.stream, self.recipe, self.workers
        )
        flat = [share for groups in self.planned.shares for share in groups]
        records = {
            "level": self.planned.level,
            "coherence": self.planned.coherence,
            "rows": [len(share.coupling) for share in flat],
            "keep": [share.keep for share in flat],
            "quota": [share.quota for share in flat],
            "seconds": time.monotonic() - begin,
        }
        coupling = torch.cat([share.coupling.flatten() for share in flat])
        self.checkpoint.keep("plan", coupling[:, None], records)

    def solve(self) -> None:
        """Match every layer, the first first, each on the states of the model so far.

        Without a closed loop all read the teacher's states.
        """
        frontier = Frontier(self.equations, self.stream, own=self.recipe.closed_loop)
        with progress.task("matching the layers", total=len(self.layers)) as step:
            for index, teacher in enumerate(self.every):
                equation = follow(teacher, self.model)
                for k, rows in enumerate(self.layers):
                    if rows.index == index:
                        equation = self._solve_layer(k, rows, equation, frontier)
                        step(1, rows.name)
                self.model.append(equation)
                if index < len(self.equations.hidden):
                    frontier.advance(equation)

    def _solve_layer(
        self, k: int, rows: Channels, equation: Equation, frontier: Frontier
    ) -> Equation:
        if saved := self._restore(f"layer-{k}", "solve"):
            self.rows += saved[1]["rows"]
            self.trace += saved[1]["trace"]
            found = saved[0].unflatten(0, (rows.groups, -1))
            return rows.put(equation, found[..., :-1], found[..., -1])
        begin = time.monotonic()
        events: list[tuple[float, Progress]] = []

        def look(event: Progress) -> None:
            events.append((time.monotonic() - self.start, event))

        grams = self._moments(k, rows, equation, frontier)
        problems = [row_problem(gram, self.recipe) for gram in grams]
        W: list[Tensor] = []
        if self.recipe.eliminates:
            problems, W = self._eliminate(k, rows, equation, frontier, problems)
        solutions: list[Solution] = []
        for g, problem in enumerate(problems):
            problem, solution, w = self._solve_group(k, g, problem, W, look)
            problems[g] = problem
            solutions.append(solution)
            W[g : g + 1] = [w]
        records: list[Row] = []
        for g, (problem, solution, w) in enumerate(zip(problems, solutions, W, strict=True)):
            for row in row_records(rows.name, problem, solution, w):
                records.append({**row, "row": row["row"] + g * len(w)})
        trace = list(trace_records(rows.name, events))
        self.rows += records
        self.trace += trace
        found = self._candidate(W)
        both = torch.cat([found.W, found.shift[..., None]], 2).flatten(0, 1)
        kept = {"rows": records, "trace": trace, "seconds": time.monotonic() - begin}
        self.checkpoint.keep(f"layer-{k}", both, kept)
        return rows.put(equation, found.W, found.shift)

    # Supports, chosen in steps: in between the targets of ReLU move with what the rows make of
    # them, and rows make up for each other's errors.
    def _eliminate(
        self,
        k: int,
        rows: Channels,
        equation: Equation,
        frontier: Frontier,
        problems: list[RowProblem],
    ) -> tuple[list[RowProblem], list[Tensor]]:
        assert self.planned is not None
        anchors = [anchor(w, self.recipe) for w in rows.weights(equation)]
        aware = self.recipe.relu_aware and equation.phi.name == "relu"
        parts: Sequence[float | None] = CHOICES if self.recipe.sensitivity else CHOICES[-1:]
        if aware:
            parts = (*CHOICES, *[None] * REFITS)
        W: list[Tensor] = []
        for part in parts:
            if W and aware:
                known = [problem.gram for problem in problems]
                grams = self._moments(k, rows, equation, frontier, self._candidate(W), known)
                problems = [replace(p, gram=g) for p, g in zip(problems, grams, strict=True)]
            groups = zip(
                problems, self.planned.shares[k], anchors, W or [None] * len(problems), strict=True
            )
            W = [self._choose(*group, part) for group in groups]
        return problems, W

    # one group: supports with a part of its share, or as they are, in view of the weights so far
    def _choose(
        self,
        problem: RowProblem,
        share: Share,
        start: Tensor,
        before: Tensor | None,
        part: float | None,
    ) -> Tensor:
        if part is not None:
            gram = problem.gram
            gram = gram if before is None else shifted(gram, before, share.coupling)
            keep = [round(part * n) for n in share.keep]
            W = choose(replace(problem, gram=gram), keep, None, self.workers, start)
        else:
            assert before is not None
            W = refit_near(problem, before != 0, start)
        return refit_coupled(problem, W, share.coupling) if self.recipe.sensitivity else W

    def _moments(
        self,
        k: int,
        rows: Channels,
        equation: Equation,
        frontier: Frontier,
        aware: Candidate | None = None,
        known: list[Gram] | None = None,
    ) -> list[Gram]:
        coherence = 0.0 if self.planned is None else self.planned.coherence[k]
        bias = self.recipe.bias
        return moments(rows, equation, frontier, bias, coherence, aware, known, self.workers)

    # one group by the recipe: relaxed and refitted, or eliminated already, and what that is worth
    def _solve_group(
        self, k: int, g: int, problem: RowProblem, W: list[Tensor], look: Callback
    ) -> tuple[RowProblem, Solution, Tensor]:
        recipe, tol, workers = self.recipe, self.recipe.tol, self.workers
        if self.planned is not None:
            level, share = self.planned.level, self.planned.shares[k][g]
            if not recipe.eliminates:
                return fit_to_budget(
                    problem, share.quota, start=level, tol=tol, callback=look, workers=workers
                )
            # rows that no output hears are worth nothing
            worth = share.importance.clamp_min(1e-30)
            problem = bounded(problem, level / worth.to(W[g]))
            return problem, solve(problem, tol=tol, workers=workers, callback=look), W[g]
        solution = solve(problem, tol=tol, callback=look, workers=workers)
        w = solution.W
        if recipe.sparsity_ratio:
            w[:, ~problem.free] = prune_smallest(w[:, ~problem.free], recipe.sparsity_ratio)
        return problem, solution, w

    def _candidate(self, W: Sequence[Tensor]) -> Candidate:
        every = torch.stack(list(W))
        if not self.recipe.bias:
            return Candidate(every, torch.zeros_like(every[..., 0]))
        return Candidate(every[..., :-1], every[..., -1])

    def _restore(self, name: str, phase: str) -> tuple[Tensor, dict[str, Any]] | None:
        saved = self.checkpoint.restore(name)
        if saved:
            # time spent before the stop counts
            self.earlier[phase] += saved[1]["seconds"]
            self.start -= saved[1]["seconds"]
        return saved

    @property
    def matched(self) -> StateEquations:
        """The model's equations, when all layers are matched."""
        return replace(self.equations, hidden=tuple(self.model[:-1]), output=self.model[-1])
