"""What a time limit leaves room for, asked between steps.

First to go are further choices of supports and their refits, then what certificates take, then
sweeps on the outputs. A layer's supports, refitted once, and the budget stay in any case.
"""

import time
from dataclasses import dataclass, field

from simplicit.matching.expected.estimate import LEVELS, SWEEPS, Estimate
from simplicit.system import progress
from simplicit.system.deadline import Deadline, pace

FEWEST = 2
"""Sweeps that reach a budget: one finds what removals cost, one removes."""

SWEPT = "the sweeps on the outputs"
"""Name of what is left out where there is no time for these."""

SPREAD = 2.0
"""A certificate may take so many times its part of the time that is left. Chosen."""


@dataclass
class Schedule:
    """What is expected of the rest, in view of how fast it has gone so far.

    Attributes:
        deadline: How long all may take.
        cut: What was left out -> in how many layers.
    """

    deadline: Deadline
    cut: dict[str, int] = field(default_factory=dict)
    _expected: Estimate | None = None
    _begun: float = 0.0
    _matched: int = 0  # layers

    def begin(self, expected: Estimate) -> None:
        """Start to count.

        Args:
            expected: What is expected of all.
        """
        self._expected, self._begun = expected, time.monotonic()

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.deadline.left

    def note(self, what: str) -> None:
        """Write down what was left out altogether.

        Args:
            what: Its name.
        """
        self.cut[what] = 0

    def short(self, what: str) -> None:
        """Write down what was left out in one more layer.

        Args:
            what: Its name.
        """
        self.cut[what] = self.cut.get(what, 0) + 1

    def matched(self, k: int) -> None:
        """Note that a layer is matched.

        Args:
            k: Which.
        """
        self._matched = k + 1

    def sweepable(self) -> bool:
        """Say whether, after the plan, there is time for the fewest sweeps.

        Returns:
            Whether the least of the layers and of the sweeps fits.
        """
        if self.deadline.limit is None or self._expected is None:
            return True
        least = sum(layer.states + layer.first for layer in self._expected.layers)
        return self._pace() * (least + sum(self._expected.swept[:FEWEST])) <= self.left

    def hurried(self, k: int) -> bool:
        """Say whether a layer has no time for more than one choice of supports.

        Args:
            k: The layer.

        Returns:
            Whether the rest with all choices would take longer than there is.
        """
        if self.deadline.limit is None or self._expected is None:
            return False
        rest = self._expected.layers[k:]
        needed = sum(layer.states + layer.first + layer.further for layer in rest)
        short = self.left < self._pace() * (needed + self._after())
        if short:
            self.short("choices of supports")
        return short

    def certificate(self, k: int, solves: int) -> float | None:
        """Say how long the certified solve of a layer may take.

        Args:
            k: The layer.
            solves: Solves of this layer that are left.

        Returns:
            Seconds; None without a limit.
        """
        if self.deadline.limit is None or self._expected is None:
            return None
        own, rest = self._expected.layers[k].certificate, self._expected.layers[k + 1 :]
        others = sum(layer.states + layer.first + layer.further for layer in rest)
        room = self.left - self._pace() * (others + self._after())
        needed = own + sum(layer.certificate for layer in rest)
        return max(min(room, SPREAD * room * own / max(needed, 1e-9)), 0.0) / solves

    def sweeps(self) -> "Timer":
        """Begin to time sweeps.

        Returns:
            A timer.
        """
        if self.deadline.limit is None or self._expected is None:
            return Timer(self.deadline, 0.0)
        return Timer(self.deadline, self._pace() * next(iter(self._expected.swept), 0.0))

    def prices(self, most: int) -> "Timer":
        """Begin to time prices on the path to a level of robustness.

        Args:
            most: Prices.

        Returns:
            A timer.
        """
        if self.deadline.limit is None or self._expected is None:
            return Timer(self.deadline, 0.0)
        every = sum(self._expected.phases.get(LEVELS, []))
        return Timer(self.deadline, self._pace() * every / most)

    def tell(self) -> None:
        """Say what was left out, and by how much the limit was exceeded."""
        limit, parts = self.deadline.limit, []
        if limit is None:
            return
        for what, count in self.cut.items():
            parts.append(what + (f" ({count} layers)" if count else ""))
        if parts:
            progress.say(f"time_limit={limit:g}: cut short were {', '.join(parts)}")
        if self.left < 0:
            progress.say(f"time_limit={limit:g}: it took {self.deadline.used:.1f} s")

    # what comes after the layers
    def _after(self) -> float:
        assert self._expected is not None
        phases, left_out = self._expected.phases, SWEPT in self.cut
        names = (LEVELS,) if left_out else (SWEEPS, LEVELS)
        return sum(sum(phases.get(name, [])) for name in names)

    def _pace(self) -> float:
        expected = self._expected
        assert expected is not None
        done = expected.planned + sum(layer.matched for layer in expected.layers[: self._matched])
        spent = time.monotonic() - self._begun + self.deadline.earlier
        return pace(spent, done, expected.seconds)


@dataclass
class Timer:
    """Seconds of one sweep after another.

    Args:
        deadline: How long all may take.
        each: Seconds that a sweep is expected to take.
        laps: Sweeps so far.
        over: Whether there was no time for another one.
    """

    deadline: Deadline
    each: float
    laps: int = 0
    over: bool = False
    last: float = field(default_factory=time.monotonic)

    def lap(self) -> None:
        """Note the end of a sweep."""
        now = time.monotonic()
        self.each, self.last = now - self.last, now
        self.laps += 1

    def room(self) -> float:
        """Count the sweeps that there is time for.

        Returns:
            Their number; infinite without a limit.
        """
        found = self.deadline.left / max(self.each, 1e-9)
        self.over = found < 1
        return found
