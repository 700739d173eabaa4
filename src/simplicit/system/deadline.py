"""How long a call may still take, and how fast it goes beside what was expected."""

import time
from dataclasses import dataclass, field
from math import inf

from simplicit.errors import InputError

TRUSTED = 0.1
"""Part of the whole for which its estimate counts as much as how fast it has gone so far. Chosen.
"""


def pace(spent: float, done: float, total: float) -> float:
    """Say by what an estimate is wrong.

    Args:
        spent: Seconds so far.
        done: Seconds expected for what is done.
        total: Seconds expected for all.

    Returns:
        Seconds for every expected one: near 1 at first, as it has gone later on.
    """
    trusted = TRUSTED * total
    return (spent + trusted) / (done + trusted) if total > 0 else 1.0


@dataclass
class Deadline:
    """A time limit that begins with the call.

    Args:
        limit: Seconds; None for no limit.
        earlier: Seconds spent before a stop, which count.
        start: When the call began.

    Raises:
        InputError: If the limit is not positive.
    """

    limit: float | None = None
    earlier: float = 0.0
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        known = isinstance(self.limit, int | float) and not isinstance(self.limit, bool)
        if self.limit is not None and not (known and 0 < self.limit < inf):
            raise InputError(
                f"time_limit={self.limit!r}: accepted is None, or a number of seconds above 0"
            )

    @property
    def used(self) -> float:
        """Seconds spent, those before a stop included."""
        return time.monotonic() - self.start + self.earlier

    @property
    def left(self) -> float:
        """Seconds left; negative when they are over, infinite without a limit."""
        return inf if self.limit is None else self.limit - self.used
