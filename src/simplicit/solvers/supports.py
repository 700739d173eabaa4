"""The supports of some rows side by side, and linear systems on them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .scaled import Design

PAD = 16
"""Systems are padded to 8 less than a multiple of this, and those of one size factorised together.
The 8 are for LAPACK, which is three times slower at multiples of 64."""

MOST_ENTRIES = 2**21
"""Entries of the matrices that are factorised at once."""

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

        Returns:
            The supports.
        """
        return cls(active, *active.nonzero(as_tuple=True))

    def gather(self, x: Float[Tensor, "K n"]) -> Flat:
        """Take the entries of a matrix.

        Returns:
            x on the supports.
        """
        return x[self.row, self.column]

    def spread(self, x: Flat) -> Float[Tensor, "K n"]:
        """Put entries into a matrix.

        Returns:
            x, and zero off the supports.
        """
        return x.new_zeros(self.active.shape).index_put_((self.row, self.column), x)

    def sum(self, x: Flat) -> Float[Tensor, " K"]:
        """Add up each row's entries, in their order.

        Returns:
            One sum per row.
        """
        return x.new_zeros(len(self.active)).index_add_(0, self.row, x)

    def solve(self, design: Design, curvature: Flat, near: Flat, sides: list[Flat]) -> list[Flat]:
        """Solve (G_AA + diag(curvature)) x = side on every row's support A.

        Args:
            design: The Gram matrix.
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
        index = count.new_full((len(count), widest), n)
        index[self.row, place] = self.column
        packed = curvature.new_zeros(len(count), widest, len(sides) + 2)
        packed[:, :, 0] = 1.0
        packed[self.row, place] = torch.stack([curvature, near, *sides], 1)
        for width in size[count > 0].unique().tolist():
            rows = ((size == width) & (count > 0)).nonzero()[:, 0]
            for some in rows.split(max(1, MOST_ENTRIES // width**2)):
                diagonal, near_, right = packed[some, :width].split([1, 1, len(sides)], 2)
                H = design.submatrices(index[some, :width])
                H.diagonal(dim1=1, dim2=2).add_(diagonal[:, :, 0])
                factor, failed = torch.linalg.cholesky_ex(H, upper=True)
                if bool(failed.any()):
                    bad = failed.nonzero()[:, 0]
                    H.diagonal(dim1=1, dim2=2)[bad] += RIDGE
                    factor[bad] = torch.linalg.cholesky_ex(H[bad], upper=True)[0]
                    right[bad, :, 0] += RIDGE * near_[bad, :, 0]
                packed[some, :width, 2:] = torch.cholesky_solve(right, factor, upper=True)
        return list(packed[self.row, place, 2:].unbind(1))
