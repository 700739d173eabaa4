"""A full A of low rank: the nuclear norm finds its row space, a refit in the ball its weights.

Features outside the ball, inputs and bias, are projected out: B and b are the best for any A. The
norm is that of √s_i a_ij ρ_j, in the units of what an error costs and of what a state carries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.convex.cholesky import factor, solve_factored
from simplicit.convex.nuclear import NuclearProblem
from simplicit.convex.problem import RowProblem
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.plan import Plan, Posed, Share
from simplicit.matching.records import Row
from simplicit.matching.supports import Choice, Retarget
from simplicit.recipe import Recipe
from simplicit.solvers.low import Low
from simplicit.solvers.nuclear import solve_to_rank, solve_within
from simplicit.sparsity.low_rank import metric, regress
from simplicit.sparsity.near import normal_equations, refit_all


def is_full(recipe: Recipe, equations: StateEquations) -> bool:
    """Say whether a rank is that of a full A.

    Args:
        recipe: What is asked for.
        equations: The network in the structure that is solved.

    Returns:
        Whether it is; otherwise it is that of factors, if there is one.
    """
    return recipe.rank is not None and equations.feedback


def plan_full(
    equations: StateEquations, layers: Sequence[Rows], recipe: Recipe, posed: Posed
) -> Plan:
    """Say which rows are of low rank together: those of A. All weights stay.

    Args:
        equations: The network, as one equation that reads itself.
        layers: Its rows and those of the outputs.
        recipe: What is asked for, with a rank.
        posed: The row problems on the teacher's states.

    Returns:
        The plan.

    Raises:
        InputError: If A cannot be of a higher rank anyway.
    """
    n = equations.n
    assert isinstance(recipe.rank, int)
    if recipe.rank >= n:
        raise InputError(
            f"rank={recipe.rank}: A has {n} rows; accepted with structure full is "
            + (f"at most {n - 1}" if n > 1 else "None")
        )
    shares = []
    for rows, coupling in zip(layers, posed.coupling, strict=True):
        own = rows.index < len(equations.hidden)
        width = rows.weights(equations.layers[rows.index]).shape[2]
        shares.append([Share(S, [width] * len(S), 0, recipe.rank if own else 0) for S in coupling])
    return Plan(0.0, 0.0, shares, posed.coherence)


@dataclass(frozen=True, eq=False)
class Reduced:
    """The rows of A alone, in the units of the norm, and the way back.

    Attributes:
        rows: The problem of A.
        G: Gram of all features, with its ridge.
        R: Moments of all features.
        inside: Features in the ball, the states.
        others: All others.
        units: √s_i ρ_j.
    """

    rows: NuclearProblem
    G: Float[Tensor, "N N"]
    R: Float[Tensor, "K N"]
    inside: Int[Tensor, " n"]
    others: Int[Tensor, " o"]
    units: Float[Tensor, "K n"]

    @classmethod
    def of(
        cls, problem: RowProblem, S: Float[Tensor, "K K"], near: Float[Tensor, "K N"]
    ) -> "Reduced":
        """Project out what is not in the ball.

        Args:
            problem: Rows whose states are in a ball.
            S: What their errors do to the outputs.
            near: Weights that the data may leave as they are.

        Returns:
            The rows of A.
        """
        G, R = normal_equations(problem, near)
        terms = problem.terms
        inside, others = ((terms.omega > 0).nonzero()[:, 0], (terms.omega == 0).nonzero()[:, 0])
        slopes = solve_factored(factor(G[others][:, others]), G[others][:, inside])
        lower = factor(G[inside][:, inside] - G[inside][:, others] @ slopes)
        H = lower @ lower.T  # positive definite, as the certificate needs it
        Q = R[:, inside] - R[:, others] @ slopes
        S = metric(S).to(G)
        left, right = S.diagonal().sqrt(), terms.rho[inside]
        rows = NuclearProblem(
            H / right / right[:, None],
            left[:, None] * Q / right,
            S / left / left[:, None],
            terms.omega[inside] / right,
            terms.radius[:, 0] * left,
        )
        return cls(rows, G, R, inside, others, left[:, None] * right)

    def whole(self, A: Float[Tensor, "K n"]) -> Float[Tensor, "K N"]:
        """Write rows whole, B and b at their optimum.

        Args:
            A: Weights of the states, in the norm's units.

        Returns:
            All weights, in their own units.
        """
        W = torch.zeros_like(self.R)
        W[:, self.inside] = A / self.units
        o = self.others
        missing = self.R[:, o] - W[:, self.inside] @ self.G[self.inside][:, o]
        W[:, o] = solve_factored(factor(self.G[o][:, o]), missing.T).T
        return W


def choose_full(
    choice: Choice,
    problems: list[RowProblem],
    shares: Sequence[Share],
    anchors: Sequence[Tensor],
    retarget: Retarget,
) -> tuple[list[RowProblem], list[Tensor], list[Low]]:
    """Find the weights of the rows of A, or of the outputs, and certify those of A.

    The row space is that of the convex problem or that of the regression without a ball, whichever
    has the smaller loss once its weights are the best in the ball. The second is often better where
    the ball has room, the first where it is tight. In front of a ReLU the weights are refitted as
    targets move.

    Args:
        choice: How rows are matched.
        problems: Rows, one group.
        shares: The rank, 0 for outputs.
        anchors: Weights that the data may leave as they are.
        retarget: Moves targets.

    Returns:
        The rows with their last targets, their weights, and for A the solution of the convex
        problem and that within the row space.
    """
    (problem,), (share,), (near,) = problems, shares, anchors
    if not share.rank:
        return problems, [refit_all(problem, near)], []
    tol, reduced = choice.recipe.tol, Reduced.of(problem, share.coupling, near)
    rows = reduced.rows
    convex = solve_to_rank(rows, share.rank, tol, choice.within)
    best = regress(rows.G, rows.R, rows.S).right[: share.rank]
    spaces = [convex.basis, torch.linalg.qr(best.T).Q]
    found = min(
        (solve_within(rows, own, tol) for own in spaces if own.shape[1]),
        key=lambda low: low.objective,
    )
    W = reduced.whole(found.A)
    for part in choice.steps:
        if part is None:
            (gram,) = retarget([W], [problem.gram])
            problem = replace(problem, gram=gram)
            reduced = Reduced.of(problem, share.coupling, near)
            found = solve_within(reduced.rows, found.basis, tol)
            W = reduced.whole(found.A)
    return [problem], [W], [convex, found]


def low_records(layer: str, first: int, found: Sequence[Low]) -> list[Row]:
    """Write down what all rows of A are together: the convex problem, and that of its row space.

    Args:
        layer: Name of the rows' layer.
        first: Number of the first record, behind the rows.
        found: Solutions.

    Returns:
        One record each.
    """
    return [
        {
            "layer": layer,
            "row": k,
            "status": low.status.name.lower(),
            "gap": low.gap,
            "relative_gap": low.relative_gap,
            "objective": low.objective,
            "bound": low.objective - low.gap,
            "nonzeros": 0,
            "iterations": low.iterations,
        }
        for k, low in enumerate(found, first)
    ]
