"""The Gram matrix in unit scale, which all rows share: factorised once, no degenerate features.

Free features are projected out, zero features are dropped, and every other feature is scaled to
unit mean square (Jacobi).
"""

from collections.abc import Callable
from threading import Lock
from typing import Any
from uuid import uuid4

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.convex.cholesky import factor, solve_factored
from simplicit.convex.gram import among, pseudo_inverse
from simplicit.convex.problem import RowProblem
from simplicit.convex.products import fill, product
from simplicit.system import memory

UNDERFLOW = 1e-300
"""Mean squares below this cannot be inverted in float64; such features, targets count as zero."""

ROUNDING = 1e-12
"""A projected mean square this much smaller than it was is rounding error, and counts as zero."""

FACTORED = 8000
"""Features from which ADMM solves by a factor: to invert it takes as long as a hundred steps of
`WIDE` rows (`benchmarks/solver/factors.py`)."""

WIDE = 8
"""Rows that a factor solves together, whatever the number of rows."""

BYTES, INVERSES = 12, 32
"""Bytes per entry of G at the most: of the scaled G in both precisions; of the inverses for two ρ,
with the memory it takes to make them."""


class ScaledGram:
    """The Gram of the features that are kept, in unit scale, and its inverses.

    Args:
        problem: Any row problem on that Gram; its free features are projected out.
        device: Where the solvers iterate.
        inverses: Whether memory is asked for the inverses that ADMM takes, too.

    Raises:
        InputError: If solving would not fit into memory.

    Attributes:
        inverses: Whether steps may take them.
    """

    def __init__(
        self,
        problem: RowProblem,
        device: torch.device | str | None = None,
        inverses: bool = True,
    ) -> None:
        G, self.inverses = problem.gram.G, inverses
        self.device = torch.device(device or G.device)
        K, N = problem.gram.R.shape
        each = BYTES + INVERSES * inverses
        memory.require(each * N * N + 32.0 * K * N, f"{K} rows of {N} features", self.device)
        self.is_free, self.is_shut = problem.free, problem.shut
        self.free: Int[Tensor, " f"] = problem.free.nonzero()[:, 0]
        penalised = (~problem.free & ~problem.shut).nonzero()[:, 0]
        self.inverse_free = pseudo_inverse(among(G, self.free))
        before, whole = G.diagonal()[penalised], among(G, penalised)
        if len(self.free):
            cross = G[self.free][:, penalised]
            whole = torch.addmm(whole, cross.T, self.inverse_free @ cross, alpha=-1)
        alive = whole.diagonal() > (before * ROUNDING).clamp_min(UNDERFLOW)
        if not bool(alive.all()):
            whole = whole[alive][:, alive]
        self.keep: Int[Tensor, " n"] = penalised[alive]
        self.scale = torch.sqrt(whole.diagonal())
        n = len(whole)
        # a row and some columns of 0 beyond the last are what `submatrices` pads with
        self._key = uuid4().hex
        entries = G.new_empty(n + 1, n + 8 - n % 8, device=self.device)
        entries[n], entries[:, n:] = 0.0, 0.0
        self._entries, self.G, scale = entries, entries[:n, :n], self.scale.to(self.device)
        torch.div(whole.to(self.device), scale, out=self.G).div_(scale[:, None])
        # numbers of half the size take a quarter less time
        self.small = torch.int32 if entries.numel() < 2**31 else torch.int64
        self._forget()

    def _forget(self) -> None:
        self._low: Tensor | None = None
        self._made: dict[tuple[float, torch.dtype], Tensor] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, tuple[str, dict[str, Any]]]:
        """What goes to another process: there the first copy of it is kept, with its inverses.

        Returns:
            How to get it there.
        """
        own = {"G", "_low", "_made", "_lock"}
        return _receive, (self._key, {k: v for k, v in vars(self).items() if k not in own})

    @property
    def low(self) -> Float[Tensor, "n n"]:
        """G in float32, made once."""
        with self._lock:
            if self._low is None:
                self._low = self.G.float()
            return self._low

    def fits(self, problem: RowProblem) -> bool:
        """Tell whether the same features are free, and shut out, in another problem on this Gram.

        Args:
            problem: Rows on the same Gram.

        Returns:
            Whether it may be used for that.
        """
        return torch.equal(self.is_free, problem.free) and torch.equal(self.is_shut, problem.shut)

    def submatrices(self, index: Int[Tensor, "K s"]) -> Float[Tensor, "K s s"]:
        """Gather G_AA of every row's support A.

        Args:
            index: Kept features of each row, (K, s), of type `small`; n in the padding.

        Returns:
            One matrix per row, a copy; 0 in the padding.
        """
        flat = (index * self._entries.stride(0))[:, :, None] + index[:, None, :]
        # one flat selection takes less than half the time of indexing by two arrays
        return self._entries.view(-1).index_select(0, flat.view(-1)).view(flat.shape)

    def solved(
        self,
        B: Float[Tensor, "k n"],
        rho: float,
        to: Float[Tensor, "k n"] | None = None,
        scale: float = 1.0,
    ) -> Float[Tensor, "k n"]:
        """Solve X (G + ρ I) = B, with what is made of G + ρ I once for all rows and iterations.

        Args:
            B: Rows, in the precision of the iterations. Further copies of the last row are not
                looked at.
            rho: ADMM's penalty, > 0.
            to: What the solution is added to; nothing when omitted.
            scale: The solution's factor.

        Returns:
            to + scale X. No bit of a row depends on the others.
        """
        if B.shape[1] < FACTORED:
            return product(B, self._inverse(rho, B.dtype), to, scale)
        lower, X = self._factor(rho, B.dtype), torch.empty_like(B)
        others = (B != B[-1:]).any(1).nonzero()[:, 0]
        k = int(others[-1]) + 2 if len(others) else 1
        for rows in fill(torch.arange(k, device=B.device), WIDE).split(WIDE):
            X[rows] = solve_factored(lower, B[rows].T).T
        X[k:] = X[k - 1]
        return X if to is None else X.mul_(scale).add_(to)

    # (G + ρ I)⁻¹, symmetric
    def _inverse(self, rho: float, dtype: torch.dtype) -> Tensor:
        def make() -> Tensor:
            shifted = self.G.to(dtype, copy=True)
            shifted.diagonal().add_(rho)
            # in place: for many features each copy is gigabytes
            torch.linalg.cholesky(shifted.mT, out=shifted.mT)
            # symmetric; the transpose is the one that lies row by row, and multiplies faster
            return torch.cholesky_inverse(shifted.mT).mT

        return self._once(rho, dtype, make)

    # the lower Cholesky factor of G + ρ I
    def _factor(self, rho: float, dtype: torch.dtype) -> Tensor:
        return self._once(rho, dtype, lambda: factor(self.G.to(dtype), rho))

    def _once(self, rho: float, dtype: torch.dtype, make: Callable[[], Tensor]) -> Tensor:
        with self._lock:
            if (rho, dtype) not in self._made:
                self._made[rho, dtype] = make()
            return self._made[rho, dtype]


KEPT = 2
"""Grams whose inverses a process keeps that has got them from another: pieces of one follow each
other, so there are seldom more at a time."""

_received: dict[str, ScaledGram] = {}


def _receive(key: str, state: dict[str, Any]) -> ScaledGram:
    if key not in _received:
        while len(_received) >= KEPT:
            del _received[next(iter(_received))]
        shared = ScaledGram.__new__(ScaledGram)
        vars(shared).update(state)
        shared.G = shared._entries[: len(shared.keep), : len(shared.keep)]
        shared._forget()
        _received[key] = shared
    return _received[key]
