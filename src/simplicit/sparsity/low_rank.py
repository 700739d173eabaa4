"""Reduced-rank regression: the rows of a layer by few channels that all of them read.

W of rank r minimises ½ tr(S E G E') with E = W* − W, where W* G = R and S says how the outputs
couple the rows. With S = C'C and G = LL' that is ½ ‖C W* L − C W L‖², so the best W has the first r
singular triples of C W* L (Izenman, "Reduced-rank regression for the multivariate linear model",
1975; Eckart and Young, 1936). The solution is exact for every rank: the loss that it adds is half
the sum of the squares of the singular values that are left out, and no weights of that rank have
less.

With single weights beside the factors, W = left right + sparse, either part is solved in view of
the other one in turn; no turn raises the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simplicit.convex.cholesky import factor
from simplicit.convex.problem import RowProblem
from simplicit.sparsity.coupled import DAMPING, Coupling, refit_coupled
from simplicit.sparsity.near import refit_near

UNHEARD = 1e-9
"""Least coupling of a row with itself, relative to the largest: rows that no output hears are
matched with what the others leave over."""

Supports = Callable[[RowProblem], Bool[Tensor, "K N"]]
"""Chooses single weights."""


@dataclass(frozen=True, eq=False)
class Regression:
    """The best weights of every rank, in falling order of what a rank is worth.

    Attributes:
        left: Rows from channels.
        right: Channels from features; each has the norm of its column of `left`.
        values: Singular values of the weights in the metric of S and G.
    """

    left: Float[Tensor, "K n"]
    right: Float[Tensor, "n d"]
    values: Float[Tensor, " n"]

    def weights(self, rank: int) -> Float[Tensor, "K d"]:
        """Multiply out.

        Args:
            rank: Of the weights.

        Returns:
            The best weights of at most this rank.
        """
        return self.left[:, :rank] @ self.right[:rank]

    @property
    def excess(self) -> Float[Tensor, " ranks"]:
        """Loss that each rank from 0 to n adds to that of least squares; the last is 0."""
        squares = self.values.square().flip(0).cumsum(0).flip(0) / 2
        return torch.cat([squares, squares.new_zeros(1)])


def metric(S: Coupling) -> Coupling:
    """Damp a coupling as `coupled` does, and make it positive definite.

    Args:
        S: How the outputs couple the rows.

    Returns:
        The coupling that is solved with; the identity where no output hears any row.
    """
    own = S.diagonal()
    least = UNHEARD * float(own.max()) or 1.0
    return S + (DAMPING * own + least).diag()


def regress(
    G: Float[Tensor, "d d"], R: Float[Tensor, "K d"], S: Float[Tensor, "K K"]
) -> Regression:
    """Solve the regressions of all ranks.

    Args:
        G: Gram of the features, positive definite.
        R: Moments of targets and features.
        S: Positive definite coupling of the rows.

    Returns:
        Their solution; at full rank it is least squares.
    """
    lower = factor(G)
    whitened = torch.linalg.solve_triangular(lower, R.T, upper=False).T  # W* L
    spread, axes = torch.linalg.eigh(S.to(G))
    root = spread.clamp_min(0.0).sqrt()[:, None] * axes.T
    _, values, directions = torch.linalg.svd(root @ whitened, full_matrices=False)
    right = torch.linalg.solve_triangular(lower.T, directions.T, upper=True).T
    left = R @ right.T  # least squares on channels that are uncorrelated, and of unit length
    balance = (left.norm(dim=0) / right.norm(dim=1)).sqrt()
    balance = torch.where(balance > 0, balance, 1.0)
    return Regression(left / balance, right * balance[:, None], values)


def loss(
    G: Float[Tensor, "d d"], R: Float[Tensor, "K d"], S: Float[Tensor, "K K"], W: Tensor
) -> float:
    """Evaluate ½ tr(S E G E'), but for what no weights change.

    Args:
        G: Gram of the features.
        R: Moments of targets and features.
        S: Coupling of the rows.
        W: Weights (K, d).

    Returns:
        The loss; 0 at weights 0.
    """
    return float(0.5 * (S.to(G) * ((W @ G - 2 * R) @ W.T)).sum())


def with_sparse(
    problem: RowProblem,
    S: Coupling,
    rank: int,
    supports: Supports,
    sparse: Float[Tensor, "K d"],
    rounds: int,
) -> tuple[Regression, Float[Tensor, "K d"], list[float]]:
    """Match rows by factors and single weights, either in view of the other one.

    Args:
        problem: The rows, all features penalised; penalty and ball are left out.
        S: How the outputs couple the rows.
        rank: Of the factors.
        supports: Chooses the single weights of rows with given targets.
        sparse: Single weights to begin with; where a row has more than are chosen for it, the first
            step may raise the loss, and no other one does.
        rounds: Times that each part is solved.

    Returns:
        The regression that gave the factors, the single weights, and the loss after each step,
        with the factors solved last.
    """
    G, R, damped = problem.gram.G, problem.gram.R, metric(S)
    low, losses = regress(G, R - sparse @ G, damped), []
    for _ in range(rounds):
        dense = low.weights(rank)
        losses.append(loss(G, R, damped, dense + sparse))
        rest = replace(problem, gram=problem.gram.with_targets(R - dense @ G, problem.gram.t2))
        support = supports(rest)
        known = [refit_near(rest, support, torch.zeros_like(sparse))]
        # supports are chosen by a method without a guarantee: those so far may be better
        if bool((sparse.count_nonzero(1) <= support.sum(1)).all()):
            known.append(sparse)
        refitted = [refit_coupled(rest, own, S) for own in known]
        sparse = min(refitted, key=lambda own: loss(G, rest.gram.R, damped, own))
        losses.append(loss(G, R, damped, dense + sparse))
        low = regress(G, R - sparse @ G, damped)
    losses.append(loss(G, R, damped, low.weights(rank) + sparse))
    return low, sparse, losses


@dataclass(frozen=True, eq=False)
class Ranks:
    """What a layer's ranks cost and buy.

    Attributes:
        excess: Loss that each rank from 0 on adds at the outputs.
        unit: Weights of a rank.
        dense: Weights of the layer itself.
    """

    excess: Float[Tensor, " ranks"]
    unit: int
    dense: int

    @property
    def most(self) -> int:
        """The largest rank whose factors have fewer weights than the layer; 0 if there is none."""
        return min((self.dense - 1) // self.unit, len(self.excess) - 1)

    @property
    def options(self) -> list[tuple[int, float]]:
        """Weights and added loss of rank 1, 2, …, `most`, and of the layer itself."""
        own = self.excess.tolist()
        return [*((r * self.unit, own[r]) for r in range(1, self.most + 1)), (self.dense, 0.0)]


def allot_ranks(layers: Sequence[Ranks], budget: int) -> tuple[float, list[int]]:
    """Spend a budget over the ranks of all layers, at one price for all weights.

    A layer goes up its convex hull, from rank 1 to itself, as long as a weight buys more than
    anywhere else; what is left is spent where it fits.

    Args:
        layers: What their ranks cost and buy; of a layer that has no factors, only itself.
        budget: Weights of all layers together, at least those of rank 1.

    Returns:
        The price of a weight, and each layer's place among its options.
    """
    options = [layer.options for layer in layers]
    places = [0 for _ in layers]
    left = budget - sum(own[0][0] for own in options)
    price = 0.0
    ways = [_ascents(k, own) for k, own in enumerate(options)]
    stopped: set[int] = set()
    for gain, k, place in sorted((step for way in ways for step in way), key=lambda s: -s[0]):
        weights = options[k][place][0] - options[k][places[k]][0]
        if k in stopped or weights > left or gain <= 0:
            stopped.add(k)  # further steps of this layer go through this one
            continue
        places[k], left, price = place, left - weights, gain
    while True:
        best = (0.0, 0, 0)
        for k, own in enumerate(options):
            weights, excess = own[places[k]]
            for place in range(places[k] + 1, len(own)):
                more = own[place][0] - weights
                if more <= left:
                    best = max(best, ((excess - own[place][1]) / more, k, place))
        if best[0] <= 0:
            return price, places
        _, k, place = best
        left -= options[k][place][0] - options[k][places[k]][0]
        places[k] = place


# the steps up a layer's lower convex hull: what a weight buys, the layer, and where the step ends
def _ascents(k: int, options: Sequence[tuple[int, float]]) -> list[tuple[float, int, int]]:
    place, steps = 0, []
    while place < len(options) - 1:
        weights, excess = options[place]
        further = [
            ((excess - other[1]) / (other[0] - weights), k, place + 1 + i)
            for i, other in enumerate(options[place + 1 :])
        ]
        steps.append(max(further))
        place = steps[-1][2]
    return steps
