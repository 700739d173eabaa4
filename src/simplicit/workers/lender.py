"""What many pieces hold goes to the workers once: it is told by its content."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from simplicit.workers.packing import Held

SMALL = 2**18
"""Bytes up to which a tensor goes along with each piece: a file, or a key, costs as much."""

MOST = 2**32
"""Bytes that stay lent while others come; the oldest go first."""


class Lender:
    """Lends the bytes of tensors to the workers of one executor.

    Args:
        lend: Makes of `Held` what stands for it in an argument; None where bytes always go along.
        take_back: Frees that; None where nothing is to do.

    Attributes:
        sent: Bytes that were lent so far.
    """

    def __init__(
        self, lend: Callable[[Held], Any] | None, take_back: Callable[[Any], None] | None = None
    ) -> None:
        self._lend, self._take_back = lend, take_back
        self._known: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()
        self._seen: dict[tuple[int, int, int], tuple[Any, Tensor]] = {}
        self.sent = 0

    def __call__(self, x: Tensor, content: Tensor) -> Any:
        """Lend the bytes that a tensor lies in.

        Args:
            x: The tensor.
            content: Its bytes.

        Returns:
            What goes into a pack in their place.
        """
        size = len(content)
        if self._lend is None or size <= SMALL:
            return Held(content.clone())  # it may be sent later than it changes
        # within a call nothing is freed that was lent: one place in memory is one content
        place = (content.data_ptr(), size, x._version)
        if place not in self._seen:
            key = hashlib.blake2b(content.numpy().data, digest_size=16).digest()
            if key not in self._known:
                self._known[key] = self._lend(Held(content)), size
                self.sent += size
            self._known.move_to_end(key)
            self._seen[place] = self._known[key][0], x
        return self._seen[place][0]

    def end(self) -> None:
        """End a call: what it has lent may go when there is too much."""
        self._seen.clear()
        while sum(size for _, size in self._known.values()) > MOST:
            self._free(self._known.popitem(last=False)[1][0])

    def forget(self) -> None:
        """Lend anew what a worker that is gone may have had the only copy of; files stay."""
        self._seen.clear()
        if self._take_back is None:
            self._known.clear()

    def _free(self, lent: Any) -> None:
        if self._take_back is not None:
            self._take_back(lent)
