"""How the budget is spent over the layers, on the teacher's own states, before any is matched."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import Readings
from simplicit.calibration.rows import Rows
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball
from simplicit.convex.problem import RowProblem
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.outputs.sensitivity import Sensitivity
from simplicit.recipe import Recipe
from simplicit.sparsity.budget import shares
from simplicit.sparsity.choice import allot
from simplicit.sparsity.path import count, solve_to_budget
from simplicit.sparsity.pattern import Pattern
from simplicit.system import progress

LARGEST = 1e18
"""Root mean square of a state whose square, as of its neighbours', float32 still has."""


@dataclass
class Share:
    """What the plan gives to a group of channels.

    Attributes:
        coupling: What errors of the rows do to the outputs, one by one and together.
        keep: Weights of each row, where supports are chosen.
        quota: Weights of all rows, where they are relaxed.
        rank: Of the factors that all rows share; 0 where there are none.
        factors: Weights of these factors.
    """

    coupling: Float[Tensor, "K K"]
    keep: list[int]
    quota: int
    rank: int = 0
    factors: int = 0

    @property
    def importance(self) -> Float[Tensor, " K"]:
        """What a unit of each row's loss is worth."""
        return self.coupling.diagonal()

    @property
    def weights(self) -> int:
        """Weights of all its rows."""
        return (sum(self.keep) or self.quota) + self.factors

    def more(self, count: int) -> "Share":
        """Give more weights, row after row.

        Args:
            count: How many.

        Returns:
            The share with them.
        """
        each, rest = divmod(max(count, 0), len(self.keep))
        keep = [n + each + (k < rest) for k, n in enumerate(self.keep)]
        return replace(self, keep=keep)


@dataclass
class Plan:
    """What is known before any layer is matched.

    Attributes:
        price: Loss, times importance, that a weight has to save; 0 where supports are relaxed.
        penalty_factor: Factor of the penalty at which rows have the budget; 0 where supports are
            chosen.
        shares: Of every layer's groups.
        coherence: Of every layer's positions, see `Sensitivity`.
    """

    price: float
    penalty_factor: float
    shares: list[list[Share]]
    coherence: list[float]

    def cut(self, budget: int) -> "Plan":
        """Give every row the same part of what it has.

        Args:
            budget: Weights of all rows afterwards.

        Returns:
            The plan with them.
        """
        flat = [share for groups in self.shares for share in groups]
        kept = iter(shares([n for share in flat for n in share.keep], budget))
        fewer = iter(replace(share, keep=[next(kept) for _ in share.keep]) for share in flat)
        return replace(self, shares=[[next(fewer) for _ in groups] for groups in self.shares])


def row_problem(
    gram: Gram,
    recipe: Recipe,
    parts: Sequence[tuple[int, int]],
    bias: bool = True,
    ball: Ball | None = None,
) -> RowProblem:
    """Write the row problems of a group of channels.

    Args:
        gram: Their moments.
        recipe: What is asked for.
        parts: Sources of the features and how many each has. The features of a source have one
            scale ρ, their root mean square: without it small states lose to raw pixels.
        bias: Whether the last feature is the bias.
        ball: What rows may not leave.

    Returns:
        The rows, under a budget at penalty factor 1.
    """
    ones, scales = torch.ones_like(gram.G[0]), torch.zeros_like(gram.G[0])
    if bias:
        ones[-1] = 0.0
    sizes = [size for _, size in parts] + [1] * int(bias)
    squares = (gram.G.diagonal() * ones).split(sizes)
    for scale, square in zip(scales.split(sizes), squares, strict=True):
        # a part that is always zero is dropped by the solver; its scale only has to be positive
        scale.fill_(float(square.mean()) ** 0.5 or 1.0)
    scales = scales * ones
    penalty = recipe.penalty(gram.m, scales, ones)
    return RowProblem(gram, penalty, ball, recipe.matching_loss)


def anchor(W: Float[Tensor, "K d"], bias: bool) -> Float[Tensor, "K N"]:
    """Write present weights as a row problem has them.

    Args:
        W: Weights.
        bias: Whether the rows have a bias.

    Returns:
        The weights in float64, with a bias that is not corrected if there is one.
    """
    return F.pad(W.double(), (0, int(bias)))


@dataclass(frozen=True, eq=False)
class Posed:
    """The row problems of all layers on the teacher's states, group by group.

    Attributes:
        problems: Of every layer's groups.
        coupling: What errors of their rows do to the outputs.
        coherence: Of every layer's positions.
    """

    problems: list[list[RowProblem]]
    coupling: list[list[Float[Tensor, "K K"]]]
    coherence: list[float]


def pose(
    equations: StateEquations,
    layers: Sequence[Rows],
    frontier: Frontier,
    recipe: Recipe,
    found: Sequence[Sensitivity] | None,
    balls: Sequence[Ball | None],
    executor: Executor | None,
    later: Sequence[list[Gram]],
) -> Posed:
    """Write the row problems of all layers on the teacher's states.

    Args:
        equations: The teacher, in the structure that is solved.
        layers: Its rows.
        frontier: The teacher's states.
        recipe: What is asked for.
        found: What the outputs feel of each layer's rows; None to weigh rows alike.
        balls: What each layer's rows may not leave.
        executor: Takes batches side by side.
        later: Moments of each layer's later uses, see `later_moments`.

    Returns:
        The problems, and what weighs them.
    """
    coherence = [0.0 for _ in layers] if found is None else [layer.coherence for layer in found]
    grams = [
        together(own, others)
        for own, others in zip(
            teacher_moments(equations, layers, frontier, recipe, coherence, executor),
            later,
            strict=True,
        )
    ]
    problems = [
        [row_problem(gram, recipe, rows.sources(equations), rows.biased, ball) for gram in groups]
        for rows, groups, ball in zip(layers, grams, balls, strict=True)
    ]
    if found is None:
        coupling = [[_inverse(p.gram.t2).diag() for p in groups] for groups in problems]
    else:
        coupling = [layer.coupling for layer in found]
    return Posed(problems, coupling, coherence)


