"""Row problems, layer by layer: solved and refitted, or eliminated to a budget and swept."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import memory, progress, threads
from .budget import shares
from .checkpoint import Checkpoint
from .constraint import RowConstraint
from .equations import StateEquations
from .equilibrium import Block
from .errors import InputError
from .gram import Gram
from .joint import BYTES, JointMatching
from .match import RowBlock, Structure, penalty_scales, row_blocks
from .model import ImplicitModel
from .path import count, solve_to_budget
from .problem import RowProblem
from .recipe import Recipe, prune_smallest
from .records import Row, row_records, trace_records
from .refit import fit_to_budget, refit
from .sensitivity import sensitivity
from .solution import Solution
from .solvers import Callback, Progress, solve
from .states import Batches, collect
from .support import bounded, choose, first_budget, plan

AWARE = 3
"""Times the targets of a state that is off are moved to where the row has it."""

INACTIVE = 0.1
"""Weight, in joint matching, of samples whose state is off, as a part of what it is when on."""


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
        self.keep: list[list[int]] = []
        self.orders: list[Tensor] = []
        self.importance = torch.ones(n + q, dtype=torch.float64)
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
        if self.recipe.eliminates:
            self._plan_elimination(problems)
        else:
            self._plan_relaxation(problems)

    def _plan_relaxation(self, problems: list[RowProblem]) -> None:
        if saved := self._restore("plan", "level"):
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

    def _plan_elimination(self, problems: list[RowProblem]) -> None:
        if saved := self._restore("plan", "level"):
            self.importance = saved[0][:, 0].cpu()
            self.level, self.keep = saved[1]["level"], saved[1]["keep"]
            return
        begin, budget = time.monotonic(), self.budget
        if self.recipe.sweeps:
            budget = first_budget(budget, self.equations.nonzeros)
        if self.recipe.sensitivity:
            self.importance = sensitivity(self.equations, self.stream)
        else:
            t2 = torch.cat([p.gram.t2 for p in problems]).cpu()
            order = torch.cat([torch.arange(b.rows.start, b.rows.stop) for b in self.blocks])
            t2 = t2[order.argsort()]
            self.importance = torch.where(t2 > 0, 1 / t2, 0.0)
        with progress.task("spending the budget over the rows", total=1) as step:
            importance = [self.importance[block.rows] for block in self.blocks]
            self.level, self.keep, self.orders = plan(problems, importance, budget, self.workers)
            step(1, f"{sum(map(sum, self.keep))} weights")
        records = {"level": self.level, "keep": self.keep, "seconds": time.monotonic() - begin}
        self.checkpoint.keep("plan", self.importance[:, None], records)

    # supports by elimination, refitted; and the relaxation whose dual bounds what they are worth
    def _eliminate(
        self, index: int, problem: RowProblem, order: Tensor | None, look: Callback
    ) -> tuple[RowProblem, Solution, Tensor]:
        W = choose(problem, self.keep[index], order, self.workers)
        hidden, output = self.equations.hidden, self.equations.output
        relu = [q.phi.name == "relu" for q in (*hidden, output)][index]
        # sweeps look at the outputs instead
        if self.recipe.relu_aware and not self.recipe.sweeps and relu:
            for _ in range(AWARE):
                problem = replace(problem, gram=self._aware(index, problem.gram, W))
                W = refit(problem, W != 0)
        assert self.level is not None
        # rows that no output hears are worth nothing
        worth = self.importance[self.blocks[index].rows].clamp_min(1e-30)
        problem = bounded(problem, self.level / worth.to(W))
        tol, workers = self.recipe.tol, self.workers
        return problem, solve(problem, tol=tol, workers=workers, callback=look), W

    # the same features, with targets that let a state which is off be off anywhere below zero
    def _aware(self, index: int, gram: Gram, W: Tensor) -> Gram:
        block, columns = self.blocks[index], self.blocks[index].columns.to(self.device)
        R, t2 = torch.zeros_like(gram.R), torch.zeros_like(gram.t2)
        for batch in self.stream:
            U, Z, _ = (t.to(self.device) for t in collect(self.equations, batch))
            X = self.states(U, self.equations.activate(Z), index if self.recipe.closed_loop else 0)
            V, z = self.features(X, U)[:, columns], Z[:, block.rows]
            target = torch.where(z > 0, z, (V @ W.T).clamp_max(0))
            R += target.T @ V / gram.m
            t2 += target.square().sum(0) / gram.m
        return gram.with_targets(R, t2)

    def calibration(self) -> tuple[Tensor, Tensor]:
        """Collect the calibration inputs and the teacher's outputs on them.

        Returns:
            U (m, p) and Y (m, q).
        """
        passes = [collect(self.equations, batch) for batch in self.stream]
        U, _, Y = (torch.cat(parts).to(self.device) for parts in zip(*passes, strict=True))
        return U, Y

    def match_outputs(self) -> None:
        """Sweep over the rows until the outputs are matched at the budget."""
        if saved := self._restore("sweeps", "sweeps"):
            self.W[:] = saved[0].to(self.W)
            self.rows = saved[1]["rows"]
            return
        begin, e, sweeps = time.monotonic(), self.equations, self.recipe.sweeps
        m = sum(len(batch) for batch in self.stream)
        memory.require(BYTES * m * self.W.shape[1], f"{m} samples of {self.W.shape[1]} features")
        U, Y = self.calibration()
        V = self.features(U.new_zeros(len(U), e.n), U)
        free = torch.arange(V.shape[1], device=self.device) >= e.n + e.p
        blocks = [replace(b, columns=b.columns.to(self.device)) for b in self.blocks]
        phis = e.elementwise
        inactive = INACTIVE if self.recipe.relu_aware else 1.0
        joint = JointMatching(self.W, blocks, phis, V, Y, free, inactive, self.workers)
        with progress.task("matching the outputs (rows)", total=sweeps * len(self.W)) as step:
            joint.match(self.budget, sweeps, step)
        self.W[:] = joint.W.to(self.W)
        self.recount(torch.count_nonzero(self.W[:, ~free], dim=1))
        records = {"rows": self.rows, "seconds": time.monotonic() - begin}
        self.checkpoint.keep("sweeps", self.W, records)

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
                if quota is None and not self.recipe.eliminates:
                    step(event.solved - seen, f"gap {float(event.gap.max()):.1e}")
                    seen = event.solved

            def report(level: float, weights: int) -> None:
                step(0, f"{weights} weights, {quota} wanted")

            tol = self.recipe.tol
            if self.recipe.eliminates:
                # where the features are those of the plan, so is the order
                order = self.orders[index] if self.orders and not looped else None
                problem, solution, W = self._eliminate(index, problem, order, look)
            elif quota is None:
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
            weights=constraint.omega if constraint and self.structure == "full" else None,
        )
        return model.cast(dtype or e.like.dtype)
