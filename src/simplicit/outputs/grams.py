"""Grams of rows that are kept from sweep to sweep.

A row's Gram over all samples costs more than everything else about the row. From one sweep to the
next its support only shrinks and its curvatures change little: the old Gram's part on the support
then does for the length of the step, while the gradient, which says where the row ends, is new.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOVED = 0.25
"""Part of a row's curvatures, summed over the samples, that may have changed since its Gram.
Without a limit, sweeps at a high sparsity lose the outputs."""


class Grams:
    """The last Gram of every row.

    Args:
        room: Numbers that may be kept in all; rows for which there is no more room keep nothing.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._kept: dict[int, tuple[Tensor, Tensor, list[Tensor]]] = {}
        self._again: set[int] = set()

    def find(
        self, row: int, S: Int[Tensor, " s"], h: Sequence[Float[Tensor, "m P"]]
    ) -> Float[Tensor, "s s"] | None:
        """Look for a Gram that still holds.

        Args:
            row: Number of the row.
            S: Its support, ascending.
            h: Its curvatures now, for each part of the samples.

        Returns:
            The Gram on the support, or None where it has to be computed.
        """
        if row not in self._kept:
            return None
        T, H, old = self._kept[row]
        change = sum(float((a - b).abs().sum()) for a, b in zip(h, old, strict=True))
        if not change <= MOVED * sum(float(b.sum()) for b in old):
            return None
        at = torch.searchsorted(T, S).clamp_max(len(T) - 1)
        if not torch.equal(T[at], S):
            return None
        self._again.add(row)
        return H[at][:, at].double()

    def keep(
        self,
        row: int,
        S: Int[Tensor, " s"],
        h: Sequence[Float[Tensor, "m P"]],
        H: Float[Tensor, "s s"],
    ) -> None:
        """Keep a Gram, in the precision of the curvatures.

        Args:
            row: Number of the row.
            S: Its support, ascending.
            h: Its curvatures, for each part of the samples.
            H: The Gram.
        """
        self._again.discard(row)
        self.room += _size(self._kept.pop(row, None))
        new = S, H.to(h[0].dtype), list(h)
        if _size(new) <= self.room:
            self.room -= _size(new)
            self._kept[row] = new

    def forget(self, row: int) -> bool:
        """Forget a Gram that has been found again, so that the next one is new.

        Args:
            row: Number of the row.

        Returns:
            Whether there was one.
        """
        if row not in self._again:
            return False
        self._again.remove(row)
        self.room += _size(self._kept.pop(row, None))
        return True


def _size(kept: tuple[Tensor, Tensor, list[Tensor]] | None) -> int:
    return 0 if kept is None else kept[1].numel() + sum(part.numel() for part in kept[2])
