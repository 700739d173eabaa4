"""The supports of some rows side by side, and linear systems on them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex.shared import ScaledGram

PAD = 16
"""Systems are padded to 8 less than a multiple of this, and those of one size factorised together.
The 8 are for LAPACK, which is three times slower at multiples of 64."""

MOST_ENTRIES = 2**19
"""Entries of the matrices that are factorised at once."""

SINGULAR = 1e-7
"""Pivots below this, the root of rounding, are those of a singular support."""

RIDGE = 1e-9
"""Proximal term where a support is singular; its pull fades as rounds repeat."""

Flat = Float[Tensor, " e"]


@dataclass(frozen=True)
class Supports:
    """Every pair of a row and a feature of its support is an entry of flat arrays.

    They need no padding, and no row's sums depend on other rows.

    Attributes:
        active: The supports, (K, n).
        row: Row of each entry, (e,), ascending.
        column: Feature of each entry, (e,), ascending within a row.
    """

    active: Bool[Tensor, "K n"]
    row: Int[Tensor, " e"]
    column: Int[Tensor, " e"]

    @classmethod
    def of(cls, active: Bool[Tensor, "K n"]) -> "Supports":
        """Number the entries.

        Args:
            active: Which features are in the support of each row, (K, n).

        Returns:
            The supports.
        """
        return cls(active, *active.nonzero(as_tuple=True))

    def gather(self, x: Float[Tensor, "K n"]) -> Flat:
        """Take the entries of a matrix.

        Args:
            x: One number for every row and feature, (K, n).

        Returns:
            x on the supports.
        """
        return x[self.row, self.column]

    def spread(self, x: Flat) -> Float[Tensor, "K n"]:
        """Put entries into a matrix.

        Args:
            x: One number an entry, (e,).

        Returns:
            x, and zero off the supports.
        """
        return x.new_zeros(self.active.shape).index_put_((self.row, self.column), x)

    def sum(self, x: Flat) -> Float[Tensor, " K"]:
        """Add up each row's entries, in their order.

        Args:
            x: One number an entry, (e,).

        Returns:
            One sum per row.
        """
        return x.new_zeros(len(self.active)).index_add_(0, self.row, x)

    def solve(
        self, shared: ScaledGram, curvature: Flat, near: Flat, sides: list[Flat]
    ) -> list[Flat]:
        """Solve (G_AA + diag(curvature)) x = side on every row's support A.

        Args:
            shared: The Gram matrix.
            curvature: Added to the diagonal.
            near: Where a singular system is drawn to.
            sides: Right-hand sides; the first is the one that a proximal term adds to.

        Returns:
            One solution per side.
        """
        count = self.active.sum(1)
        size = (count + PAD + 7) // PAD * PAD - 8
        place = torch.arange(len(self.row), device=count.device)
        place = place - (count.cumsum(0) - count)[self.row]
        n, widest = self.active.shape[1], int(size.max())
        index = count.new_full((len(count), widest), n, dtype=shared.small)
        index[self.row, place] = self.column.to(shared.small)
        packed = curvature.new_zeros(len(count), widest, len(sides) + 2)
        packed[:, :, 0] = 1.0
        packed[self.row, place] = torch.stack([curvature, near, *sides], 1)
        widths, many = size.unique(return_counts=True)
        groups = size.argsort(stable=True).split(many.tolist())
        for width, rows in zip(widths.tolist(), groups, strict=True):
            for some in rows.split(max(1, MOST_ENTRIES // width**2)):
                packed[some, :width, 2:] = _solve(shared, index[some, :width], packed[some, :width])
        return list(packed[self.row, place, 2:].unbind(1))


# Systems of one size. Packed: the number added to the diagonal, the point that singular systems are
# drawn to, and the right-hand sides.
def _solve(
    shared: ScaledGram, index: Int[Tensor, "K s"], packed: Float[Tensor, "K s p"]
) -> Float[Tensor, "K s q"]:
    diagonal, near, right = packed.split([1, 1, packed.shape[2] - 2], 2)
    H = shared.submatrices(index)
    H.diagonal(dim1=1, dim2=2).add_(diagonal[:, :, 0])
    factor, failed = _cholesky(H)
    if bool(failed.any()):
        bad = failed.nonzero()[:, 0]
        H = shared.submatrices(index[bad])
        H.diagonal(dim1=1, dim2=2).add_(diagonal[bad, :, 0] + RIDGE)
        factor[bad] = _cholesky(H)[0]
        right[bad, :, 0] += RIDGE * near[bad, :, 0]
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


# In place: a copy, and clearing the other triangle of one that lies column by column, take longer
# than the arithmetic. A pivot of rounding's size is as bad as none.
def _cholesky(H: Float[Tensor, "K s s"]) -> tuple[Float[Tensor, "K s s"], Bool[Tensor, " K"]]:
    factor, failed = H.mT, torch.empty(len(H), dtype=torch.int32, device=H.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    pivots = factor.diagonal(dim1=1, dim2=2).amin(1)
    return factor, (failed != 0) | (pivots < SINGULAR)
