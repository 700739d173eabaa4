"""Where states stand in the arena: slots of n numbers, images with a border of zeros."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from torch import Tensor

Slots = np.ndarray
"""Places in the arena, int64."""


def steps(extents: Sequence[int]) -> tuple[int, ...]:
    """Say how far apart neighbours along each axis are.

    Args:
        extents: Entries along each axis.

    Returns:
        Entries from one to the next, row by row.
    """
    return tuple(prod(extents[axis + 1 :]) for axis in range(len(extents)))


def summed(along: Sequence[np.ndarray], start: int = 0) -> Slots:
    """Add one place of every axis up, for all combinations.

    Args:
        along: Places along each axis.
        start: What is added to all.

    Returns:
        The sums, the last axis first to move.
    """
    found = np.full(1, start, np.int64)
    for places in along:
        found = (found[:, None] + places).reshape(-1)
    return found


def grid(sizes: Sequence[int], strides: Sequence[int], start: int = 0) -> Slots:
    """List the places of a grid.

    Args:
        sizes: Places along each axis.
        strides: Slots from one to the next.
        start: Slot of the first.

    Returns:
        All, row by row.
    """
    pairs = zip(sizes, strides, strict=True)
    return summed([np.arange(size) * stride for size, stride in pairs], start)


@dataclass(frozen=True)
class Layout:
    """A state as an image.

    Args:
        shape: (channels, *grid); a vector has no grid.
        before: Zeros before the grid, by axis.
        after: And after it.
    """

    shape: tuple[int, ...]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes without the channels."""
        return self.shape[1:]

    @cached_property
    def extents(self) -> tuple[int, ...]:
        """Sizes of the grid with its border."""
        sides = zip(self.before, self.grid, self.after, strict=True)
        return tuple(sum(side) for side in sides)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Slots from one entry to the next, by axis.

        Channels are an odd number apart: at powers of two they would share the same few lines of
        the cache.
        """
        plane = prod(self.extents)
        return (plane if len(self.shape) == 1 else plane | 1, *steps(self.extents))

    @cached_property
    def size(self) -> int:
        """Slots in all."""
        return self.shape[0] * self.strides[0]

    @cached_property
    def corner(self) -> int:
        """Slot of the first entry."""
        pairs = zip(self.before, self.strides[1:], strict=True)
        return sum(side * stride for side, stride in pairs)

    @cached_property
    def slots(self) -> Slots:
        """Slot of every entry, in the order of the flattened state."""
        return grid(self.shape, self.strides, self.corner)


@dataclass(frozen=True)
class Place:
    """A state in the arena.

    Args:
        layout: Its layout.
        start: Its first slot.
    """

    layout: Layout
    start: int

    @property
    def slots(self) -> Slots:
        """Slot of every entry."""
        return self.start + self.layout.slots

    def view(self, arena: Tensor, n: int) -> Tensor:
        """Look at the state.

        Args:
            arena: All slots.
            n: Numbers in each.

        Returns:
            (*shape, n), a view.
        """
        strides = [stride * n for stride in self.layout.strides]
        first = (self.start + self.layout.corner) * n
        return arena.as_strided((*self.layout.shape, n), (*strides, 1), first)


def runs(source: Slots, out: Slots) -> np.ndarray:
    """Put pairs of places together where both go on.

    Args:
        source: From where; −1 for zero.
        out: Where to.

    Returns:
        (from, to, length), a row per run.
    """
    if not len(out):
        return np.zeros((0, 3), np.int64)
    onward = (np.diff(out) == 1) & (
        (np.diff(source) == 1) & (source[:-1] >= 0) | (source[1:] < 0) & (source[:-1] < 0)
    )
    first = np.flatnonzero(np.concatenate([[True], ~onward]))
    lengths = np.diff(np.append(first, len(out)))
    return np.stack([source[first], out[first], lengths], 1).astype(np.int64)
