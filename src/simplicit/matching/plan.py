"""How a budget is spent over the layers of a network with convolutions, before any is matched."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.batches import Batches
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.moments import moments
from simplicit.calibration.rows import Channels
from simplicit.convex.gram import Gram
from simplicit.convex.problem import RowProblem
from simplicit.equations.layer_phi import Kept
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.outputs.sensitivity import channel_sensitivity
from simplicit.recipe import Recipe
from simplicit.sparsity.budget import shares
from simplicit.sparsity.choice import plan
from simplicit.sparsity.path import count, solve_to_budget
from simplicit.system import progress


@dataclass
class Share:
    """What the plan gives to a group of channels.

    Attributes:
        coupling: What errors of the rows do to the outputs, one by one and together.
        keep: Weights of each row, where supports are eliminated.
        quota: Weights of all rows, where they are relaxed.
    """

    coupling: Float[Tensor, "K K"]
    keep: list[int]
    quota: int

    @property
    def importance(self) -> Float[Tensor, " K"]:
        """What a unit of each row's loss is worth."""
        return self.coupling.diagonal()


def row_problem(gram: Gram, recipe: Recipe) -> RowProblem:
    """Write the row problems of a group of channels.

    Args:
        gram: Their moments; the bias, if there is one, is the last feature.
        recipe: What is asked for.

    Returns:
        The rows, under a budget at penalty level 1; all features have one scale.
    """
    ones = torch.ones_like(gram.G[0])
    if recipe.bias:
        ones[-1] = 0.0
    mean_square = float((gram.G.diagonal() * ones).sum() / ones.sum().clamp_min(1))
    penalty = recipe.penalty(gram.m, ones * (mean_square**0.5 or 1.0), ones)
    return RowProblem(gram, penalty, None, recipe.matching_loss)


def anchor(W: Float[Tensor, "K d"], recipe: Recipe) -> Float[Tensor, "K N"]:
    """Write present weights as a row problem has them.

    Args:
        W: Weights.
        recipe: What is asked for.

    Returns:
        The weights in float64, with a bias that is not corrected if there is one.
    """
    return F.pad(W.double(), (0, int(recipe.bias)))


def learnable(equations: StateEquations, recipe: Recipe) -> int:
    """Count the non-zeros that a budget leaves to the rows.

    Args:
        equations: The teacher.
        recipe: What is asked for, with a sparsity.

    Returns:
        The budget without what cannot be removed, the weights of operations kept as they are.
    """
    assert recipe.sparsity is not None
    kept = sum(e.phi.nnz for e in equations.hidden if isinstance(e.phi, Kept))
    return max(round((1 - recipe.sparsity) * equations.nonzeros) - kept, 0)


@dataclass
class Plan:
    """What is known before any layer is matched.

    Attributes:
        level: Loss up to which a weight is removed, or of the penalty.
        shares: Of every layer's groups.
        coherence: Of every layer's positions, see `ChannelSensitivity`.
    """

    level: float
    shares: list[list[Share]]
    coherence: list[float]


def plan_layers(
    equations: StateEquations,
    layers: Sequence[Channels],
    stream: Batches,
    recipe: Recipe,
    workers: int,
) -> Plan:
    """Find the level and each row's share on the teacher's own states.

    Args:
        equations: The teacher.
        layers: Its rows.
        stream: Calibration inputs.
        recipe: What is asked for, with a sparsity.
        workers: Parallel blocks of rows.

    Returns:
        The plan.
    """
    found = channel_sensitivity(equations, layers, stream) if recipe.sensitivity else None
    coherence = [0.0 for _ in layers] if found is None else [layer.coherence for layer in found]
    grams = _moments(equations, layers, stream, recipe, coherence, workers)
    problems = [[row_problem(gram, recipe) for gram in groups] for groups in grams]
    if found is None:
        coupling = [[_inverse(p.gram.t2).diag() for p in groups] for groups in problems]
    else:
        coupling = [layer.coupling for layer in found]
    flat = [problem for groups in problems for problem in groups]
    coupled = [part for groups in coupling for part in groups]
    worth = [part.diagonal() for part in coupled]
    keep: list[list[int]] = [[] for _ in flat]
    quota = [0 for _ in flat]
    budget = learnable(equations, recipe)
    with progress.task("spending the budget over the rows", total=1) as step:
        if recipe.eliminates:
            anchors = [
                anchor(W, recipe)
                for rows in layers
                for W in rows.weights(equations.layers[rows.index])
            ]
            level, keep, _ = plan(flat, worth, budget, workers, anchors)
        else:
            level, solved = solve_to_budget(flat, budget, tol=recipe.tol, workers=workers)
            counts = [count(s, p.free) for s, p in zip(solved, flat, strict=True)]
            quota = list(shares(counts, budget))
        step(1, f"level {level:.3g}")
    parts = iter(zip(coupled, keep, quota, strict=True))
    return Plan(level, [[Share(*next(parts)) for _ in groups] for groups in problems], coherence)


def _moments(
    equations: StateEquations,
    layers: Sequence[Channels],
    stream: Batches,
    recipe: Recipe,
    coherence: Sequence[float],
    workers: int,
) -> list[list[Gram]]:
    frontier = Frontier(equations, stream, own=False)
    grams = []
    with progress.task("moments of the layers", total=len(layers)) as step:
        for index, equation in enumerate(equations.layers):
            for rows, common in zip(layers, coherence, strict=True):
                if rows.index != index:
                    continue
                grams.append(
                    moments(rows, equation, frontier, recipe.bias, common, workers=workers)
                )
                if not all(bool(torch.isfinite(gram.G).all()) for gram in grams[-1]):
                    raise InputError(
                        f"the states that {rows.name} reads are not finite on the calibration "
                        "inputs"
                    )
                step(1, rows.name)
            if index < len(equations.hidden):
                frontier.advance(equation)
    return grams


def _inverse(t2: Tensor) -> Tensor:
    return torch.where(t2 > 0, 1 / t2, 0.0).cpu()
