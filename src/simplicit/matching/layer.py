"""One layer: moments of its rows, weights that meet its share, and their certificates."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Candidate, Readings
from simplicit.calibration.rows import Rows
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball
from simplicit.convex.problem import RowProblem
from simplicit.equations.equation import Equation
from simplicit.equations.network import StateEquations
from simplicit.matching.expected.estimate import is_relu
from simplicit.matching.plan import Plan, anchor, require_finite, row_problem, together
from simplicit.matching.records import Row, row_records
from simplicit.matching.supports import Choice
from simplicit.matching.ways.low_rank import Parts, choose
from simplicit.matching.ways.low_rank_full import choose_full, is_full, low_records
from simplicit.model.certificate import round_toward_zero
from simplicit.recipe import Recipe
from simplicit.solvers import Callback
from simplicit.sparsity.choice import prune_smallest
from simplicit.sparsity.pattern import Pattern


@dataclass(frozen=True, eq=False)
class Matched:
    """A layer that is matched.

    Attributes:
        candidate: Its weights and biases.
        parts: Its factors, one of each group, where it is written by some.
        records: One record per row.
    """

    candidate: Candidate
    parts: list[Parts]
    records: list[Row]


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer before it is matched.

    Attributes:
        number: Among all layers.
        rows: Its rows.
        equation: The equation that they are part of, rows matched before it included.
        equations: The network.
        recipe: What is asked for.
        plan: What every layer may spend; None without a budget.
        missing: Weights for which balls of earlier layers had no room.
        ball: Of its rows, if they have one.
        later: Moments of its later uses, where equations share its weights.
        pattern: Which weights may be zero together.
        swept: Whether sweeps on the outputs follow.
        hurried: Whether there is time for one choice of supports only.
        within: Seconds that the certified solve of a group may take, by how many are left.
        executor: Takes blocks of inputs and rows side by side.
    """

    number: int
    rows: Rows
    equation: Equation
    equations: StateEquations
    recipe: Recipe
    plan: Plan | None
    missing: int
    ball: Ball | None
    later: list[Gram]
    pattern: Pattern
    swept: bool
    hurried: bool
    within: Callable[[int], float | None]
    executor: Executor

    def match(self, frontier: Frontier, look: Callback) -> Matched:
        """Match it on the states of the model so far.

        Args:
            frontier: States of the network and of the model.
            look: Called while the rows are solved.

        Returns:
            Its weights, and what is known of them.
        """
        recipe, rows = self.recipe, self.rows
        chooses = self.plan is not None and recipe.chooses
        # targets that move with the weights are those of one use
        aware = chooses and recipe.relu_aware and is_relu(self.equation) and not rows.uses
        coherence = 0.0 if self.plan is None else self.plan.coherence[self.number]
        readings = Readings(rows, self.equation, frontier, rows.biased, coherence, self.executor)
        grams = together(readings.moments(keep=aware), self.later)
        sources = rows.sources(self.equations)
        for gram in grams:
            require_finite(gram, rows.name)
        problems = [row_problem(gram, recipe, sources, rows.biased, self.ball) for gram in grams]
        choice = Choice(
            recipe,
            coupled=recipe.sensitivity and self.ball is None,
            aware=aware and not self.hurried,
            swept=self.swept,
            executor=self.executor,
            hurried=self.hurried,
            within=self.within(len(problems)),
            pattern=self.pattern,
        )
        W = [torch.zeros_like(problem.gram.R) for problem in problems]
        parts: list[Parts] = []
        behind: list[Row] = []

        def retarget(W: list[Tensor], known: list[Gram]) -> list[Gram]:
            return readings.retargeted(known, _candidate(W, rows.biased))

        if self.plan is not None and chooses:
            anchors = [anchor(w, rows.biased) for w in rows.weights(self.equation)]
            given = self.plan.shares[self.number]
            given = [given[0].more(self.missing), *given[1:]]
            if recipe.rank is None:
                problems, W = choice.choose(problems, given, anchors, retarget)
            elif is_full(recipe, self.equations):
                problems, W, low = choose_full(choice, problems, given, anchors, retarget)
                behind = low_records(rows.name, sum(map(len, W)), low)
            else:
                problems, parts = choose(choice, problems, given, anchors, retarget)
                W = [own.whole for own in parts]
        W, records = self._certified(choice, problems, W, look)
        return Matched(_candidate(W, rows.biased), parts, [*records, *behind])

    # the weights that the relaxation gives or bounds, group by group
    def _certified(
        self, choice: Choice, problems: Sequence[RowProblem], W: Sequence[Tensor], look: Callback
    ) -> tuple[list[Tensor], list[Row]]:
        every = [None] * len(W) if self.plan is None else self.plan.shares[self.number]
        found: list[Tensor] = []
        records: list[Row] = []
        for problem, share, own in zip(problems, every, W, strict=True):
            timed = replace(choice, within=self.within(len(W) - len(found)))
            problem, solution, w = timed.certified(problem, self.plan, share, own, look)
            if self.recipe.sparsity is None and self.recipe.sparsity_ratio:
                kept = w[:, ~problem.free]
                w[:, ~problem.free] = prune_smallest(kept, self.recipe.sparsity_ratio)
            if self.ball is not None:
                w = round_toward_zero(w, self.equations.like.dtype).to(w)
            rows = row_records(self.rows.name, problem, solution, w)
            records += [{**row, "row": row["row"] + len(records)} for row in rows]
            found.append(w)
        return found, records


def _candidate(W: Sequence[Tensor], bias: bool) -> Candidate:
    every = torch.stack(list(W))
    if not bias:
        return Candidate(every, torch.zeros_like(every[..., 0]))
    return Candidate(every[..., :-1], every[..., -1])
