"""Row problems brought to a budget by elimination, and swept on the network's outputs."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simplicit.calibration.batches import collect
from simplicit.convex.gram import Gram
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution
from simplicit.matching.dense import Matching
from simplicit.outputs.sensitivity import sensitivity
from simplicit.outputs.sweeps import BYTES, INACTIVE, JointMatching
from simplicit.solvers import Callback, solve
from simplicit.sparsity.choice import Order, bounded, choose, first_budget, plan
from simplicit.sparsity.path import Level
from simplicit.sparsity.refit import REFILLS, refit, trim
from simplicit.system import memory, progress

AWARE = 3
"""Times the targets of a state that is off are moved to where the row has it."""


class EliminationMatching(Matching):
    """Supports by exact elimination, one loss for all rows; see `Matching`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.keep: list[list[int]] = []
        self.orders: list[Order] = []
        self.importance = torch.ones(len(self.W), dtype=torch.float64)

    def plan_budget(self, problems: list[RowProblem]) -> None:
        """Find the loss up to which weights are removed, and how many each row keeps.

        Args:
            problems: The rows of every block.
        """
        if saved := self.restore("plan", "level"):
            self.importance = saved[0][:, 0].cpu()
            self.level, self.keep = saved[1]["level"], saved[1]["keep"]
            return
        begin, budget = time.monotonic(), self.budget
        if self.recipe.joint:
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

    def solve_rows(
        self, index: int, problem: RowProblem, report: Level, callback: Callback
    ) -> tuple[RowProblem, Solution, Tensor]:
        """Eliminate weights of a block's rows and refit; solve the relaxation that bounds this.

        Args:
            index: The block.
            problem: Its rows.
            report: Not called: there is one level.
            callback: Passed to the solve.

        Returns:
            The relaxed rows, their certified solution, and the weights that are left.
        """
        # where the features are those of the plan, so is the order
        order = self.orders[index] if self.orders and not self.looped(index) else None
        W = self._choose(problem, self.keep[index], order)
        # sweeps look at the outputs instead
        if self.recipe.relu_aware and not self.recipe.joint and self._relu(index):
            for _ in range(AWARE):
                problem = replace(problem, gram=self._aware(index, problem.gram, W))
                W = refit(problem, W != 0)
        assert self.level is not None
        # rows that no output hears are worth nothing
        worth = self.importance[self.blocks[index].rows].clamp_min(1e-30)
        relaxed = bounded(problem, self.level / worth.to(W))
        tol, workers = self.recipe.tol, self.workers
        return relaxed, solve(relaxed, tol=tol, workers=workers, callback=callback), W

    # The ball is not seen by the elimination. Where it sets weights of the refit to zero, the row
    # is given more, and what is too much then goes over all rows together.
    def _choose(self, problem: RowProblem, keep: list[int], order: Order | None) -> Tensor:
        W = choose(problem, keep, order, self.workers)
        if not problem.terms.has_ball:
            return W
        wanted, most, budget = torch.tensor(keep), int((~problem.free).sum()), sum(keep)
        for _ in range(REFILLS):
            W = refit(problem, W != 0)
            left = torch.count_nonzero(W[:, ~problem.free], dim=1).cpu()
            more = (wanted + 2 * (wanted - left)).clamp_max(most)
            if int(left.sum()) >= budget or bool((more == wanted).all()):
                break
            wanted = more
            W = choose(problem, wanted.tolist(), None, self.workers)
        return trim(problem, W, budget)

    def _relu(self, index: int) -> bool:
        phis = self.equations.elementwise
        mine = phis if self.structure == "full" else phis[index : index + 1]
        return index < len(self.blocks) - 1 and all(phi.name == "relu" for phi in mine)

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

    def match_outputs(self) -> None:
        """Sweep over the rows until the outputs are matched at the budget."""
        if saved := self.restore("sweeps", "sweeps"):
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
