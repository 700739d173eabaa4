"""Supports by operator splitting: all rows of a layer keep their best weights at once.

Least squares with so many weights a row, min over W of ½ Σ_i (w_i − w*_i)' G (w_i − w*_i), is
split into a quadratic in X and a choice in Z, with multipliers ρU for X = Z (ADMM on a problem that
is not convex: Boyd et al. 2011, §9.1; for layers of networks: Meng et al., "ALPS", NeurIPS 2024):

    X = (R + ρ (Z − U)) (G + ρ I)⁻¹,   Z = the largest of X + U,   U = X + U − Z,

in features of unit length. G is that of all rows, so a step is one product of matrices, and nothing
here costs the cube of a row's length for every row, as `elimination` does. ρ rises from level to
level, and supports settle. The problem is not convex: `certified` bounds what is found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import frexp

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from simplicit.convex.gram import pseudo_inverse
from simplicit.convex.problem import RowProblem
from simplicit.sparsity.budget import shares
from simplicit.sparsity.near import Anchor, normal_equations
from simplicit.system.workers import pool, run

LEVELS = tuple(0.05 * 2.0**i for i in range(8))
"""ρ, relative to the square of a feature. With factors of four in place of two the loss of a
convolution's rows was 1 to 3 % higher; without the last two, that of rows with six weights 4 %."""

STEPS = 20
"""Steps at each level; three times as many lower the loss by another half percent."""

HELD = 5
"""Steps between two looks at how large a weight has to be: to sort takes longer than a product."""

TILE = 64
"""Rows side by side, whatever the number of workers: their bits do not depend on it."""


@dataclass(frozen=True)
class _State:
    """Rows while their supports are looked for, in features of unit length: R, Z, U and X + U."""

    R: Tensor
    Z: Tensor
    U: Tensor
    Y: Tensor

    @classmethod
    def first(cls, R: Tensor) -> "_State":
        return cls(R, R, torch.zeros_like(R), R)


def supports(
    problem: RowProblem, keep: Sequence[int], workers: int = 1, anchor: Anchor = None
) -> Bool[Tensor, "K N"]:
    """Choose which weights each row keeps.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted.
        workers: Parallel blocks of rows.
        anchor: Weights that the data may leave as they are; zero without.

    Returns:
        Which weights may be non-zero, free features among them.
    """
    G, R = _of_unit_length(problem, anchor)
    wanted = torch.as_tensor(keep, device=R.device).clamp(0, R.shape[1]).split(TILE)
    states = [_State.first(part) for part in R.split(TILE)]
    with pool(workers) as executor:
        for level, inverse in enumerate(run(partial(_inverse, G), LEVELS, executor)):
            tiles = zip(states, wanted, strict=True)
            states = list(run(partial(_tile, level, inverse), tiles, executor))
    support = torch.ones_like(problem.gram.R, dtype=torch.bool)
    chosen = [_largest(s.Y.abs(), counts) for s, counts in zip(states, wanted, strict=True)]
    support[:, ~problem.free] = torch.cat(chosen)
    return support


def allot(
    problems: Sequence[RowProblem],
    importance: Sequence[Float[Tensor, "_"]],
    budget: int,
    workers: int = 1,
    anchors: Sequence[Anchor] | None = None,
) -> tuple[float, list[list[int]]]:
    """Spend a budget over the rows of all problems, at one price for all weights.

    After each level the weights of all problems are compared by what they are worth, and a problem
    goes on with as many as it has among the best.

    Args:
        problems: Blocks of rows; penalty and ball are left out.
        importance: What a unit of each row's loss is worth, one vector per problem.
        budget: Non-zeros to keep in all rows together, free features not counted.
        workers: Problems side by side.
        anchors: For each problem, the weights its data may leave as they are; zero without.

    Returns:
        The price: the loss, times importance, that a weight at least saves; and how many weights
        each row keeps. Every row keeps a quarter of its equal share.
    """
    pairs = zip(problems, anchors or [None] * len(problems), strict=True)
    parts = [_of_unit_length(*pair) for pair in pairs]
    # a power of two, which rounds nothing
    most = max((float(worth.max()) for worth in importance if len(worth)), default=0.0)
    unit = 2.0 ** frexp(most)[1]
    worth = [(w / unit).to(R) for w, (_, R) in zip(importance, parts, strict=True)]
    states = [_State.first(R) for _, R in parts]
    surely = budget // (4 * sum(len(R) for _, R in parts))
    chosen = [torch.ones_like(R, dtype=torch.bool) for _, R in parts]
    price = 0.0
    with pool(workers, len(parts)) as executor:
        for level in range(len(LEVELS)):
            if level:
                counts = [int(c.sum()) for c in chosen]
            else:
                counts = shares([R.numel() for _, R in parts], budget)
            pieces = zip(parts, states, counts, worth, strict=True)
            states = list(run(partial(_problem, level), pieces, executor))
            scores = [s.Y.square() * w[:, None] for s, w in zip(states, worth, strict=True)]
            price, chosen = _best(scores, budget, surely)
    return unit * price / 2, [c.sum(1).tolist() for c in chosen]


