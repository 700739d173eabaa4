"""Runs a program on batches of any size: part by part, on one thread or several."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from simplicit.errors import InputError
from simplicit.runtime.bound import DENSE, Bound, measured
from simplicit.runtime.kernel import kernels
from simplicit.runtime.program import Program

WIDTHS = (1, 8, 16, 32, 64)
"""Samples that are computed together; a slot of more would lie in few lines of the cache."""

GAIN = 1.1
"""How many times faster several threads have to be."""

SLOW = 1.5
"""How many times slower than the best a width is from which no wider one is tried."""


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
        self._lock = Lock()
        u = torch.zeros(batch, program.p, dtype=dtype)
        found: dict[tuple[int, int], float] = {}
        for n in WIDTHS:
            if n == 1 < batch or n > max(8, 2 * batch - 1):
                continue
            for count in sorted({1, min(threads, -(-batch // n))}):
                self.part, self.threads = n, count
                seconds = measured(lambda: self(u), least=1e-3 if count > 1 else 5e-5)
                found[n, count] = seconds * (GAIN if count > 1 else 1)
            if found[n, 1] > SLOW * min(found.values()):
                break  # wider ones leave the cache, too, and take more memory
        self.part, self.threads = min(found, key=lambda key: found[key])
        self._bound = {key: bound for key, bound in self._bound.items() if key[0] == self.part}

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
        return ThreadPoolExecutor(max_workers=None, thread_name_prefix="simplicit")

    def _of(self, n: int, worker: int) -> Bound:
        if (n, worker) not in self._bound:
            choices = self._choices.setdefault(n, {})
            self._bound[n, worker] = Bound(self.program, self._kernels, n, self.dtype, choices)
        return self._bound[n, worker]

    def __call__(self, u: Tensor) -> tuple[Tensor, bool]:
        """Compute outputs; calls of several threads take turns.

        Args:
            u: Inputs (m, p), row by row in memory.

        Returns:
            y (m, q), and whether all numbers in u and y are finite.
        """
        m = u.shape[0]
        y = torch.empty(m, self.program.q, dtype=self.dtype)
        with self._lock:
            if 0 < m <= self.part:  # the usual call, in the least time
                bound = self._of(next(n for n in WIDTHS if n >= m), 0)
                return y, bound(u.data_ptr(), y.data_ptr(), m)
            # the same parts for any number of threads, so that numbers are the same
            starts = range(0, m, self.part)
            workers = min(self.threads, len(starts))
            for worker in range(workers):  # one after another: the first decides for all
                self._of(self.part, worker)
            waiting = [
                self._pool.submit(self._some, u, y, starts[worker::workers], worker)
                for worker in range(1, workers)
            ]
            finite = self._some(u, y, starts[::workers] if workers else starts, 0)
            return y, all([finite, *(one.result() for one in waiting)])

    def _some(self, u: Tensor, y: Tensor, starts: Sequence[int], worker: int) -> bool:
        m, size, finite = u.shape[0], self.dtype.itemsize, True
        u_at, y_at = u.data_ptr(), y.data_ptr()
        p, q = self.program.p * size, self.program.q * size
        for start in starts:
            count = min(self.part, m - start)
            # a sample alone is summed up in another order: not here, where it has company
            bound = self._of(next(n for n in WIDTHS[1:] if n >= count), worker)
            finite &= bound(u_at + start * p, y_at + start * q, count)
        return finite
