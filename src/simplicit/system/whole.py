"""How far several tasks are together, and how long they still take."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from simplicit.system.deadline import pace

ALMOST = 0.999
"""The most that is done before the end."""


class Whole:
    """How much of several tasks is done, in expected seconds.

    Tasks that never come, as their results were there, are done when a later one begins.

    Args:
        phases: Each task -> the seconds that its parts are expected to take.

    Attributes:
        start: When it began.
        part: What is done, as a part of the whole; 1 only at the end.
        show: Called with the task and a short text when more is done.
    """

    def __init__(self, phases: Mapping[str, Sequence[float]]) -> None:
        names, sums = list(phases), [0.0, *accumulate(map(sum, phases.values()))]
        self._from = dict(zip(names, sums, strict=False))
        self._parts = {name: [0.0, *accumulate(phases[name])] for name in names}
        self._total = sums[-1]
        self.start = time.monotonic()
        self.part = self._worked = self._units = 0.0
        self.show: Callable[[str, str], None] = lambda *_: None

    def begin(self, task: str, size: float) -> Callable[..., None]:
        """Begin a task.

        Args:
            task: Its name.
            size: Its units.

        Returns:
            The function that advances it.
        """
        self._units = 0.0
        # no time was spent on what was there already
        self._reach(self._from.get(task, 0.0), worked=False)
        self.show(task, "")

        def step(n: int | float = 1, info: str = "") -> None:
            self._units += n
            self._reach(self._from.get(task, 0.0) + self._within(task, self._units / size))
            self.show(task, info)

        return step

    def end(self, task: str) -> None:
        """End a task.

        Args:
            task: Its name.
        """
        self._reach(self._from.get(task, 0.0) + self._within(task, 1.0))

    def finish(self) -> None:
        """End them all."""
        self.part = 1.0
        self.show("", "")

    @property
    def left(self) -> float:
        """Seconds that are left: the estimate, as it has turned out so far."""
        spent = time.monotonic() - self.start
        return (1 - self.part) * self._total * pace(spent, self._worked, self._total)

    def _reach(self, done: float, worked: bool = True) -> None:
        ahead = min(done / self._total, ALMOST) - self.part if self._total else 0.0
        if ahead > 0:
            self.part += ahead
            self._worked += ahead * self._total if worked else 0.0

    # expected seconds of the first part of a task
    def _within(self, task: str, part: float) -> float:
        sums = self._parts.get(task, [0.0, 0.0])
        place = min(max(part, 0.0), 1.0) * (len(sums) - 1)
        k = min(int(place), len(sums) - 2)
        return sums[k] + (place - k) * (sums[k + 1] - sums[k])
