"""Supports by operator splitting: all rows of a layer keep their best weights at once.

Least squares with so many weights a row, min over W of ½ Σ_i (w_i − w*_i)' G (w_i − w*_i), is
split into a quadratic in X and a choice in Z, with multipliers ρU for X = Z (ADMM on a problem that
is not convex: Boyd et al. 2011, §9.1; for layers of networks: Meng et al., "ALPS", NeurIPS 2024):

    X = (R + ρ (Z − U)) (G + ρ I)⁻¹,   Z = the largest of X + U,   U = X + U − Z,

in features of unit length. G is that of all rows, so a step is one product of matrices, and nothing
here costs the cube of a row's length for every row, as `elimination` does. ρ rises from level to
level, and supports settle. The problem is not convex: `choice.bounded` bounds what is found.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from math import frexp

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from simplicit.convex.cholesky import LONG, factor, solve_factored
from simplicit.convex.problem import RowProblem
from simplicit.convex.products import times
from simplicit.sparsity.budget import shares
from simplicit.sparsity.elimination.of_blocks import weighed
from simplicit.sparsity.near import Anchor, without_free
from simplicit.sparsity.pattern import UNSTRUCTURED, Blocks, Pattern, rows_together
from simplicit.workers.run import run

LEVELS = tuple(0.05 * 2.0**i for i in range(8))
"""ρ, relative to the square of a feature; `benchmarks/ablation/supports.py` compares others."""

STEPS = 20
"""Steps at each level."""

HELD = 5
"""Steps between two looks at how large a weight has to be: to sort takes longer than a product."""

SHORT = 1024
"""Features up to which all levels are taken: they cost next to nothing."""

SETTLED = 0.01
"""Part of the weights at most whose place changes in the last level of longer rows."""

FEW = 16
"""A row needs no inverse of more features than so many times the rows that share it: triangular
solves in all steps take less time."""

TILE = 64
"""Rows side by side at most, whatever the number of workers: their bits do not depend on it."""

KEPT = 3 * 2**28
"""Bytes of factors of the longest rows, at most, that are kept from one choice of supports to the
next."""

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class _State:
    """Rows while their supports are looked for, in features of unit length: R, Z, U and X + U."""

    R: Tensor
    Z: Tensor
    U: Tensor
    Y: Tensor
    settled: bool = False

    @classmethod
    def first(cls, R: Tensor) -> "_State":
        return cls(R, R, torch.zeros_like(R), R)


def supports(
    problem: RowProblem,
    keep: Sequence[int],
    executor: Executor | None = None,
    anchor: Anchor = None,
    pattern: Pattern = UNSTRUCTURED,
    worth: Float[Tensor, " K"] | None = None,
    known: "Known | None" = None,
) -> Bool[Tensor, "K N"]:
    """Choose which weights each row keeps.

    Args:
        problem: The rows; penalty and ball are left out.
        keep: Weights of each row, free features not counted; at most, where they go in blocks.
        executor: Takes rows side by side.
        anchor: Weights that the data may leave as they are; zero without.
        pattern: Which weights may be zero together.
        worth: What a unit of each row's loss is worth beside the others of its block.
        known: Of an earlier choice on the same features, or empty; what takes long to make is kept
            there.

    Returns:
        Which weights may be non-zero, free features among them.
    """
    G, R = _of_unit_length(problem, anchor)
    if isinstance(pattern, Blocks) and worth is not None:
        R = weighed(R, worth / worth.max().clamp_min(TINY))
    keep = pattern.even(keep) if isinstance(pattern, Blocks) else keep
    together = rows_together(pattern)
    size = tile(len(R), together)
    wanted = torch.as_tensor(keep, device=R.device).clamp(0, R.shape[1]).split(size)
    states = [_State.first(part) for part in R.split(size)]
    work = STEPS * min(size, len(R)) * float(len(G)) ** 2
    for level, system in enumerate(_systems(G, len(R), executor, {} if known is None else known)):
        tiles = zip(states, wanted, strict=True)
        states = list(run(partial(_tile, level, system, pattern), tiles, executor, work=work))
        if all(state.settled for state in states):
            break
    support = torch.ones_like(problem.gram.R, dtype=torch.bool)
    pairs = zip(states, wanted, strict=True)
    chosen = torch.cat([_largest(pattern.scores(s.Y), counts) for s, counts in pairs])
    support[:, ~problem.free] = pattern.whole(chosen) if isinstance(pattern, Blocks) else chosen
    return support


def screen(
    problems: Sequence[RowProblem],
    importance: Sequence[Float[Tensor, "_"]],
    budget: int,
    executor: Executor | None = None,
    anchors: Sequence[Anchor] | None = None,
    patterns: Sequence[Pattern] | None = None,
) -> list[tuple[Float[Tensor, "_ _"], list[int]]]:
    """Spend a budget roughly over the rows of all problems.

    After each level the squares of all weights are compared by what they are worth, and a problem
    goes on with as many as it has among the best. A square is only a bound on what a removal costs,
    and a loose one where features are alike: the exact price is `elimination.of_rows.costs_among`.

    Args:
        problems: Blocks of rows; penalty and ball are left out.
        importance: What a unit of each row's loss is worth, one vector per problem.
        budget: Non-zeros to keep in all rows together, free features not counted.
        executor: Takes problems side by side.
        anchors: For each problem, the weights its data may leave as they are; zero without.
        patterns: For each problem, which weights may be zero together.

    Returns:
        For each problem the sizes of the weights, of features that are not free, by which they
        rank, 0 where the pattern has no room; and how many weights each row keeps.
    """
    pairs = zip(problems, anchors or [None] * len(problems), strict=True)
    parts = [_of_unit_length(*pair) for pair in pairs]
    patterns = patterns or [UNSTRUCTURED] * len(problems)
    # a power of two, which rounds nothing
    most = max((float(worth.max()) for worth in importance if len(worth)), default=0.0)
    unit = 2.0 ** frexp(most)[1]
    worth = [(w / unit).to(R) for w, (_, R) in zip(importance, parts, strict=True)]
    for k, pattern in enumerate(patterns):
        if isinstance(pattern, Blocks):  # whose rows are compared by what they are worth
            parts[k] = parts[k][0], weighed(parts[k][1], worth[k])
            worth[k] = torch.ones_like(worth[k])
    states = [_State.first(R) for _, R in parts]
    counts = shares([R.numel() for _, R in parts], budget)
    chosen: list[Tensor] = []
    sizes: list[Tensor] = []
    for level in range(len(LEVELS)):
        pieces = [*zip(parts, states, counts, worth, patterns, strict=True)]
        states = list(_problems(level, pieces, executor))
        sizes = [_sizes(p, s.Y) for p, s in zip(patterns, states, strict=True)]
        chosen = _best(sizes, worth, budget)
        counts = [int(c.sum()) for c in chosen]
    return [(size, c.sum(1).tolist()) for size, c in zip(sizes, chosen, strict=True)]


# what has no room counts for nothing
def _sizes(pattern: Pattern, Y: Tensor) -> Tensor:
    return pattern.scores(Y).clamp_min(0)


# In unit length, and single precision: it decides which weights are largest, and their values come
# from a refit in double.
def _of_unit_length(problem: RowProblem, anchor: Anchor) -> tuple[Tensor, Tensor]:
    G, R = without_free(problem, anchor)
    length = G.diagonal().clamp_min(torch.finfo(G.dtype).tiny).sqrt()
    return G.div_(length).div_(length[:, None]).float(), (R / length).float()


def inverted(rows: int, features: int) -> bool:
    """Say whether an inverse pays.

    Args:
        rows: Rows that share it.
        features: Of each.

    Returns:
        Whether it takes less time than triangular solves for all steps.
    """
    return rows * FEW >= features


def tile(rows: int, together: int = 1) -> int:
    """Say how many rows go side by side.

    Args:
        rows: Of a layer.
        together: So many share their places.

    Returns:
        The number: two workers have some each.
    """
    half = -(-rows // 2)
    return max(-(-min(half, TILE) // together), 1) * together


def at_once(rows: int, features: int) -> bool:
    """Say whether the systems of several levels, or of several problems, are made side by side.

    Args:
        rows: Of the layer.
        features: Of a row.

    Returns:
        False for the longest rows: all threads make one after the other, and the last levels may
        not be needed.
    """
    return features < LONG or inverted(rows, features)


@dataclass(frozen=True)
class _System:
    """G + ρ I: the whole inverse, or a Cholesky factor where rows are few."""

    matrix: Tensor
    whole: bool

    @classmethod
    def of(cls, G: Tensor, rows: int, rho: float, executor: Executor | None = None) -> "_System":
        lower, whole = factor(G, rho, executor), inverted(rows, len(G))
        return cls(torch.cholesky_inverse(lower) if whole else lower, whole)

    def solved(self, right: Tensor, executor: Executor | None = None) -> Tensor:
        if self.whole:
            return times(right, self.matrix)
        if executor is None:
            return solve_factored(self.matrix, right.T).T
        parts = right.split(tile(len(right)))
        return torch.cat([*run(self.solved, parts, executor, work=0.0)])


Known = dict[int, _System]
"""Systems of the longest rows, by level."""


# level by level; of the longest rows one at a time, by all: the last ones may not be needed
def _systems(G: Tensor, rows: int, executor: Executor | None, known: Known) -> Iterator[_System]:
    if at_once(rows, len(G)):
        once = partial(_System.of, G, rows)
        yield from run(once, LEVELS, executor, work=float(len(G)) ** 3)
        return
    for level, rho in enumerate(LEVELS):
        system = known.get(level) or _System.of(G, rows, rho, executor)
        if level < kept(len(G)):
            known[level] = system
        yield system


def kept(features: int) -> int:
    """Say how many levels of the longest rows are kept from one choice to the next.

    Args:
        features: Of a row.

    Returns:
        The first ones.
    """
    return int(KEPT // (4 * features**2))


def _tile(level: int, system: _System, pattern: Pattern, piece: tuple[_State, Tensor]) -> _State:
    state, wanted = piece
    if state.settled:  # whatever other tiles need
        return state
    found = _steps(level, system, state, wanted, pattern)
    return _settled(found, state, len(system.matrix), int(wanted.sum()))


# features and targets in unit length, state, weights that stay, worth of rows, pattern
_Posed = tuple[tuple[Tensor, Tensor], _State, int, Tensor, Pattern]


# side by side; of the longest rows one problem after the other, by all
def _problems(level: int, posed: list[_Posed], executor: Executor | None) -> Iterator[_State]:
    short = [piece for piece in posed if _together(piece)]
    work = max(map(_operations, short), default=0.0)
    once = partial(_problem, level)
    found = run(once, short, executor, cost=_operations, work=work)
    for piece in posed:
        yield next(found) if _together(piece) else _problem(level, piece, executor)


def _together(piece: _Posed) -> bool:
    (G, R), *_ = piece
    return at_once(len(R), len(G))


def _operations(piece: _Posed) -> float:
    G, rows = len(piece[0][0]), len(piece[1].R)
    return float(G) ** 2 * (G + STEPS * rows)


def _problem(level: int, piece: _Posed, executor: Executor | None = None) -> _State:
    (G, _), state, count, worth, pattern = piece
    if state.settled:  # X = Z, and the multipliers ρU of that stay
        U = state.U * (LEVELS[level - 1] / LEVELS[level])
        return replace(state, U=U, Y=state.Z + U)
    system = _System.of(G, len(state.R), LEVELS[level], executor)
    found = _steps(level, system, state, count, pattern, worth, executor)
    return _settled(found, state, len(G), count)


# whether rows are long and their last level changed next to nothing
def _settled(found: _State, before: _State, features: int, count: int) -> _State:
    if features <= SHORT:
        return found
    moved = int(((found.Z != 0) != (before.Z != 0)).sum())
    return replace(found, settled=moved <= SETTLED * count)


def _steps(
    level: int,
    system: _System,
    state: _State,
    keep: Tensor | int,
    pattern: Pattern,
    worth: Tensor | None = None,
    executor: Executor | None = None,
) -> _State:
    rho, R, Z, U, Y = LEVELS[level], state.R, state.Z, state.U, state.Y
    if level == 0:
        Z = system.solved(R, executor)
    else:
        U = U * (LEVELS[level - 1] / rho)
    for step in range(STEPS):
        Y = system.solved(R + rho * (Z - U), executor).add_(U)
        size = pattern.scores(Y)
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
    scores = (size.clamp_min(0).square() * worth[:, None]).flatten()
    least = scores.kthvalue(len(scores) - int(keep) + 1).values
    return (least / worth).sqrt()[:, None]


def _largest(size: Tensor, keep: Tensor) -> Tensor:
    ranks = torch.arange(size.shape[1], device=size.device).expand_as(size)
    order = size.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(size, dtype=torch.bool).scatter(1, order, ranks < keep[:, None])


# the best weights of all problems, by what their squares are worth
def _best(Y: list[Tensor], worth: list[Tensor], budget: int) -> list[Tensor]:
    scores = torch.cat([(y.square() * w[:, None]).flatten() for y, w in zip(Y, worth, strict=True)])
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.topk(min(budget, len(scores))).indices] = True
    parts = chosen.split([y.numel() for y in Y])
    return [part.view_as(y) for part, y in zip(parts, Y, strict=True)]
