"""What a compiled model does, step by step, in slots."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

ONE = np.array([[0, 0, 1]], np.int64)
"""One segment of one slot."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Places where the rows of a layer are computed.

    Args:
        each: (shift of what is read, shift of the result, slots), a row per segment.
        whole: One segment over all of them, which writes into the border too; or None.
        border: Places there that have to be zero again, (−1, shift, slots) by row.
    """

    each: np.ndarray = field(default_factory=lambda: ONE)
    whole: np.ndarray | None = None
    border: np.ndarray | None = None

    def same(self, other: "Segments") -> bool:
        """Compare.

        Args:
            other: Others.

        Returns:
            Whether they are the same places.
        """
        return np.array_equal(self.each, other.each)


@dataclass(frozen=True, eq=False)
class Rows:
    """Sparse rows: of each the slots it reads, and their weights.

    Args:
        starts: First entry of each row, and the end of the last.
        offsets: Slots.
        values: Weights; several an entry after `together`.
    """

    starts: np.ndarray
    offsets: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, row: np.ndarray, offsets: np.ndarray, values: np.ndarray, count: int) -> "Rows":
        """Sort entries by row, and by slot within each.

        Args:
            row: Row of each entry.
            offsets: Slot.
            values: Weight.
            count: Rows.

        Returns:
            The rows.
        """
        order = np.lexsort((offsets, row))
        starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))])
        return cls(starts, offsets[order], values[order])

    @property
    def row(self) -> np.ndarray:
        """Row of each entry."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def first(self, count: int) -> "Rows":
        """Take the first rows.

        Args:
            count: How many.

        Returns:
            These.
        """
        end = self.starts[count]
        return Rows(self.starts[: count + 1], self.offsets[:end], self.values[:end])

    def rest(self, count: int) -> "Rows":
        """Take the other rows.

        Args:
            count: How many of the first to leave out.

        Returns:
            All behind them.
        """
        end = self.starts[count]
        return Rows(self.starts[count:] - end, self.offsets[end:], self.values[end:])

    def together(self, count: int) -> "Rows":
        """Put so many rows on what any of them reads.

        Args:
            count: Divides the number of rows.

        Returns:
            Rows whose entries have so many values, (entries, count), zero where a row has none.
        """
        slots, which = np.unique(self.offsets, return_inverse=True)
        entries = self.row // count * max(len(slots), 1) + which
        found, entry = np.unique(entries, return_inverse=True)
        values = np.zeros((len(found), count))
        np.add.at(values, (entry, self.row % count), self.values)
        block, slot = np.divmod(found, max(len(slots), 1))
        blocks = (len(self.starts) - 1) // count
        starts = np.concatenate([[0], np.cumsum(np.bincount(block, minlength=blocks))])
        return Rows(starts, slots[slot], values)

    def joined(self, other: "Rows") -> "Rows":
        """Put rows side by side.

        Args:
            other: As many.

        Returns:
            Rows with the entries of both.
        """
        return Rows.of(
            np.concatenate([self.row, other.row]),
            np.concatenate([self.offsets, other.offsets]),
            np.concatenate([self.values, other.values]),
            len(self.starts) - 1,
        )


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of an equation that read and write at the same places.

    Args:
        rows: The rows.
        outs: Slots of their results, less the shifts of the segments.
        segments: Where.
    """

    rows: Rows
    outs: np.ndarray
    segments: Segments = field(default_factory=Segments)

    @property
    def places(self) -> int:
        """Entries that it writes."""
        return len(self.outs) * int(self.segments.each[:, 2].sum())

    def same(self, other: "Part") -> bool:
        """Compare.

        Args:
            other: Another.

        Returns:
            Whether it reads and writes at the same places.
        """
        return np.array_equal(self.outs, other.outs) and self.segments.same(other.segments)

    def bias(self, by_slot: np.ndarray) -> np.ndarray | None:
        """Read the bias of each row.

        Args:
            by_slot: The bias of every entry, by its slot.

        Returns:
            One number per row; None if it is not the same at all places of a row.
        """
        shifts = [np.arange(out, out + length) for _, out, length in self.segments.each.tolist()]
        there = by_slot[self.outs[:, None] + np.concatenate(shifts)]
        return there[:, 0] if (there == there[:, :1]).all() else None


@dataclass(frozen=True, eq=False)
class Sums:
    """X[out + t] = φ(bias + Σ value · X[offset + t]) for t in every segment.

    Args:
        name: Of the layer.
        part: Its rows, and where.
        bias: One number per row; what is there already is added to if None.
        phi: Number of φ, see `kernel.PHI`.
        slope: Of a leaky ReLU.
        dense: The same by torch on an arena of so many numbers a slot, or None.
    """

    name: str
    part: Part
    bias: np.ndarray | None
    phi: int = 0
    slope: float = 0.0
    dense: Callable[[Tensor, int], None] | None = None

    @property
    def products(self) -> int:
        """Multiply-adds a sample."""
        return len(self.part.rows.values) * int(self.part.segments.each[:, 2].sum())


@dataclass(frozen=True, eq=False)
class Maxima:
    """X[out + t] = max X[offset + t].

    Args:
        part: Windows, whose weights do not count, and where.
    """

    part: Part


@dataclass(frozen=True, eq=False)
class Moves:
    """Copies, and zeros.

    Args:
        runs: (from, to, length) in slots; from below 0 come zeros.
    """

    runs: np.ndarray


@dataclass(frozen=True, eq=False)
class Call:
    """What torch computes in between.

    Args:
        name: What it is.
        function: Takes the arena and n, and changes the arena.
    """

    name: str
    function: Callable[[Tensor, int], None]


Step = Sums | Maxima | Moves | Call


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled model.

    Args:
        steps: In order.
        slots: Of the arena.
        constants: Slots that hold the same number for all samples, and these numbers.
        inputs: (entry of u, slot, length), runs of what is read.
        outputs: (entry of y, slot, length).
        p: Entries of u.
        q: Entries of y.
    """

    steps: tuple[Step, ...]
    slots: int
    constants: tuple[np.ndarray, np.ndarray]
    inputs: np.ndarray
    outputs: np.ndarray
    p: int
    q: int
