"""Row problems, layer by layer: solved and refitted, or eliminated to a budget and swept."""

import time
from collections.abc import Iterable
from dataclasses import replace
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
from .joint import JointMatching
from .match import RowBlock, Structure, penalty_scales, row_blocks
from .model import ImplicitModel
from .path import count, solve_to_budget
from .problem import Ball, Penalty, RowProblem
from .recipe import Recipe, prune_smallest
from .refit import fit_to_budget, refit
from .sensitivity import sensitivity
from .solution import Solution, Status
from .solvers import Progress, solve
from .states import Batches, collect
from .support import BOUND_RIDGE, choose, plan

Row = dict[str, Any]

START = 4
"""Most times the budget that joint matching starts from; it reaches the budget sweep by sweep."""

START_PART = 0.2
"""The part of N0 it starts from at most, but never less than a half more than the budget."""

REFITS = 2
"""Sweeps at the end that leave the supports as they are."""

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
        if self.recipe.eliminates:
            self._plan_elimination(gram)
            return
        if saved := self._restore("plan", "level"):
            self.level, self.quotas = saved[1]["level"], saved[1]["quotas"]
            return
        begin = time.monotonic()
        budget = self.budget
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

    @property
    def budget(self) -> int:
        """Non-zeros wanted; only under a budget."""
        assert self.recipe.sparsity is not None
        return round((1 - self.recipe.sparsity) * self.equations.nonzeros)

    def _plan_elimination(self, gram: Gram) -> None:
        if saved := self._restore("plan", "level"):
            self.importance = saved[0][:, 0].cpu()
            self.level, self.keep = saved[1]["level"], saved[1]["keep"]
            return
        begin, budget, N0 = time.monotonic(), self.budget, self.equations.nonzeros
        if self.recipe.sweeps:
            most = max(int(START_PART * N0), budget + budget // 2)
            budget = min(START * budget, max(most, budget))
        if self.recipe.sensitivity:
            self.importance = sensitivity(self.equations, self.stream)
        else:
            t2 = gram.t2.cpu()
            self.importance = torch.where(t2 > 0, 1 / t2, 0.0)
        with progress.task("spending the budget over the rows", total=1) as step:
            problems = [self.problem(block, gram) for block in self.blocks]
            importance = [self.importance[block.rows] for block in self.blocks]
            self.level, self.keep, self.orders = plan(problems, importance, budget)
            step(1, f"{sum(map(sum, self.keep))} weights")
        records = {"level": self.level, "keep": self.keep, "seconds": time.monotonic() - begin}
        self.checkpoint.keep("plan", self.importance[:, None], records)

    def eliminate_block(self, index: int, gram: Gram) -> None:
        """Choose the supports of one block by elimination, refit, certify, keep the records."""
        block = self.blocks[index]
        if saved := self._restore(f"block-{index}", "solve"):
            self.W[block.rows] = saved[0].to(self.W)
            self.rows += saved[1]["rows"]
            self.trace += saved[1]["trace"]
            return
        begin = time.monotonic()
        columns = block.columns.to(self.device)
        looped = self.gram(index) if self.recipe.closed_loop and index > 0 else gram
        events: list[tuple[float, Progress]] = []
        with progress.task(f"eliminating weights of {block.name}", total=1) as step:
            problem = self.problem(block, looped)
            # on the features of the plan its order stands
            order = self.orders[index] if looped is gram and self.orders else None
            W = choose(problem, self.keep[index], order)
            self.W[block.rows, columns] = W
            # sweeps look at the outputs instead
            if self.recipe.relu_aware and not self.recipe.sweeps and index < len(self.blocks) - 1:
                for _ in range(AWARE):
                    problem = replace(problem, gram=self._aware(index, looped))
                    W = refit(problem, W != 0)
                    self.W[block.rows, columns] = W
            # the price of a weight in the units of each row's own loss
            price = (self.level or 0.0) / self.importance[block.rows].clamp_min(1e-30)
            price = torch.minimum(price.to(W), problem.gram.t2)
            penalty = Penalty(l0=price, l2=BOUND_RIDGE, scales=problem.penalty.scales)
            problem = replace(problem, penalty=penalty)
            solution = solve(
                problem,
                tol=self.recipe.tol,
                workers=self.workers,
                callback=lambda event: events.append((time.monotonic() - self.start, event)),
            )
            step(1, f"{sum(self.keep[index])} weights")
        rows = list(self._records(block, problem, solution, W))
        trace = list(_trace(block.name, events))
        self.rows += rows
        self.trace += trace
        records = {"rows": rows, "trace": trace, "seconds": time.monotonic() - begin}
        self.checkpoint.keep(f"block-{index}", self.W[block.rows], records)

    # the same features, with targets that let a state which is off be off anywhere below zero
    def _aware(self, index: int, gram: Gram) -> Gram:
        e, block = self.equations, self.blocks[index]
        columns = block.columns.to(self.device)
        if e.hidden[index].phi.name != "relu":
            return gram.select(columns, block.rows)
        small = gram.select(columns, block.rows)
        R, t2 = torch.zeros_like(small.R), torch.zeros_like(small.t2)
        for batch in self.stream:
            U, Z, _ = (t.to(self.device) for t in collect(e, batch))
            X = self.states(U, e.activate(Z), index if self.recipe.closed_loop else 0)
            V = self.features(X, U)
            predicted, z = V @ self.W[block.rows].T, Z[:, block.rows]
            target = torch.where(z > 0, z, predicted.clamp_max(0))
            R += target.T @ V[:, columns] / gram.m
            t2 += target.square().sum(0) / gram.m
        return small.with_targets(R, t2)

    def match_outputs(self) -> None:
        """Sweep over the rows until the outputs are matched at the budget."""
        if saved := self._restore("sweeps", "sweeps"):
            self.W[:] = saved[0].to(self.W)
            self.rows = saved[1]["rows"]
            return
        begin, e, sweeps = time.monotonic(), self.equations, self.recipe.sweeps
        passes = [tuple(t.to(self.device) for t in collect(e, batch)) for batch in self.stream]
        U, _, Y = (torch.cat(parts) for parts in zip(*passes, strict=True))
        V = self.features(U.new_zeros(len(U), e.n), U)
        free = torch.arange(V.shape[1], device=self.device) >= e.n + e.p
        blocks = [replace(b, columns=b.columns.to(self.device)) for b in self.blocks]
        phis = [equation.phi for equation in e.hidden]
        inactive = INACTIVE if self.recipe.relu_aware else 1.0
        joint = JointMatching(self.W, blocks, phis, V, Y, free, inactive)
        start, budget = joint.nonzeros(), self.budget
        falls = sweeps - REFITS - 1
        with progress.task("matching the outputs (rows)", total=sweeps * len(self.W)) as step:
            for index in range(sweeps):
                part = min(index / falls, 1.0)
                wanted = round(start * (budget / max(start, 1)) ** part)
                joint.sweep(wanted if index <= falls else None, step=step)
        self.W[:] = joint.W.to(self.W)
        weights = torch.count_nonzero(self.W[:, ~free], dim=1)
        for block in self.blocks:
            for row in self.rows:
                if row["layer"] == block.name:
                    row["nonzeros"] = int(weights[block.rows.start + row["row"]])
        records = {"rows": self.rows, "seconds": time.monotonic() - begin}
        self.checkpoint.keep("sweeps", self.W, records)

    def solve_block(self, index: int, gram: Gram) -> None:
        """Solve one block of rows, trim it to its share, refit, keep the records."""
        if self.recipe.eliminates:
            self.eliminate_block(index, gram)
            return
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
