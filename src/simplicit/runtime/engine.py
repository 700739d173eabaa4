"""Runs a program on batches of any size: part by part, on one thread or several."""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from simplicit.errors import InputError
from simplicit.runtime.kernel import kernels
from simplicit.runtime.program import DENSE, Bound, Program, measured

WIDTHS = (1, 8, 16, 32, 64)
"""Samples that are computed together; a slot of more would lie in few lines of the cache."""

GAIN = 1.1
"""How many times faster several threads have to be."""


class Engine:
    """A program, its arenas, and the ways that were measured to be fastest.

    Args:
        program: What to compute.
        dtype: float32 or float64.
        batch: Samples that calls usually have.
        threads: Most threads to use.

    Attributes:
        part: Samples that are computed together.
        threads: Threads that are used for `batch` samples.
        milliseconds: Time of `batch` samples by the part, on one thread.
    """

    def __init__(self, program: Program, dtype: torch.dtype, batch: int, threads: int) -> None:
        self.program, self.dtype, self.threads = program, dtype, 1
        self._kernels = kernels(8 * dtype.itemsize)
        self._bound: dict[tuple[int, int], Bound] = {}
        self._choices: dict[int, dict[int, Any]] = {}
        if (program.slots + 1) * WIDTHS[-1] >= 2**31:
            raise InputError(
                f"a model of {program.slots} states and places around them: accepted are "
                f"{2**31 // WIDTHS[-1]}"
            )
        self.milliseconds: dict[int, float] = {}
        u = torch.zeros(batch, program.p, dtype=dtype)
        for n in WIDTHS:
            if n == 1 < batch or n > max(8, 2 * batch - 1):
                continue
            self.part = n
            self.milliseconds[n] = 1e3 * measured(lambda: self(u))
        self.part = min(self.milliseconds, key=lambda n: self.milliseconds[n])
        if threads > 1 and batch > 1:
            alone = measured(lambda: self(u), least=2e-3)
            self.threads = threads
            if measured(lambda: self(u), least=2e-3) * GAIN > alone:
                self.threads = 1

    @property
    def dense(self) -> list[str]:
        """Layers that torch computes, which was faster."""
        ways, steps = self._choices.get(self.part, {}), self.program.steps
        return [getattr(steps[k], "name", "") for k, way in ways.items() if way == DENSE]

    @property
    def bytes(self) -> int:
        """Memory of the arenas and of the descriptions of sparse rows."""
        return sum(bound.bytes for bound in self._bound.values())

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads - 1, "simplicit")

    def _of(self, n: int, worker: int) -> Bound:
        if (n, worker) not in self._bound:
            choices = self._choices.setdefault(n, {})
            self._bound[n, worker] = Bound(self.program, self._kernels, n, self.dtype, choices)
        return self._bound[n, worker]

    def __call__(self, u: Tensor) -> tuple[Tensor, bool]:
        """Compute outputs.

        Args:
            u: Inputs (m, p), row by row in memory.

        Returns:
            y (m, q), and whether all numbers in u and y are finite.
        """
        m = u.shape[0]
        y = torch.empty(m, self.program.q, dtype=self.dtype)
        if self.threads == 1:
            return y, self._some(u, y, 0, m, 0)
        share = -(-m // (8 * self.threads)) * 8
        if share >= m:
            return y, self._some(u, y, 0, m, 0)
        starts = range(0, m, share)
        waiting = [
            self._pool.submit(self._some, u, y, start, min(start + share, m), worker)
            for worker, start in enumerate(starts[1:], 1)
        ]
        finite = self._some(u, y, 0, share, 0)
        return y, all([finite, *(one.result() for one in waiting)])

    def _some(self, u: Tensor, y: Tensor, start: int, end: int, worker: int) -> bool:
        size, finite = self.dtype.itemsize, True
        u_at, y_at = u.data_ptr(), y.data_ptr()
        p, q = self.program.p * size, self.program.q * size
        while start < end:
            left = end - start
            n = self.part if left >= self.part else next(n for n in WIDTHS if n >= left)
            m = min(n, left)
            finite &= self._of(n, worker)(u_at + start * p, y_at + start * q, m)
            start += m
        return finite
