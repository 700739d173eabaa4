"""A program for slots of n numbers: descriptions that the kernel reads, and how they are run."""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from simplicit.runtime.kernel import TOGETHER, Kernels
from simplicit.runtime.program import Call, Maxima, Moves, Part, Program, Step, Sums
from simplicit.system import memory

PANEL = 256
"""Slots that rows read in one panel: of the widest tile, a little more than a first-level cache."""

WORTH = 8
"""Non-zeros of a row in a panel, on average, from which panels pay: each is a partial sum more."""

FILLED = 0.6
"""Part that has to be there of the weights of rows that are computed together: the zeros between
them are multiplied, too. From here on it pays in every case (`benchmarks/speed/blocks.py`)."""

SHORT = 30_000
"""Multiply-adds below which one way is as good as another."""

SPARSE, DENSE = "sparse", "dense"
"""Choices for a layer: the kernel, or torch."""


class Bound:
    """A program for slots of n numbers, with an arena of its own.

    Args:
        program: The program.
        kernels: Functions of its dtype.
        n: Numbers in a slot: 1 or a multiple of 8.
        dtype: Of the numbers.
        choices: How each step runs, by its index; measured where they are not known.

    If its states do not fit into memory, making it is an `InputError`.
    """

    def __init__(
        self,
        program: Program,
        kernels: Kernels,
        n: int,
        dtype: torch.dtype,
        choices: dict[int, Any],
    ) -> None:
        self.n, self._kernels, self._size = n, kernels, dtype.itemsize
        self._real = np.float32 if dtype == torch.float32 else np.float64
        # a tile may read a little beyond the last slot
        size = program.slots * n + kernels.widths[0]
        memory.require(size * self._size, f"the states of {n} samples")
        self.arena = torch.zeros(size, dtype=dtype)
        where, numbers = program.constants
        self.arena[: program.slots * n].view(-1, n)[torch.from_numpy(where)] = torch.from_numpy(
            numbers
        ).to(dtype)[:, None]
        self._held: list[np.ndarray] = []  # descriptions point into these
        groups: list[Any] = [[self._ends(f"pack{self._lanes()}", program.inputs, program.p)]]
        for index, step in enumerate(program.steps):
            if isinstance(step, Sums) and index not in choices:
                choices[index] = self._chosen(step)
            jobs = self._jobs(step, choices.get(index))
            if callable(jobs):
                groups += [jobs, []]
            else:
                groups[-1] += jobs
        groups[-1].append(self._ends("unpack", program.outputs, program.q))
        self.groups = [group if callable(group) else self._list(group) for group in groups if group]
        # pointers to u and y, samples, and a sum that is NaN if a number is not finite
        self._call = (ctypes.c_int64 * 4)()
        self._X, self._at = self.arena.data_ptr(), ctypes.addressof(self._call)
        kind = ctypes.c_float if self._size == 4 else ctypes.c_double
        self._flag = kind.from_buffer(self._call, 24)

    def __call__(self, u: int, y: int, m: int) -> bool:
        """Compute the outputs of at most n samples.

        Args:
            u: Address of the inputs (m, p).
            y: Address of the outputs (m, q).
            m: Samples.

        Returns:
            Whether all inputs and outputs are finite.
        """
        call, run = self._call, self._kernels.run
        call[0], call[1], call[2], call[3] = u, y, m, 0
        X, at = self._X, self._at
        first = self.groups[0]
        if len(self.groups) == 1 and not callable(first):
            run(*first, X, at)
            return self._flag.value == 0
        with torch.no_grad():
            for group in self.groups:
                if callable(group):
                    group()
                else:
                    run(*group, X, at)
        return self._flag.value == 0

    @property
    def bytes(self) -> int:
        """Memory of the states and descriptions."""
        return self.arena.nbytes + sum(array.nbytes for array in self._held)

    def _lanes(self) -> int:
        widest = 64 // self._size
        return self.n if self.n == 1 else (widest if self.n % widest == 0 else 8)

    # an array that a description points to
    def _array(self, values: Any, kind: Any) -> int:
        array = np.ascontiguousarray(values, kind)
        self._held.append(array)
        return array.ctypes.data

    def _job(self, name: str, *words: int) -> tuple[int, int]:
        return self._kernels.address[name], self._array(words, np.int64)

    def _list(self, jobs: Sequence[tuple[int, int]]) -> tuple[int, int]:
        return self._array(np.array(jobs, np.uint64).view(np.int64), np.int64), len(jobs)

    def _ends(self, name: str, entries: np.ndarray, width: int) -> tuple[int, int]:
        scaled = entries * np.array([1, self.n, 1])
        return self._job(name, len(scaled), self._array(scaled, np.int64), width, self.n)

    def _moves(self, some: np.ndarray) -> tuple[int, int]:
        scaled = np.where(some < 0, -1, some * self.n)
        return self._job("moves", len(scaled), self._array(scaled, np.int64))

    def _jobs(self, step: Step, choice: Any) -> Any:
        if isinstance(step, Call) or (isinstance(step, Sums) and choice == DENSE):
            function: Any = step.function if isinstance(step, Call) else step.dense
            arena, n = self.arena, self.n  # not self: what holds itself stays until it is collected
            return lambda: function(arena, n)
        if isinstance(step, Moves):
            return [self._moves(step.runs)]
        if isinstance(step, Maxima):
            return [self._tiled("maxima", step.part, step.part.segments.each)]
        part, where = step.part, step.part.segments
        # one segment for all where those of each row of an image are shorter than a tile
        short = int(where.each[:, 2].min()) * self.n < self._kernels.widths[0]
        whole = where.whole if short else None
        segments = where.each if whole is None else whole
        jobs = [
            self._tiled(kind, some, segments, bias, step.phi, step.slope)
            for kind, some, bias in by_kind(part, step.bias)
        ]
        if whole is not None and where.border is not None and len(where.border):
            border = np.repeat(where.border[None], len(part.outs), 0)
            border[:, :, 1] += part.outs[:, None]
            jobs.append(self._moves(border.reshape(-1, 3)))
        return jobs

    def _tiled(
        self,
        kind: str,
        part: Part,
        segments: np.ndarray,
        bias: np.ndarray | None = None,
        phi: int = 0,
        slope: float = 0.0,
    ) -> tuple[int, int]:
        lengths = segments[:, 2] * self.n
        T = self._kernels.width(int(lengths.min()))
        fresh = kind == "maxima" or bias is not None
        if not fresh:  # places are added to once
            T = next(T for T in self._kernels.widths if not (lengths % T).any())
        if kind == "blocks" and T == 1:
            kind = "sums"
        rows = part.rows.together(TOGETHER) if kind == "blocks" else part.rows
        count = len(rows.starts) - 1
        starts, offsets, values, panels = rows.starts, rows.offsets, rows.values, 1
        if kind != "maxima" and T > 1:
            seen = np.unique(offsets)
            panels = min(-(-len(seen) // PANEL), len(values) // (WORTH * count))
        if panels > 1:
            panel = np.searchsorted(seen, offsets) * panels // len(seen)
            order = np.lexsort((offsets, rows.row, panel))
            offsets, values = offsets[order], values[order]
            cells = np.bincount(panel * count + rows.row, minlength=panels * count)
            starts = np.concatenate([[0], np.cumsum(cells)])
        panels = max(panels, 1)
        name = "dots" if T == 1 and kind == "sums" else f"{kind}{T}"
        words = [
            count,
            self._array(starts, np.int32),
            self._array(offsets * self.n, np.int32),
            self._array(values, self._real),
            self._array(bias, self._real) if bias is not None else 0,
            self._array(part.outs * self.n, np.int64),
            len(segments),
            self._array(segments * self.n, np.int64),
            panels,
            phi,
            self._array([slope], self._real),
            int(fresh),
        ]
        return self._job(name, *words)

    def _alone(self, jobs: Sequence[tuple[int, int]]) -> Callable[[], None]:
        where, count, X, run = *self._list(jobs), self.arena.data_ptr(), self._kernels.run
        return lambda: run(where, count, X, 0)

    # whether torch is faster, where that may be
    def _chosen(self, step: Sums) -> str:
        if step.dense is None or step.products * self.n < SHORT:
            return SPARSE
        own, dense = self._alone(self._jobs(step, SPARSE)), self._jobs(step, DENSE)
        return min((measured(own), SPARSE), (measured(dense), DENSE))[1]


def by_kind(part: Part, bias: np.ndarray | None) -> list[tuple[str, Part, np.ndarray | None]]:
    """Split rows that read nearly the same, some at a time, from those that are left.

    Args:
        part: Rows of an equation.
        bias: One number per row, or None.

    Returns:
        The kernel of each piece, its rows, and their biases.
    """
    count = len(part.outs) // TOGETHER * TOGETHER
    if count:
        rows = part.rows.first(count)
        if len(rows.values) >= FILLED * rows.together(TOGETHER).values.size > 0:
            parts = [("blocks", replace(part, rows=rows, outs=part.outs[:count]))]
            if count < len(part.outs):
                rest = replace(part, rows=part.rows.rest(count), outs=part.outs[count:])
                parts.append(("sums", rest))
            biases = [None, None] if bias is None else [bias[:count], bias[count:]]
            return [(kind, own, b) for (kind, own), b in zip(parts, biases, strict=False)]
    return [("sums", part, bias)]


def measured(function: Callable[[], Any], repeats: int = 3, least: float = 5e-5) -> float:
    """Time a short function.

    Args:
        function: What to time.
        repeats: Measurements.
        least: Seconds that one takes at least.

    Returns:
        Seconds a call, the least of the measurements.
    """
    function()
    start = time.perf_counter()
    function()
    times = max(1, int(least / max(time.perf_counter() - start, 1e-7)))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(times):
            function()
        best = min(best, (time.perf_counter() - start) / times)
    return best
