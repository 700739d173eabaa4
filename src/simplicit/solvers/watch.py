"""Clock and callback of one call: they see every stage of every row, and may stop the call."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from simplicit.convex.solution import Status
from simplicit.workers.packing import Passing


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each stage.

    Attributes:
        rows: Which rows the numbers belong to.
        iteration: Iterations of those rows so far.
        seconds: Since `solve` was called.
        gap: Their relative duality gaps, (k,).
        solved: Rows finished so far, of `total`.
        total: All rows.
    """

    rows: Int[Tensor, " k"]
    iteration: int
    seconds: float
    gap: Float[Tensor, " k"]
    solved: int
    total: int


Callback = Callable[[Progress], bool | None]


@dataclass
class Watch(Passing):
    """Clock and callback of one call; its threads share it.

    A copy that goes to another process keeps the time that is left, without the callback: the
    process that called reports for it, see `away`.

    Attributes:
        limit: Seconds after which to stop; None for no limit.
        callback: Called after each stage; returning True stops.
        total: All rows of the call.
        begin: When the call began, by `time.monotonic`.
        done: Rows of finished tiles.
        under_way: Rows that are done of the tile that a thread is at, by thread.
        stop: Why to stop; None to go on.
        away: Whether this is a copy in another process.
        said: Largest number of rows that was reported as done; what is reported never falls.
    """

    limit: float | None
    callback: Callback | None
    total: int
    begin: float = field(default_factory=time.monotonic)
    done: int = 0
    under_way: dict[int, int] = field(default_factory=dict)
    stop: Status | None = None
    away: bool = False
    lock: Lock = field(default_factory=Lock)
    said: int = 0

    def look(
        self, rows: Int[Tensor, " k"], gap: Float[Tensor, " k"], iteration: int, done: int
    ) -> bool:
        """Report where some rows stand.

        Args:
            rows: Which rows, (k,).
            gap: Their relative gaps, (k,).
            iteration: Iterations of these rows so far.
            done: How many rows of this thread's tile are done.

        Returns:
            Whether to stop.
        """
        with self.lock:
            seconds = time.monotonic() - self.begin
            if self.limit is not None and seconds > self.limit:
                self.stop = self.stop or Status.TIME_LIMIT
            if self.callback is None or self.stop is not None:
                return self.stop is not None
            self.under_way[get_ident()] = done
            self.said = max(self.said, self.done + sum(self.under_way.values()))
            seen = Progress(rows, iteration, seconds, gap, self.said, self.total)
            if self.callback(seen):
                self.stop = Status.INTERRUPTED
            return self.stop is not None

    def finish(self, rows: int) -> None:
        """Count rows as done, at the end of this thread's tile.

        Args:
            rows: How many more.
        """
        with self.lock:
            self.done += rows
            self.under_way.pop(get_ident(), None)

    def end(self) -> None:
        """Stop whatever still goes on."""
        self.stop = self.stop or Status.INTERRUPTED

    @property
    def quiet(self) -> "Watch":
        """The same clock, without the callback."""
        return Watch(self.limit, None, self.total, self.begin)

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, whose clock may be another: the seconds that have passed.

        Returns:
            The state to pickle.
        """
        spent = time.monotonic() - self.begin
        return {"limit": self.limit, "total": self.total, "stop": self.stop, "spent": spent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start the copy in another process.

        Args:
            state: What `__getstate__` gave.
        """
        begin = time.monotonic() - state["spent"]
        self.__init__(state["limit"], None, state["total"], begin, stop=state["stop"], away=True)
