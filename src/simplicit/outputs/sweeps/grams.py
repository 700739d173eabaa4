"""Grams of rows that are kept from sweep to sweep.

A row's Gram over all samples costs more than everything else about the row. From one sweep to the
next its support only shrinks and its curvatures change little: the old Gram's part on the support
then does for the length of the step, while the gradient, which says where the row ends, is new.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.outputs.sweeps.kept import Kept

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

    def write(self, kept: Kept) -> None:
        """Write all of it down.

        Args:
            kept: Where to.
        """
        kept.put_rows("supports", {row: S for row, (S, _, _) in self._kept.items()})
        kept.put_rows("grams", {row: H for row, (_, H, _) in self._kept.items()})
        kept.put("curvatures", [part for _, _, h in self._kept.values() for part in h])
        kept.records |= {"found again": sorted(self._again), "room": self.room}

    def read(self, kept: Kept, like: Tensor) -> None:
        """Take over what `write` has written.

        Args:
            kept: Where from.
            like: Says on which device.
        """
        supports, grams = kept.get_rows("supports", like), kept.get_rows("grams", like)
        every = kept.get("curvatures", like)
        parts = len(every) // max(len(supports), 1)
        self._kept = {
            row: (supports[row], grams[row], every[parts * k : parts * (k + 1)])
            for k, row in enumerate(supports)
        }
        self._again, self.room = set(kept.records["found again"]), kept.records["room"]


def _size(kept: tuple[Tensor, Tensor, list[Tensor]] | None) -> int:
    return 0 if kept is None else kept[1].numel() + sum(part.numel() for part in kept[2])
