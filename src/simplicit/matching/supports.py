"""A layer's rows, brought to their share: their weights are chosen, or relaxed, and refitted."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.gram import Gram
from simplicit.convex.problem import RowProblem
from simplicit.convex.solution import Solution
from simplicit.matching.plan import Plan, Share
from simplicit.recipe import Recipe
from simplicit.solvers import Callback, solve
from simplicit.sparsity import coupled
from simplicit.sparsity.choice import bounded, choose
from simplicit.sparsity.near import refit_all, refit_near
from simplicit.sparsity.pattern import UNSTRUCTURED, Pattern
from simplicit.sparsity.refit import REFILLS, fit_to_budget, refit, trim
from simplicit.sparsity.splitting import Known

CHOICES = (2.0, 1.4, 1.0)
"""Parts of its share that a row keeps, each time its support is chosen; chosen on held-out training
images of CIFAR-10."""

REFITS = 2
"""Rounds after that in front of a ReLU, with the supports as they are."""

Retarget = Callable[[list[Tensor], list[Gram]], list[Gram]]
"""Moves the targets of ReLU states that are off to where given weights have them."""


@dataclass(frozen=True)
class Choice:
    """How supports are chosen.

    Attributes:
        recipe: What is asked for.
        coupled: Whether rows make up for each other's errors in the outputs.
        aware: Whether states of the layer may be off in any way.
        swept: Whether sweeps on the outputs follow, which look at the outputs instead.
        executor: Takes rows side by side.
        hurried: Whether there is time for the last choice only, and for no refits after it.
        within: Seconds after which no further stage or level of a certified solve begins; None for
            no limit.
        pattern: Which weights may be zero together.
    """

    recipe: Recipe
    coupled: bool
    aware: bool
    swept: bool
    executor: Executor | None
    hurried: bool = False
    within: float | None = None
    pattern: Pattern = UNSTRUCTURED

    @property
    def steps(self) -> tuple[float | None, ...]:
        """Parts of a row's share, one choice after another; None for a refit."""
        if self.swept or self.hurried:
            return CHOICES[-1:]
        several = (self.coupled or self.aware) and not self.recipe.units
        steps = CHOICES if several else CHOICES[-1:]
        return (*steps, *[None] * REFITS) if self.aware else steps

    def choose(
        self,
        problems: list[RowProblem],
        shares: list[Share],
        anchors: list[Tensor],
        retarget: Retarget,
    ) -> tuple[list[RowProblem], list[Tensor]]:
        """Choose supports in steps, and refit.

        Between two choices the ReLU targets are updated, and each row's target includes the other
        rows' errors.

        Args:
            problems: Rows of each group.
            shares: What each group may spend.
            anchors: Weights that the data may leave as they are.
            retarget: Moves targets.

        Returns:
            The rows with their last targets, and the weights.
        """
        W: list[Tensor] = []
        known: list[Known] = [{} for _ in problems]
        for part in self.steps:
            if W and self.aware:
                grams = retarget(W, [problem.gram for problem in problems])
                problems = [replace(p, gram=g) for p, g in zip(problems, grams, strict=True)]
            groups = zip(problems, shares, anchors, W or [None] * len(problems), known, strict=True)
            W = [self._group(*group, part) for group in groups]
        return problems, W

    # one group: supports with a part of its share, or as they are, in view of the weights so far
    def _group(
        self,
        problem: RowProblem,
        share: Share,
        start: Tensor,
        before: Tensor | None,
        known: Known,
        part: float | None,
    ) -> Tensor:
        if self.recipe.units:  # all weights of what is left stay
            return refit_all(problem, start)
        if problem.terms.has_ball:
            return self._in_ball(problem, share, before, known, part)
        if part is not None:
            gram = problem.gram
            # rows that were not refitted together would all make up for the same error
            if before is not None and self.coupled and coupled.kept(before):
                gram = coupled.shifted(gram, before, share.coupling)
            keep = [round(part * n) for n in share.keep]
            W = self._choose(replace(problem, gram=gram), keep, start, share.importance, known)
        else:
            assert before is not None
            W = refit_near(problem, before != 0, start, self.executor)
        # long factorisations are for the last choice, and what follows it
        last = part is None or part == CHOICES[-1]
        if self.coupled and (last or coupled.kept(W)):
            return coupled.refit_coupled(problem, W, share.coupling, self.executor)
        return W

    # The ball is not seen by the choice. Where it sets weights of the refit to zero, the row
    # is given more, and what is too much then goes over all rows together.
    def _in_ball(
        self,
        problem: RowProblem,
        share: Share,
        before: Tensor | None,
        known: Known,
        part: float | None,
    ) -> Tensor:
        if part is None:
            assert before is not None
            return refit(problem, before != 0)
        wanted, most = torch.tensor(share.keep), int((~problem.free).sum())
        budget, W = sum(share.keep), self._choose(problem, share.keep, known=known)
        for _ in range(REFILLS):
            W = refit(problem, W != 0)
            left = torch.count_nonzero(W[:, ~problem.free], dim=1).cpu()
            more = (wanted + 2 * (wanted - left)).clamp_max(most)
            if int(left.sum()) >= budget or bool((more == wanted).all()):
                break
            wanted = more
            W = self._choose(problem, wanted.tolist(), known=known)
        return trim(problem, W, budget)

    def _choose(
        self,
        problem: RowProblem,
        keep: list[int],
        anchor: Tensor | None = None,
        worth: Tensor | None = None,
        known: Known | None = None,
    ) -> Tensor:
        method, executor = self.recipe.method, self.executor
        return choose(problem, keep, method, executor, anchor, self.pattern, worth, known)

    def certified(
        self, problem: RowProblem, plan: Plan | None, share: Share | None, W: Tensor, look: Callback
    ) -> tuple[RowProblem, Solution, Float[Tensor, "K N"]]:
        """Solve the relaxation of one group's rows, which bounds or gives their weights.

        Args:
            problem: The rows.
            plan: The plan, under a budget.
            share: What the group may spend.
            W: Weights that were chosen; not read where the relaxation gives them.
            look: Called while the rows are solved.

        Returns:
            The rows as they were solved, their certified solution, and the weights to use.
        """
        tol, executor = self.recipe.tol, self.executor
        solved = partial(
            solve, tol=tol, time_limit=self.within, callback=look, workers=1, executor=executor
        )
        if plan is None or share is None:
            solution = solved(problem)
            return problem, solution, solution.W
        if not self.recipe.chooses:
            return fit_to_budget(
                problem,
                share.quota,
                start=plan.penalty_factor,
                tol=tol,
                callback=look,
                executor=executor,
            )
        # rows that no output hears are worth nothing
        worth = share.importance.clamp_min(1e-30)
        problem = bounded(problem, plan.price / worth.to(W))
        solution = solved(problem)
        return problem, solution, W
