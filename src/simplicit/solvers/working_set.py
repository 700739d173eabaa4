"""Working sets: among many features, each row is solved on the few that may matter to it.

Round by round a row is solved on a set of features by the same stages as any other problem, and
certified on all of them. The gradient, one sum of the rows of G that its weights select, says which
features have to come in: those whose moment exceeds their price σ (slope + μ ω). The set is the
support and the features that are nearest to their price or beyond it, and doubles where those
beyond do not fit (Massias, Gramfort & Salmon 2018; Bertrand et al. 2022). No row reads another's
set, and the whole Gram is not factorised; where a scaled copy of it has room, rows come here only
if coordinate descent has left them.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simplicit.convex.duality import mean_square
from simplicit.convex.gram import fit_free, pseudo_inverse
from simplicit.convex.problem import RowProblem
from simplicit.convex.scaled import SMALLEST
from simplicit.convex.shared import BYTES, INVERSES, ScaledGram
from simplicit.convex.solution import Solution
from simplicit.errors import InputError
from simplicit.solvers.settings import DEFAULTS, Settings
from simplicit.system import memory

Inner = Callable[[RowProblem, Float[Tensor, "1 n"], float, int], Solution]
"""Solves the row on a set, given where to start, the tolerance and the iterations left."""

Look = Callable[[float, int, bool], bool]
"""Told the relative gap, the iterations and whether the row is done, says whether to stop."""


def pays(problem: RowProblem, settings: Settings = DEFAULTS) -> bool:
    """Tell whether there are so many features that working sets are faster.

    Args:
        problem: The rows.
        settings: Say how many features are many.

    Returns:
        Whether to use them.
    """
    return len(problem.gram.G) >= settings.large


@dataclass
class Found:
    """Where a row stands.

    Attributes:
        W: Weights, (1, N).
        moments: c = R − W G, (1, N).
        mu: The ball's multiplier, (1,).
        gap: Duality gap on all features, (1,).
        iterations: Of all rounds so far.
        wide: Whether the set would have had to grow beyond its limit.
    """

    W: Float[Tensor, "1 N"]
    moments: Float[Tensor, "1 N"]
    mu: Float[Tensor, "1"]
    gap: Float[Tensor, "1"]
    iterations: int = 0
    wide: bool = False


class WorkingSets:
    """What rows share that are solved on working sets.

    Args:
        problem: The rows.
        workers: How many tiles of rows are solved side by side.
        device: Where the solvers iterate.
        settings: Sizes of the sets.

    Raises:
        InputError: If the largest sets would not fit into memory.

    Attributes:
        shared: The whole Gram in unit scale, for rows that need no more of it; None where it has
            no room.
    """

    def __init__(
        self,
        problem: RowProblem,
        workers: int = 1,
        device: torch.device | str | None = None,
        settings: Settings = DEFAULTS,
    ) -> None:
        self.settings = settings
        K, N = problem.gram.R.shape
        # a set's matrices, and the rows' weights, once more when they are joined
        size = workers * (BYTES + INVERSES) * (N / settings.share) ** 2 + 24.0 * K * N
        what, here = f"{K} rows of {N} features", problem.gram.G.device
        memory.require(size, what, here)
        self.free = problem.free.nonzero()[:, 0]
        self.inverse_free = pseudo_inverse(problem.gram.G[self.free][:, self.free])
        self.shared: ScaledGram | None = None
        with suppress(InputError):
            memory.require(size + BYTES * N * N + 32.0 * K * N, what, device or here)
            self.shared = ScaledGram(problem, device, inverses=False)

    def solve(
        self, problem: RowProblem, W: Tensor, tol: float, most: int, inner: Inner, look: Look
    ) -> Found:
        """Solve one row.

        Args:
            problem: The row.
            W: Where it starts, (1, N).
            tol: Accepted gap, relative to the row's unit.
            most: Cap on iterations.
            inner: Solves it on a set.
            look: Called after each round.

        Returns:
            The best certified weights; not solved where iterations ran out, `look` said to stop or
            the row is too wide.
        """
        if not bool((W != 0).any()):
            W = W.clone()
            fit_free(problem.gram, self.free, self.inverse_free, W)
        best = now = _certified(problem, W, None)
        settings, unit = self.settings, float(problem.unit)
        n, stays, limit = settings.first_set, 0, W.shape[1] // settings.share
        while True:
            done = not bool(best.gap > 0.9 * tol * unit)
            relative = float(best.gap) / unit if unit > 0 else 0.0
            if look(relative, now.iterations, done) or done or now.iterations >= most:
                break
            (kept, score), far = _scores(problem, now), False
            if now.iterations:
                needed = int(kept.sum()) + int(((score > 1 + 1e-9) & ~kept).sum())
                stays = stays + 1 if needed <= n and stays < settings.stays else 0
                n = n if stays else 2 * n
                far = needed > limit and 2 * n > limit  # the largest set would not be enough
            while n < int(kept.sum()):
                n *= 2
            # features of no price have to come in, too
            if far or n > limit or int(torch.isinf(score).sum()) > limit:
                best.wide = True
                break
            chosen = score.masked_fill(kept, torch.inf).topk(n).indices.sort().values
            part = problem.restrict(chosen)
            found = inner(part, now.W[:, chosen], settings.inner * tol, most - now.iterations)
            W = torch.zeros_like(now.W)
            W[:, chosen] = found.W
            used = now.iterations + int(found.iterations)
            now = _certified(problem, W, found.multiplier)
            now.iterations = best.iterations = used
            best = now if bool(now.gap < best.gap) else best
        return best


def _certified(problem: RowProblem, W: Tensor, mu: Tensor | None) -> Found:
    moments, terms = problem.gradient_moments(W), problem.terms
    if mu is None:
        tight = terms.ball_norm(W) >= terms.radius[:, 0] * (1 - 1e-9)
        best = terms.dual_multiplier(moments / _sigma(problem, W, moments))[:, 0]
        mu = torch.where(tight, best, 0.0)
    return Found(W, moments, mu, problem.gap(W, moments))


def _sigma(problem: RowProblem, W: Tensor, moments: Tensor) -> Float[Tensor, "1 1"]:
    if problem.loss == "squared":
        return torch.ones_like(problem.gram.t2)[:, None]
    q = mean_square(problem.gram, W, moments)
    return torch.maximum(q.sqrt(), SMALLEST * problem.gram.t2.sqrt())[:, None]


def _scores(problem: RowProblem, now: Found) -> tuple[Bool[Tensor, " N"], Float[Tensor, " N"]]:
    # features that stay in any case, and every feature's moment by its price
    terms = problem.terms
    price = _sigma(problem, now.W, now.moments) * (terms.slope() + now.mu[:, None] * terms.omega)
    score = torch.where(now.moments != 0, now.moments.abs() / price, 0.0)
    kept = (now.W[0] != 0) | problem.free
    return kept, score[0].masked_fill(problem.shut, -1.0)