def plan_layers(
    equations: StateEquations,
    layers: Sequence[Rows],
    recipe: Recipe,
    budget: int,
    posed: Posed,
    executor: Executor | None,
    patterns: Sequence[Pattern],
) -> Plan:
    """Find the price of a weight, or the penalty's factor, and each row's share.

    Args:
        equations: The teacher, in the structure that is solved.
        layers: Its rows.
        recipe: What is asked for, with a sparsity.
        budget: Weights to spend.
        posed: The row problems.
        executor: Takes rows side by side.
        patterns: Which weights of each layer may be zero together.

    Returns:
        The plan.
    """
    problems, coupling = posed.problems, posed.coupling
    flat = [problem for groups in problems for problem in groups]
    coupled = [part for groups in coupling for part in groups]
    worth = [part.diagonal() for part in coupled]
    keep: list[list[int]] = [[] for _ in flat]
    quota, factor, price = [0 for _ in flat], 0.0, 0.0
    with progress.task("spending the budget over the rows", total=1) as step:
        if recipe.chooses:
            anchors = [
                anchor(W, rows.biased)
                for rows in layers
                for W in rows.weights(equations.layers[rows.index])
            ]
            own = [p for p, groups in zip(patterns, problems, strict=True) for _ in groups]
            price, keep = allot(flat, worth, budget, recipe.method, executor, anchors, own)
            step(1, f"{sum(map(sum, keep))} weights")
        else:

            def report(factor: float, weights: int) -> None:
                step(0, f"{weights} weights, {budget} wanted")

            factor, solved = solve_to_budget(
                flat, budget, tol=recipe.tol, executor=executor, report=report
            )
            counts = [count(s, p.free) for s, p in zip(solved, flat, strict=True)]
            quota = list(shares(counts, budget))
            step(1, f"penalty factor {factor:.3g}")
    parts = iter(zip(coupled, keep, quota, strict=True))
    given = [[Share(*next(parts)) for _ in groups] for groups in problems]
    return Plan(price, factor, given, posed.coherence)


def teacher_moments(
    equations: StateEquations,
    layers: Sequence[Rows],
    frontier: Frontier,
    recipe: Recipe,
    coherence: Sequence[float],
    executor: Executor | None,
) -> list[list[Gram]]:
    """Accumulate the row problems of all layers on the teacher's own states.

    Args:
        equations: The teacher, in the structure that is solved.
        layers: Its rows.
        frontier: The teacher's states; at the outputs afterwards.
        recipe: What is asked for.
        coherence: Of every layer's positions.
        executor: Takes batches side by side.

    Returns:
        Moments of each layer's groups; see `require_finite`.
    """
    grams = []
    with progress.task("moments of the layers", total=len(layers)) as step:
        for index, equation in enumerate(equations.layers):
            own = equation if recipe.bias else equation.unbiased
            for rows, common in zip(layers, coherence, strict=True):
                if rows.index != index:
                    continue
                readings = Readings(rows, own, frontier, rows.biased, common, executor)
                grams.append(readings.moments())
                for gram in grams[-1]:
                    require_finite(gram, rows.name)
                step(1, rows.name)
            if index < len(equations.hidden):
                frontier.advance(equation)
    return grams


def later_moments(
    equations: StateEquations,
    layers: Sequence[Rows],
    frontier: Frontier,
    executor: Executor | None,
) -> list[list[Gram]]:
    """Accumulate the row problems of later uses of weights, on the teacher's own states.

    A step of a recurrence says nothing of the next ones: alone, the first step would be matched,
    and errors could grow from step to step.

    Args:
        equations: The teacher, in the structure that is solved.
        layers: Its rows.
        frontier: The teacher's states.
        executor: Takes batches side by side.

    Returns:
        Moments of each layer's groups over all later uses; none where there are none.
    """
    found: list[list[Gram]] = [[] for _ in layers]
    last = max((use.index for rows in layers for use in rows.uses), default=-1)
    for index, equation in enumerate(equations.layers[: last + 1]):
        for k, rows in enumerate(layers):
            for use in rows.uses:
                if use.index == index:
                    readings = Readings(use, equation, frontier, rows.biased, 0.0, executor)
                    found[k] = together(readings.moments(), found[k])
        if index < last:
            frontier.advance(equation)
    return found


def together(grams: list[Gram], others: list[Gram]) -> list[Gram]:
    """Join the moments of the same rows.

    Args:
        grams: Moments of each group.
        others: Others of each group, or none.

    Returns:
        Moments over both.
    """
    if not others:
        return grams
    return [gram.merge(other) for gram, other in zip(grams, others, strict=True)]


def require_finite(gram: Gram, name: str) -> None:
    """Refuse states with which nothing can be computed.

    Args:
        gram: Moments of a layer's rows.
        name: The layer's.

    Raises:
        InputError: If states are not finite, or too large for the sweeps.
    """
    # no product of two features is larger than the larger of their squares
    size = float(torch.cat([gram.G.diagonal(), gram.t2]).amax()) ** 0.5
    if not size <= LARGEST:
        found = f"of size {size:.0e}" if size == size and size < float("inf") else "not finite"
        raise InputError(
            f"the network's states are {found} on the calibration inputs, at layer {name}: "
            f"accepted is up to {LARGEST:.0e}; give the inputs in other units"
        )


def _inverse(t2: Tensor) -> Tensor:
    return torch.where(t2 > 0, 1 / t2, 0.0).cpu()
