"""Networks of convolutions, shortcuts and pooling: matched layer by layer on the model's states."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import progress
from .blockwise import Kept
from .budget import shares
from .channels import Channels, channels, follow
from .checkpoint import Checkpoint
from .equations import Equation, StateEquations
from .errors import InputError
from .frontier import Frontier
from .gram import Gram
from .moments import Candidate, moments
from .path import count, solve_to_budget
from .problem import RowProblem
from .recipe import Recipe, prune_smallest
from .records import Row, row_records, trace_records
from .refit import fit_to_budget
from .sensitivity import channel_sensitivity
from .solution import Solution
from .solvers import Callback, Progress, solve
from .states import Batches
from .support import bounded, choose, plan, refit_near

AWARE = 3
"""Times the targets of a state that is off are moved to where the row has it."""


@dataclass
class Share:
    """What the plan gives to the rows of one layer, group by group.

    Attributes:
        importance: What a unit of each row's loss is worth.
        keep: Weights of each row, where supports are eliminated.
        quota: Weights of all rows, where they are relaxed.
    """

    importance: list[Tensor]
    keep: list[list[int]]
    quota: list[int]


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
        self.shares: list[Share] = []
        self.level: float | None = None
        self.rows: list[Row] = []
        self.trace: list[Row] = []
        self.start = time.monotonic()
        self.earlier = {"level": 0.0, "solve": 0.0}
        shapes = [tuple(rows.weights(self.every[rows.index]).shape) for rows in self.layers]
        sizes = f"{sum(len(u) for u in stream)} {float(sum(u.double().sum() for u in stream)):.6e}"
        self.checkpoint = Checkpoint(checkpoint, recipe, shapes, sizes)

    @property
    def budget(self) -> int:
        """Non-zeros wanted in all rows together, under a budget: less what cannot be removed."""
        assert self.recipe.sparsity is not None
        kept = sum(e.phi.nnz for e in self.equations.hidden if isinstance(e.phi, Kept))
        return max(round((1 - self.recipe.sparsity) * self.equations.nonzeros) - kept, 0)

    def problem(self, gram: Gram) -> RowProblem:
        """Write the row problems of a group of channels.

        Args:
            gram: Their moments; the bias, if there is one, is the last feature.

        Returns:
            The rows, under a budget at penalty level 1.
        """
        ones = torch.ones_like(gram.G[0])
        if self.recipe.bias:
            ones[-1] = 0.0
        mean_square = float((gram.G.diagonal() * ones).sum() / ones.sum().clamp_min(1))
        scale = mean_square**0.5 or 1.0
        penalty = self.recipe.penalty(gram.m, ones * scale, ones)
        return RowProblem(gram, penalty, None, self.recipe.loss)

    def plan(self) -> None:
        """Under a budget, find the level and each row's share on the teacher's own states."""
        if self.recipe.sparsity is None:
            return
        if saved := self._restore("plan", "level"):
            self.level = saved[1]["level"]
            values = iter(saved[0].cpu().split([n for s in saved[1]["rows"] for n in s]))
            for sizes, keep, quota in zip(
                saved[1]["rows"], saved[1]["keep"], saved[1]["quota"], strict=True
            ):
                self.shares.append(Share([next(values)[:, 0] for _ in sizes], keep, quota))
            return
        begin, budget = time.monotonic(), self.budget
        grams = self._teacher_moments()
        problems = [[self.problem(gram) for gram in groups] for groups in grams]
        flat = [problem for groups in problems for problem in groups]
        importance = self._importance(problems)
        worth = [part for groups in importance for part in groups]
        keep: list[list[int]] = [[] for _ in flat]
        quota = [0 for _ in flat]
        with progress.task("spending the budget over the rows", total=1) as step:
            if self.recipe.eliminates:
                anchors = [
                    self._anchor(W, problem)
                    for rows, groups in zip(self.layers, problems, strict=True)
                    for W, problem in zip(rows.weights(self.every[rows.index]), groups, strict=True)
                ]
                self.level, keep, _ = plan(flat, worth, budget, self.workers, anchors)
            else:
                tol = self.recipe.tol
                self.level, found = solve_to_budget(flat, budget, tol=tol, workers=self.workers)
                counts = [count(s, p.free) for s, p in zip(found, flat, strict=True)]
                quota = list(shares(counts, budget))
            step(1, f"level {self.level:.3g}")
        parts = iter(zip(worth, keep, quota, strict=True))
        for groups in problems:
            some = [next(parts) for _ in groups]
            self.shares.append(Share(*(list(part) for part in zip(*some, strict=True))))
        records = {
            "level": self.level,
            "rows": [[len(part) for part in share.importance] for share in self.shares],
            "keep": [share.keep for share in self.shares],
            "quota": [share.quota for share in self.shares],
            "seconds": time.monotonic() - begin,
        }
        self.checkpoint.keep("plan", torch.cat(worth)[:, None], records)

    def _teacher_moments(self) -> list[list[Gram]]:
        frontier = Frontier(self.equations, self.stream, own=False)
        grams = []
        with progress.task("moments of the layers", total=len(self.layers)) as step:
            for index, equation in enumerate(self.every):
                for rows in (r for r in self.layers if r.index == index):
                    grams.append(moments(rows, equation, frontier, self.recipe.bias))
                    if not all(bool(torch.isfinite(gram.G).all()) for gram in grams[-1]):
                        raise InputError(
                            f"the states that {rows.name} reads are not finite on the calibration "
                            "inputs"
                        )
                    step(1)
                if index < len(self.equations.hidden):
                    frontier.advance(equation)
        return grams

    def _importance(self, problems: Sequence[Sequence[RowProblem]]) -> list[list[Tensor]]:
        if self.recipe.sensitivity:
            return channel_sensitivity(self.equations, self.layers, self.stream)
        return [[_inverse(problem.gram.t2) for problem in groups] for groups in problems]

    def _anchor(self, W: Tensor, problem: RowProblem) -> Tensor:
        return torch.nn.functional.pad(W.to(problem.gram.R), (0, int(self.recipe.bias)))

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

        start = rows.weights(equation)
        grams = moments(rows, equation, frontier, self.recipe.bias)
        problems = [self.problem(gram) for gram in grams]
        anchors = [self._anchor(w, p) for w, p in zip(start, problems, strict=True)]
        if self.recipe.eliminates:
            W = [
                choose(problem, self.shares[k].keep[g], None, self.workers, anchor)
                for g, (problem, anchor) in enumerate(zip(problems, anchors, strict=True))
            ]
            if self.recipe.relu_aware and equation.phi.name == "relu":
                for _ in range(AWARE):
                    aware = self._candidate(W)
                    known = [problem.gram for problem in problems]
                    grams = moments(rows, equation, frontier, self.recipe.bias, aware, known)
                    problems = [
                        replace(problem, gram=gram)
                        for problem, gram in zip(problems, grams, strict=True)
                    ]
                    W = [
                        refit_near(p, w != 0, a)
                        for p, w, a in zip(problems, W, anchors, strict=True)
                    ]
        else:
            W = []
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

    # one group by the recipe: relaxed and refitted, or eliminated already, and what that is worth
    def _solve_group(
        self, k: int, g: int, problem: RowProblem, W: list[Tensor], look: Callback
    ) -> tuple[RowProblem, Solution, Tensor]:
        recipe, tol, workers = self.recipe, self.recipe.tol, self.workers
        if recipe.eliminates:
            assert self.level is not None
            # rows that no output hears are worth nothing
            worth = self.shares[k].importance[g].clamp_min(1e-30)
            problem = bounded(problem, self.level / worth.to(W[g]))
            return problem, solve(problem, tol=tol, workers=workers, callback=look), W[g]
        if recipe.sparsity is not None:
            return fit_to_budget(
                problem,
                self.shares[k].quota[g],
                start=self.level,
                tol=tol,
                callback=look,
                workers=workers,
            )
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


def _inverse(t2: Tensor) -> Tensor:
    return torch.where(t2 > 0, 1 / t2, 0.0).cpu()
