"""Row problems of a network of matrices, layer by layer: written, solved, refitted, kept."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simplicit.calibration.ball import RowConstraint
from simplicit.calibration.batches import Batches, collect
from simplicit.calibration.structure import RowBlock, Structure, penalty_scales, row_blocks
from simplicit.convex.gram import Gram
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.checkpoint import Checkpoint
from simplicit.matching.records import Row, row_records, trace_records
from simplicit.model.equilibrium import Block
from simplicit.model.implicit import ImplicitModel
from simplicit.recipe import Recipe, prune_smallest
from simplicit.solvers import Callback, Progress, solve
from simplicit.sparsity.budget import shares
from simplicit.sparsity.path import Level, count, solve_to_budget
from simplicit.sparsity.refit import fit_to_budget
from simplicit.system import progress, threads

LARGEST = 1e18
"""Root mean square of a state whose square, as of its neighbours', float32 still has."""


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
        self.device = torch.device(device or equations.like.device)
        self.blocks = row_blocks(equations, structure, recipe.bias)
        n, p, q = equations.n, equations.p, equations.q
        kind = {"dtype": torch.float64, "device": self.device}
        self.W = torch.zeros(n + q, n + p + int(recipe.bias), **kind)
        self.constraint = None
        if structure == "full" or recipe.constraint == "row":
            self.constraint = RowConstraint(equations, recipe.constraint, recipe.kappa)
        self.rho = torch.ones(self.W.shape[1], **kind)
        self.quotas: list[int | None] = [None] * len(self.blocks)
        self.level: float | None = None
        self.rows: list[Row] = []
        self.trace: list[Row] = []
        self.start = time.monotonic()
        self.earlier = {"level": 0.0, "solve": 0.0, "sweeps": 0.0}

    def gram(self, done: int | None) -> Gram:
        """Pass over the data: teacher's targets; the model's states for the first `done` blocks.

        Returns:
            Statistics of features V = [X U 1] and targets [Z Y].

        Raises:
            InputError: If the states are not finite, or too large for the sweeps.
        """
        e = self.equations
        gram = Gram(self.W.shape[1], e.n + e.q, self.device)
        for batch in self.stream:
            U, Z, Y = (t.to(self.device) for t in collect(e, batch))
            X = e.activate(Z) if done is None else self.states(U, e.activate(Z), done)
            gram.update(self.features(X, U), torch.cat([Z, Y], dim=1))
        # no product of two features is larger than the larger of their squares
        size = float(torch.cat([gram.G.diagonal(), gram.t2]).amax()) ** 0.5
        if not size <= LARGEST:
            found = f"of size {size:.0e}" if math.isfinite(size) else "not finite"
            raise InputError(
                f"the network's states are {found} on the calibration inputs: accepted is up to "
                f"{LARGEST:.0e}; give the inputs in other units"
            )
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
        if self.constraint is not None and block.rows.start < n:
            ball = self.constraint.ball(replace(block, columns=columns))
        penalty = recipe.penalty(gram.m, self.rho[columns], ones[columns])
        return RowProblem(small, penalty, ball, recipe.matching_loss)

    def plan(self, gram: Gram) -> None:
        """Set the penalty scales and, under a budget, the level and each block's share."""
        self.rho = penalty_scales(self.equations, gram)
        # few enough digits not to depend on how many threads have summed them
        moments = f"{float(gram.G.trace()):.6e} {float(gram.t2.sum()):.6e}"
        self.checkpoint = Checkpoint(self.folder, self.recipe, self.structure, gram.m, moments)
        if self.recipe.sparsity is None:
            return
        problems = [self.problem(block, gram) for block in self.blocks]
        self.plan_budget(problems)

    def plan_budget(self, problems: list[RowProblem]) -> None:
        """Find the level at which all rows have the budget together, and each block's share.

        Args:
            problems: The rows of every block, their penalties at level 1.
        """
        if saved := self.restore("plan", "level"):
            self.level, self.quotas = saved[1]["level"], saved[1]["quotas"]
            return
        begin = time.monotonic()
        budget = self.budget
        with progress.task("finding the penalty level", total=1) as step:

            def report(level: float, weights: int) -> None:
                step(0, f"{weights} weights, {budget} wanted")

            self.level, solutions = solve_to_budget(
                problems, budget, tol=self.recipe.tol, workers=self.workers, report=report
            )
            step(1, f"level {self.level:.3g}")
        counts = [count(s, p.free) for s, p in zip(solutions, problems, strict=True)]
        self.quotas = list(shares(counts, budget))
        plan = {"level": self.level, "quotas": self.quotas, "seconds": time.monotonic() - begin}
        self.checkpoint.keep("plan", self.W[:0], plan)

    @property
    def budget(self) -> int:
        """Non-zeros wanted; only under a budget."""
        assert self.recipe.sparsity is not None
        return round((1 - self.recipe.sparsity) * self.equations.nonzeros)

    def calibration(self) -> tuple[Tensor, Tensor]:
        """Collect the calibration inputs and the teacher's outputs on them.

        Returns:
            U (m, p) and Y (m, q).
        """
        passes = [collect(self.equations, batch) for batch in self.stream]
        U, _, Y = (torch.cat(parts).to(self.device) for parts in zip(*passes, strict=True))
        return U, Y

    def looped(self, index: int) -> bool:
        """Tell whether a block is matched on the states of the model built so far.

        Args:
            index: The block.

        Returns:
            Whether the loop is closed; the first layer sees only inputs, the same in any case.
        """
        return self.recipe.closed_loop and index > 0

    def solve_rows(
        self, index: int, problem: RowProblem, report: Level, callback: Callback
    ) -> tuple[RowProblem, Solution, Tensor]:
        """Solve the rows of a block; under a budget, bring them to its share and refit.

        Args:
            index: The block.
            problem: Its rows.
            report: Called with each level tried and the non-zeros it gave.
            callback: Passed to every solve.

        Returns:
            The rows as they were solved, their certified solution, and the weights to use.
        """
        tol, workers, quota = self.recipe.tol, self.workers, self.quotas[index]
        if quota is None:
            solution = solve(problem, tol=tol, callback=callback, workers=workers)
            return problem, solution, solution.W
        return fit_to_budget(
            problem,
            quota,
            start=self.level,
            tol=tol,
            report=report,
            callback=callback,
            workers=workers,
        )

    def recount(self, weights: Tensor) -> None:
        """Write into the rows' records how many weights they have now.

        Args:
            weights: Non-zeros of every row of [A B; C D], biases not counted.
        """
        for block in self.blocks:
            for row in self.rows:
                if row["layer"] == block.name:
                    row["nonzeros"] = int(weights[block.rows.start + row["row"]])

    def solve_block(self, index: int, gram: Gram) -> None:
        """Solve one block of rows, bring it to its share, refit, keep the records."""
        block, quota = self.blocks[index], self.quotas[index]
        if saved := self.restore(f"block-{index}", "solve"):
            self.W[block.rows] = saved[0].to(self.W)
            self.rows += saved[1]["rows"]
            self.trace += saved[1]["trace"]
            return
        begin = time.monotonic()
        problem = self.problem(block, self.gram(index) if self.looped(index) else gram)
        events: list[tuple[float, Progress]] = []
        with progress.task(f"solving rows of {block.name}", total=len(problem.gram.R)) as step:
            seen = 0

            def look(event: Progress) -> None:
                nonlocal seen
                events.append((time.monotonic() - self.start, event))
                if self.level is None:
                    step(event.solved - seen, f"gap {float(event.gap.max()):.1e}")
                    seen = event.solved

            def report(level: float, weights: int) -> None:
                step(0, f"{weights} weights, {quota} wanted")

            problem, solution, W = self.solve_rows(index, problem, report, look)
            step(len(problem.gram.R) - seen)
        if self.recipe.sparsity is None and self.recipe.sparsity_ratio:
            kept = W[:, ~problem.free]
            W[:, ~problem.free] = prune_smallest(kept, self.recipe.sparsity_ratio)
        self.W[block.rows, block.columns.to(self.device)] = W
        rows = row_records(block.name, problem, solution, W)
        trace = list(trace_records(block.name, events))
        self.rows += rows
        self.trace += trace
        records = {"rows": rows, "trace": trace, "seconds": time.monotonic() - begin}
        self.checkpoint.keep(f"block-{index}", self.W[block.rows], records)

    def restore(self, name: str, phase: str) -> tuple[Tensor, dict[str, Any]] | None:
        """Look for a part that was finished before a stop.

        Args:
            name: What it was kept as.
            phase: Where its time counts.

        Returns:
            Its weights and records, or None.
        """
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
        constraint = self.constraint
        states, outputs = self.W[:n], self.W[n:]
        biased = self.recipe.bias
        layers = zip(e.hidden, e.elementwise, strict=True)
        blocks = [Block(eq.name, eq.size, phi) for eq, phi in layers][::-1]
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
            omega=constraint.omega if constraint and self.structure == "full" else None,
        )
        return model.cast(dtype or e.like.dtype)
