"""A layer's rows by factors: how many ranks each layer has, and which.

A layer keeps its own weights where factors would have no fewer, or where other equations use its
weights, too. It is matched all the same, each weight where it was.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simplicit.calibration.rows import Rows, shared
from simplicit.convex.gram import Gram, fit_free, pseudo_inverse
from simplicit.convex.problem import RowProblem
from simplicit.equations.equation import Equation
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.plan import Plan, Posed, Share, anchor
from simplicit.matching.supports import Choice, Retarget
from simplicit.recipe import Recipe
from simplicit.sparsity.choice import allot, supports
from simplicit.sparsity.coupled import refit_coupled
from simplicit.sparsity.low_rank import (
    Ranks,
    Regression,
    Supports,
    allot_ranks,
    metric,
    regress,
    with_sparse,
)
from simplicit.sparsity.near import refit_all, refit_near, without_free

ROUNDS = 2
"""Times that factors and single weights are solved in turn, after each move of the targets."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Weights of a group of rows, W = left right + sparse.

    Attributes:
        left: Rows from channels.
        right: Channels from features, the bias not among them.
        sparse: Single weights, and the bias if rows have one.
    """

    left: Float[Tensor, "K r"]
    right: Float[Tensor, "r d"]
    sparse: Float[Tensor, "K N"]

    @property
    def whole(self) -> Float[Tensor, "K N"]:
        """The weights, multiplied out."""
        W = self.sparse.clone()
        W[:, : self.right.shape[1]] += self.left @ self.right
        return W


def plan_ranks(
    equations: StateEquations,
    layers: Sequence[Rows],
    recipe: Recipe,
    budget: int | None,
    posed: Posed,
    executor: Executor | None,
) -> Plan:
    """Say how many ranks each layer has, and how many single weights each row.

    Args:
        equations: The teacher, in the structure that is solved.
        layers: Its rows.
        recipe: What is asked for, with a rank.
        budget: Weights to spend; None for ranks alone.
        posed: The row problems on the teacher's states.
        executor: Takes rows side by side.

    Returns:
        The plan.

    Raises:
        InputError: If no layer would have factors, or the factors exceed the budget.
    """
    every = equations.layers
    anchors = [[anchor(W, r.biased) for W in r.weights(every[r.index])] for r in layers]
    found = []
    for rows, problems, coupling, near in zip(
        layers, posed.problems, posed.coupling, anchors, strict=True
    ):
        W = rows.weights(every[rows.index])
        unit, dense = W.shape[0] * (W.shape[1] + W.shape[2]), int(W.count_nonzero())
        groups = zip(problems, near, coupling, strict=True)
        whole = rows.uses or shared(rows, every)
        solved = [] if whole else [regress(*without_free(p, a), metric(S)) for p, a, S in groups]
        excess = sum((own.excess for own in solved), torch.zeros(1, dtype=torch.float64))
        found.append(Ranks(excess if solved else excess.new_zeros(1), unit, dense))
    _require_factors(found, recipe)
    if recipe.rank == "auto":
        assert budget is not None
        return _dense_or_ranks(_automatic(found, recipe, budget), found, layers, every, posed)
    assert recipe.rank is not None
    ranks = [recipe.rank if recipe.rank <= own.most else 0 for own in found]
    if budget is None:
        return _dense_or_ranks(ranks, found, layers, every, posed)
    left = budget - sum(own.unit * rank for own, rank in zip(found, ranks, strict=True))
    if left < 0:
        fits = [r for r in range(1, recipe.rank) if _of_rank(found, r) <= budget]
        raise InputError(
            f"rank={recipe.rank}: its factors have {budget - left:,} weights and the sparsity "
            f"leaves {budget:,}; accepted is " + (f"at most {max(fits)}" if fits else "no rank")
        )
    return _with_single_weights(ranks, left, recipe, posed, anchors, executor)


def _of_rank(layers: Sequence[Ranks], rank: int) -> int:
    return sum(rank * own.unit for own in layers if rank <= own.most)


def _require_factors(layers: Sequence[Ranks], recipe: Recipe) -> None:
    most = max(own.most for own in layers)
    if most == 0:
        raise InputError(
            f"rank={recipe.rank!r}: factors would have fewer weights in no layer, and weights that "
            "layers share are not factored; accepted is None"
        )
    if recipe.rank != "auto" and recipe.rank is not None and recipe.rank > most:
        raise InputError(
            f"rank={recipe.rank}: factors of this rank have fewer weights in no layer; accepted is "
            f"at most {most}"
        )


def _automatic(layers: Sequence[Ranks], recipe: Recipe, budget: int) -> list[int]:
    least = sum(own.options[0][0] for own in layers)
    if least > budget:
        raise InputError(
            f"sparsity={recipe.sparsity}: it leaves {budget:,} weights, and with rank 1 wherever "
            f"that is fewer, the layers have {least:,}; accepted with rank='auto' is a smaller one"
        )
    _, places = allot_ranks(layers, budget)
    return [p + 1 if p < own.most else 0 for p, own in zip(places, layers, strict=True)]


# ranks alone: a layer without factors keeps as many weights as it has
def _dense_or_ranks(
    ranks: Sequence[int],
    found: Sequence[Ranks],
    layers: Sequence[Rows],
    every: Sequence[Equation],
    posed: Posed,
) -> Plan:
    shares = []
    for rank, rows, coupling in zip(ranks, layers, posed.coupling, strict=True):
        W = rows.weights(every[rows.index])
        keep = (W.count_nonzero(2) * int(not rank)).tolist()
        shares.append(_shares(rank, coupling, keep, W.shape[2]))
    return Plan(0.0, 0.0, shares, posed.coherence)


def _with_single_weights(
    ranks: Sequence[int],
    budget: int,
    recipe: Recipe,
    posed: Posed,
    anchors: Sequence[Sequence[Tensor]],
    executor: Executor | None,
) -> Plan:
    flat = [problem for problems in posed.problems for problem in problems]
    near = [own for every in anchors for own in every]
    coupled = [S for coupling in posed.coupling for S in coupling]
    each = [rank for rank, own in zip(ranks, posed.problems, strict=True) for _ in own]
    worth = [S.diagonal() for S in coupled]
    # Prices of single weights are those of the rows less their factors, and these those of the rows
    # less their largest single weights: factors that had to stand for them would hide them.
    _, keep = allot(flat, worth, budget, recipe.method, executor, near)
    left_over: list[RowProblem] = []
    nearest: list[Tensor] = []
    for rank, problem, S, own, counts in zip(each, flat, coupled, near, keep, strict=True):
        W = torch.zeros_like(own)
        if rank:
            single = refit_near(
                problem, supports(problem, counts, recipe.method, executor, own), own, executor
            )
            others = replace(problem, gram=_rest(problem.gram, single))
            system = without_free(others, own - single)
            W[:, ~problem.free] = regress(*system, metric(S)).weights(rank)
        left_over.append(replace(problem, gram=_rest(problem.gram, W)))
        nearest.append(own - W)
    _, keep = allot(left_over, worth, budget, recipe.method, executor, nearest)
    counts = iter(keep)
    shares = [
        _shares(rank, coupling, [next(counts) for _ in coupling], int((~problem.free).sum()))
        for rank, coupling, (problem, *_) in zip(ranks, posed.coupling, posed.problems, strict=True)
    ]
    return Plan(0.0, 0.0, shares, posed.coherence)


def _shares(
    rank: int, coupling: Sequence[Tensor], keep: Sequence[list[int]], features: int
) -> list[Share]:
    groups = zip(coupling, keep, strict=True)
    return [Share(S, own, 0, rank, rank * (len(own) + features)) for S, own in groups]


# what weights leave of the targets
def _rest(gram: Gram, W: Float[Tensor, "K N"]) -> Gram:
    done = W @ gram.G
    t2 = gram.t2 + ((done - 2 * gram.R) * W).sum(1)
    return gram.with_targets(gram.R - done, t2.clamp_min(0.0))


def choose(
    choice: Choice,
    problems: list[RowProblem],
    shares: Sequence[Share],
    anchors: list[Tensor],
    retarget: Retarget,
) -> tuple[list[RowProblem], list[Parts]]:
    """Find the weights of a layer's rows, in steps between which the ReLU targets move.

    Args:
        choice: How supports are chosen.
        problems: Rows of each group.
        shares: What each group may spend; the rank is the same in all groups.
        anchors: Weights that the data may leave as they are.
        retarget: Moves targets.

    Returns:
        The rows with their last targets, and the weights.
    """
    if not shares[0].rank and choice.recipe.both:
        problems, found = choice.choose(problems, list(shares), anchors, retarget)
        return problems, [_alone(p, W) for p, W in zip(problems, found, strict=True)]
    parts: list[Parts] = []
    for part in choice.steps:
        if parts and choice.aware:
            grams = retarget([own.whole for own in parts], [p.gram for p in problems])
            problems = [replace(p, gram=g) for p, g in zip(problems, grams, strict=True)]
        groups = zip(problems, shares, anchors, parts or [None] * len(problems), strict=True)
        parts = [_step(choice, part, *group) for group in groups]
    return problems, parts


def _alone(problem: RowProblem, W: Float[Tensor, "K N"]) -> Parts:
    return Parts(W.new_zeros(len(W), 0), W.new_zeros(0, int((~problem.free).sum())), W)


# one group: with a part of its share, or with its single weights where they are
def _step(
    choice: Choice,
    part: float | None,
    problem: RowProblem,
    share: Share,
    near: Float[Tensor, "K N"],
    before: Parts | None,
) -> Parts:
    if not share.rank:
        return _alone(problem, _where_it_was(choice, problem, share, near))
    own, free = ((mask).nonzero()[:, 0] for mask in (~problem.free, problem.free))
    G, R = without_free(problem, near)
    rank, sparse = min(round((part or 1.0) * share.rank), *R.shape), torch.zeros_like(R)
    S = share.coupling
    if any(share.keep):
        inner = problem.restrict(own)
        inner = replace(inner, gram=Gram.of(G, R, problem.gram.t2, problem.gram.m))
        low, sparse = _both(choice, part, inner, share, rank, before and before.sparse[:, own])
    else:
        low = regress(G, R, metric(S))
    W = torch.zeros_like(problem.gram.R)
    W[:, own] = low.weights(rank) + sparse
    fit_free(problem.gram, free, pseudo_inverse(problem.gram.G[free][:, free]), W)
    W[:, own] = sparse
    return Parts(low.left[:, :rank], low.right[:rank], W)


def _both(
    choice: Choice,
    part: float | None,
    inner: RowProblem,
    share: Share,
    rank: int,
    before: Tensor | None,
) -> tuple[Regression, Tensor]:
    if part is None:
        assert before is not None
        return with_sparse(inner, share.coupling, rank, _as_they_are(before), before, 1)[:2]
    keep = [round(part * n) for n in share.keep]
    method = choice.recipe.method
    chosen = partial(supports, keep=keep, method=method, executor=choice.executor)
    starts = [before] if before is not None else []
    if not starts:  # either part may come first
        none = torch.zeros_like(inner.gram.R)
        starts = [none, refit_near(inner, chosen(inner), none, choice.executor)]
    ways = [with_sparse(inner, share.coupling, rank, chosen, start, ROUNDS) for start in starts]
    low, sparse, _ = min(ways, key=lambda way: way[2][-1])
    return low, sparse


def _as_they_are(sparse: Tensor) -> Supports:
    support: Bool[Tensor, "K d"] = sparse != 0
    return lambda _: support


# least squares over all of a layer's weights: zeros stay zeros
def _where_it_was(
    choice: Choice, problem: RowProblem, share: Share, near: Tensor
) -> Float[Tensor, "K N"]:
    if bool((near[:, ~problem.free] != 0).all()):
        return refit_all(problem, near)
    W = refit_near(problem, near != 0, near, choice.executor)
    return refit_coupled(problem, W, share.coupling, choice.executor) if choice.coupled else W
