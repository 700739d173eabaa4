"""One convex problem per row: find the level that meets the budget, solve layer by layer, refit."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import progress, threads
from .certificate import nilpotent_weights
from .checkpoint import Checkpoint
from .equations import StateEquations
from .equilibrium import Block
from .errors import InputError
from .gram import Gram
from .match import RowBlock, Structure, penalty_scales, row_blocks
from .model import ImplicitModel
from .path import count, solve_to_budget
from .problem import Ball, RowProblem
from .recipe import Recipe, prune_smallest
from .refit import fit_to_budget
from .solution import Solution, Status
from .solvers import Progress, solve
from .states import Batches, collect

Row = dict[str, Any]


class Matching:
    """The model while it is built: weights W of [Z Y] on V = [X U 1], block after block."""

    def __init__(
        self,
        equations: StateEquations,
        stream: Batches,
        recipe: Recipe,
        structure: Structure,
        workers: int | None,
        device: torch.device | str | None,
        checkpoint: Path | None,
    ) -> None:
        self.equations, self.stream, self.recipe = equations, stream, recipe
        self.structure: Structure = structure
        self.folder, self.checkpoint = checkpoint, Checkpoint(None)
        self.workers = min(workers or threads.available(), threads.available())
        self.device = torch.device(device or equations.output.terms[0].weight.device)
        self.blocks = row_blocks(equations, structure, recipe.bias)
        n, p, q = equations.n, equations.p, equations.q
        kind = {"dtype": torch.float64, "device": self.device}
        self.W = torch.zeros(n + q, n + p + int(recipe.bias), **kind)
        A, *_ = equations.dense()
        slopes = [e.phi.lipschitz for e in reversed(equations.hidden) for _ in range(e.size)]
        self.lipschitz = torch.tensor(slopes, dtype=torch.float64)
        # weights in which the teacher itself is inside the ball; for a homogeneous φ that is the
        # papers' rescaling of the teacher, exactly: A' = Ω⁻¹ A Ω
        self.omega = nilpotent_weights(A.cpu(), self.lipschitz, recipe.kappa).to(self.device)
        self.rho = torch.ones(self.W.shape[1], **kind)
        self.quotas: list[int | None] = [None] * len(self.blocks)
        self.level: float | None = None
        self.rows: list[Row] = []
        self.trace: list[Row] = []
        self.start = time.monotonic()
        self.earlier = {"level": 0.0, "solve": 0.0}

    def gram(self, done: int | None) -> Gram:
        """Pass over the data: teacher's targets; the model's states for the first `done` blocks.

        Returns:
            Statistics of features V = [X U 1] and targets [Z Y].

        Raises:
            InputError: If the states are not finite.
        """
        e = self.equations
        gram = Gram(self.W.shape[1], e.n + e.q, self.device)
        for batch in self.stream:
            U, Z, Y = (t.to(self.device) for t in collect(e, batch))
            X = e.activate(Z) if done is None else self.states(U, e.activate(Z), done)
            gram.update(self.features(X, U), torch.cat([Z, Y], dim=1))
        if not bool(torch.isfinite(gram.G).all() and torch.isfinite(gram.R).all()):
            raise InputError("the network's states are not finite on the calibration inputs")
        return gram

    def features(self, X: Tensor, U: Tensor) -> Tensor:
        """Write the design V = [X U 1], without the ones where rows have no bias.

        Returns:
            V, a row per sample.
        """
        ones = [torch.ones_like(U[:, :1])] if self.recipe.bias else []
        return torch.cat([X, U, *ones], dim=1)

    def states(self, U: Tensor, X: Tensor, done: int) -> Tensor:
        """Compute the states of the model so far; the teacher's for layers not matched yet.

        Returns:
            X, a row per sample.
        """
        e = self.equations
        if self.structure == "full":
            if not done:
                return X
            found = self.model(U.dtype).equilibrium(U.unflatten(1, e.input_shape))
            found.require_converged()
            return found.states.detach()
        V = self.features(X, U)
        for block, equation in zip(self.blocks[:done], e.hidden, strict=False):
            V[:, block.rows] = equation.phi(V @ self.W[block.rows].T)
        return V[:, : e.n]

    def problem(self, block: RowBlock, gram: Gram) -> RowProblem:
        """Write the row problems of a block.

        Returns:
            The rows, under a budget at penalty level 1.
        """
        n, recipe = self.equations.n, self.recipe
        small = gram.select(block.columns.to(self.device), block.rows)
        ones = (torch.arange(len(self.rho)) < n + self.equations.p).to(self.rho)
        columns = block.columns.to(self.device)
        ball = None
        if self.structure == "full" and block.rows.start < n:
            radius = recipe.kappa * self.omega / self.lipschitz.to(self.omega)
            ball = Ball((columns < n).nonzero()[:, 0], radius[block.rows], self.omega)
        penalty = recipe.penalty(gram.m, self.rho[columns], ones[columns])
        return RowProblem(small, penalty, ball, recipe.loss)

    def plan(self, gram: Gram) -> None:
        """Set the penalty scales and, under a budget, the level and each block's share."""
        self.rho = penalty_scales(self.equations, gram)
        # few enough digits not to depend on how many threads have summed them
        moments = f"{float(gram.G.trace()):.6e} {float(gram.t2.sum()):.6e}"
        self.checkpoint = Checkpoint(self.folder, self.recipe, self.structure, gram.m, moments)
        if self.recipe.sparsity is None:
            return
        if saved := self._restore("plan", "level"):
            self.level, self.quotas = saved[1]["level"], saved[1]["quotas"]
            return
        begin = time.monotonic()
        budget = round((1 - self.recipe.sparsity) * self.equations.nonzeros)
        problems = [self.problem(block, gram) for block in self.blocks]
        with progress.task("finding the penalty level", total=1) as step:

            def report(level: float, weights: int) -> None:
                step(0, f"{weights} weights, {budget} wanted")

            self.level, solutions = solve_to_budget(
                problems, budget, tol=self.recipe.tol, workers=self.workers, report=report
            )
            step(1, f"level {self.level:.3g}")
        counts = [count(s, p.free) for s, p in zip(solutions, problems, strict=True)]
        self.quotas = list(_shares(counts, budget))
        plan = {"level": self.level, "quotas": self.quotas, "seconds": time.monotonic() - begin}
        self.checkpoint.keep("plan", self.W[:0], plan)

    def solve_block(self, index: int, gram: Gram) -> None:
        """Solve one block of rows, trim it to its share, refit, keep the records."""
        block, quota = self.blocks[index], self.quotas[index]
        if saved := self._restore(f"block-{index}", "solve"):
            self.W[block.rows] = saved[0].to(self.W)
            self.rows += saved[1]["rows"]
            self.trace += saved[1]["trace"]
            return
        begin = time.monotonic()
        # the first layer sees only inputs: its features are the teacher's whatever the loop
        looped = self.recipe.closed_loop and index > 0
        problem = self.problem(block, self.gram(index) if looped else gram)
        events: list[tuple[float, Progress]] = []
        with progress.task(f"solving rows of {block.name}", total=len(problem.gram.R)) as step:
            seen = 0

            def look(event: Progress) -> None:
                nonlocal seen
                events.append((time.monotonic() - self.start, event))
                if quota is None:
                    step(event.solved - seen, f"gap {float(event.gap.max()):.1e}")
                    seen = event.solved

            def report(level: float, weights: int) -> None:
                step(0, f"{weights} weights, {quota} wanted")

            tol = self.recipe.tol
            if quota is None:
                solution = solve(problem, tol=tol, callback=look, workers=self.workers)
                W = solution.W
            else:
                problem, solution, W = fit_to_budget(
                    problem,
                    quota,
                    start=self.level,
                    tol=tol,
                    report=report,
                    callback=look,
                    workers=self.workers,
                )
            step(len(problem.gram.R) - seen)
        if quota is None and self.recipe.sparsity_ratio:
            kept = W[:, ~problem.free]
            W[:, ~problem.free] = prune_smallest(kept, self.recipe.sparsity_ratio)
        self.W[block.rows, block.columns.to(self.device)] = W
        rows = list(self._records(block, problem, solution, W))
        trace = list(_trace(block.name, events))
        self.rows += rows
        self.trace += trace
        records = {"rows": rows, "trace": trace, "seconds": time.monotonic() - begin}
        self.checkpoint.keep(f"block-{index}", self.W[block.rows], records)

    def _records(
        self, block: RowBlock, problem: RowProblem, solution: Solution, W: Tensor
    ) -> Iterable[Row]:
        bound, objective = solution.objective - solution.gap, problem.objective(W)
        t2 = problem.gram.t2
        reference = torch.sqrt(t2) if problem.loss == "root" else 0.5 * t2
        for k in range(len(W)):
            yield {
                "layer": block.name,
                "row": k,
                "status": solution.status[k].name.lower(),
                "gap": float(solution.gap[k]),
                "relative_gap": float(solution.gap[k] / reference[k]) if reference[k] > 0 else 0.0,
                "objective": float(objective[k]),
                "bound": float(bound[k]),
                "nonzeros": int(torch.count_nonzero(W[k, ~problem.free])),
                "iterations": int(solution.iterations[k]),
            }
        bad = {s for s in solution.status if s in (Status.NUMERICAL_ERROR, Status.INVALID_INPUT)}
        if bad:
            raise InputError(f"layer {block.name}: {min(s.value for s in bad)}")

    def _restore(self, name: str, phase: str) -> tuple[Tensor, dict[str, Any]] | None:
        saved = self.checkpoint.restore(name)
        if saved:
            # time spent before the stop counts
            self.earlier[phase] += saved[1]["seconds"]
            self.start -= saved[1]["seconds"]
        return saved

    def model(self, dtype: torch.dtype | None = None) -> ImplicitModel:
        """Cut W into A, B, C, D, b, d.

        Returns:
            The model, in the teacher's dtype unless another is given.
        """
        e, n, p = self.equations, self.equations.n, self.equations.p
        states, outputs = self.W[:n], self.W[n:]
        biased = self.recipe.bias
        blocks = [Block(eq.name, eq.size, eq.phi) for eq in reversed(e.hidden)]
        model = ImplicitModel(
            states[:, :n],
            states[:, n : n + p],
            outputs[:, :n],
            outputs[:, n : n + p],
            states[:, -1] if biased else None,
            outputs[:, -1] if biased else None,
            blocks=blocks,
            structure=self.structure,
            input_shape=e.input_shape,
            reference_nonzeros=e.nonzeros,
            weights=self.omega if self.structure == "full" else None,
        )
        return model.cast(dtype or e.output.terms[0].weight.dtype)


# Splits a budget in proportion to counts, exactly: what rounding leaves goes where most room is.
def _shares(counts: list[int], budget: int) -> list[int]:
    total = max(sum(counts), 1)
    shares = [min(count, budget * count // total) for count in counts]
    left = min(budget, sum(counts)) - sum(shares)
    for index in sorted(range(len(counts)), key=lambda i: shares[i] - counts[i])[:left]:
        shares[index] += 1
    return shares


def _trace(layer: str, events: list[tuple[float, Progress]]) -> Iterable[Row]:
    for seconds, event in events:
        finite = event.gap[torch.isfinite(event.gap)]
        if len(finite):
            yield {
                "layer": layer,
                "seconds": seconds,
                "iteration": event.iteration,
                "gap_median": float(finite.median()),
                "gap_max": float(finite.max()),
                "solved": event.solved,
            }