# The normal equations of the features that are not free, these projected out, in unit length.
# Single precision decides which weights are largest; their values come from a refit in double.
def _of_unit_length(problem: RowProblem, anchor: Anchor) -> tuple[Tensor, Tensor]:
    G, R = normal_equations(problem, anchor)
    free, own = problem.free.nonzero()[:, 0], (~problem.free).nonzero()[:, 0]
    if len(free):
        slopes = G[own][:, free] @ pseudo_inverse(G[free][:, free])
        R = R[:, own] - R[:, free] @ slopes.T
        G = G[own][:, own] - slopes @ G[free][:, own]
    length = G.diagonal().clamp_min(torch.finfo(G.dtype).tiny).sqrt()
    return (G / length / length[:, None]).float(), (R / length).float()


def _inverse(G: Tensor, rho: float) -> Tensor:
    shifted = G.clone()
    shifted.diagonal().add_(rho)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))


def _tile(level: int, inverse: Tensor, piece: tuple[_State, Tensor]) -> _State:
    return _steps(level, inverse, *piece)


def _problem(level: int, piece: tuple[tuple[Tensor, Tensor], _State, int, Tensor]) -> _State:
    (G, _), state, count, worth = piece
    return _steps(level, _inverse(G, LEVELS[level]), state, count, worth)


def _steps(
    level: int, inverse: Tensor, state: _State, keep: Tensor | int, worth: Tensor | None = None
) -> _State:
    rho, R, Z, U, Y = LEVELS[level], state.R, state.Z, state.U, state.Y
    if level == 0:
        Z = R @ inverse
    else:
        U = U * (LEVELS[level - 1] / rho)
    for step in range(STEPS):
        Y = torch.addmm(U, R + rho * (Z - U), inverse)
        size = Y.abs()
        if step % HELD == 0:
            smallest = _smallest(size, keep, worth)
        Z = torch.where(size >= smallest, Y, 0.0)
        U = Y - Z
    return _State(R, Z, U, Y)


# The smallest weight that stays: of each row, or of all rows by what their squares are worth.
def _smallest(size: Tensor, keep: Tensor | int, worth: Tensor | None) -> Tensor:
    if worth is None:
        ranked = F.pad(size.sort(1, descending=True).values, (1, 0), value=torch.inf)
        return ranked.gather(1, torch.as_tensor(keep)[:, None])
    if not keep:
        return size.new_full((len(size), 1), torch.inf)
    scores = (size.square() * worth[:, None]).flatten()
    least = scores.kthvalue(len(scores) - int(keep) + 1).values
    return (least / worth).sqrt()[:, None]


def _largest(size: Tensor, keep: Tensor) -> Tensor:
    ranks = torch.arange(size.shape[1], device=size.device).expand_as(size)
    order = size.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(size, dtype=torch.bool).scatter(1, order, ranks < keep[:, None])


# the best scores of all problems, and of each row the `surely` best
def _best(scores: list[Tensor], budget: int, surely: int) -> tuple[float, list[Tensor]]:
    sure = [
        _largest(s, s.new_full((len(s),), min(surely, s.shape[1]), dtype=torch.long))
        for s in scores
    ]
    raised = torch.cat(
        [s.masked_fill(own, torch.inf).flatten() for s, own in zip(scores, sure, strict=True)]
    )
    best = raised.topk(min(budget, len(raised)))
    chosen = torch.zeros_like(raised, dtype=torch.bool)
    chosen[best.indices] = True
    finite = best.values[best.values.isfinite()]
    parts = chosen.split([s.numel() for s in scores])
    masks = [part.view_as(s) for part, s in zip(parts, scores, strict=True)]
    return float(finite.min()) if len(finite) else 0.0, masks
