"""Progress of long work: bars on a terminal, plain timed lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from simplicit.system.deadline import pace

Step = Callable[..., None]
"""`step(n, info="")` advances a task by n units and shows a short text beside it."""

LOG_EVERY = 5.0
"""Seconds between two plain lines of the same task."""


@contextmanager
def task(description: str, total: int | float, console: Console | None = None) -> Iterator[Step]:
    """Show one task while the `with` block runs; inside of `whole`, as a part of that.

    Args:
        description: What is being done, e.g. `solving rows`.
        total: Number of units (rows, batches, epochs).
        console: Where to; standard error by default.

    Yields:
        The function that advances it.
    """
    overall = _overall.get()
    if overall is not None and console is None:
        yield overall.begin(description, total)
        overall.end()
        return
    console = console or Console(file=sys.stderr)
    show = _bar if console.is_terminal else _lines
    with show(description, total, console) as step:
        yield step


@contextmanager
def whole(
    description: str, phases: Mapping[str, Sequence[float]], console: Console | None = None
) -> Iterator[None]:
    """Show all tasks of the `with` block as one, with the time that is left.

    Args:
        description: What comes of it.
        phases: Description of each task, in their order -> the seconds that its parts are expected
            to take. The units of a task are spread evenly over its parts.
        console: Where to; standard error by default.

    Yields:
        Nothing.
    """
    console = console or Console(file=sys.stderr)
    show = _whole_bar if console.is_terminal else _whole_lines
    with show(description, _Whole(phases), console) as overall:
        token = _overall.set(overall)
        try:
            yield
        finally:
            _overall.reset(token)
        overall.finish()


class _Whole:
    """How much of several tasks is done, in expected seconds.

    Tasks that never come, as their results were there, are done when a later one begins.
    """

    def __init__(self, phases: Mapping[str, Sequence[float]]) -> None:
        names, sums = list(phases), [0.0, *accumulate(map(sum, phases.values()))]
        self._from = dict(zip(names, sums, strict=False))
        self._parts = {name: [0.0, *accumulate(phases[name])] for name in names}
        self.total = sums[-1]
        self.start = time.monotonic()
        self.done = self._worked = self._units = 0.0
        self._task, self._size = "", 1.0
        self.show: Step = lambda *_: None

    def begin(self, task: str, size: float) -> Step:
        self._task, self._size, self._units = task, size, 0.0
        # no time was spent on what was there already
        self._reach(self._from.get(task, 0.0), worked=False)
        self.show(task, "")

        def step(n: int | float = 1, info: str = "") -> None:
            self._units += n
            self._reach(self._from.get(task, 0.0) + self._within(self._units))
            self.show(task, info)

        return step

    def end(self) -> None:
        parts = self._parts.get(self._task, [0.0])
        self._reach(self._from.get(self._task, 0.0) + parts[-1])

    def finish(self) -> None:
        self.done = self.total
        self.show("", "")

    @property
    def left(self) -> float:
        """Seconds that are left: the estimate, as it has turned out so far."""
        spent = time.monotonic() - self.start
        return (self.total - self.done) * pace(spent, self._worked, self.total)

    @property
    def part(self) -> float:
        """What is done as a part of the whole; 1 only at the end."""
        return self.done / self.total if self.total else 0.0

    def _reach(self, done: float, worked: bool = True) -> None:
        # all but a little, until it is finished
        ahead = max(min(done, 0.999 * self.total) - self.done, 0.0)
        self.done += ahead
        self._worked += ahead if worked else 0.0

    # expected seconds of a task's first units
    def _within(self, units: float) -> float:
        sums = self._parts.get(self._task, [0.0])
        place = min(max(units / self._size, 0.0), 1.0) * (len(sums) - 1)
        k = min(int(place), max(len(sums) - 2, 0))
        return sums[k] + (place - k) * (sums[-1] if len(sums) == 1 else sums[k + 1] - sums[k])


_overall: ContextVar[_Whole | None] = ContextVar("overall", default=None)


@contextmanager
def _whole_bar(description: str, overall: _Whole, console: Console) -> Iterator[_Whole]:
    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.finished else f"about {_minutes(overall.left)} left")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        Left(),
        TextColumn("{task.fields[info]}"),
    )
    with Progress(*columns, console=console) as progress:
        identifier = progress.add_task(description, total=1.0, info="")

        def show(task: str, info: str) -> None:
            text = ", ".join(filter(None, (task, info)))
            progress.update(identifier, completed=overall.part, info=text)

        overall.show = show
        yield overall


@contextmanager
def _whole_lines(description: str, overall: _Whole, console: Console) -> Iterator[_Whole]:
    last = overall.start

    def show(task: str, info: str) -> None:
        nonlocal last
        now = time.monotonic()
        if overall.done < overall.total and now - last < LOG_EVERY:
            return
        last = now
        tail = f", about {_minutes(overall.left)} left" if overall.done < overall.total else ""
        text = ", ".join(filter(None, (f"{int(100 * overall.part)} %", task, info)))
        print(f"{description}: {text}, {now - overall.start:.1f} s{tail}", file=console.file)

    overall.show = show
    yield overall


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def say(line: str) -> None:
    """Tell the user something that is worth knowing before the work goes on.

    Args:
        line: One line; it goes to standard error.
    """
    print(line, file=sys.stderr)


@contextmanager
def _bar(description: str, total: int | float, console: Console) -> Iterator[Step]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )
    with Progress(*columns, console=console) as progress:
        identifier = progress.add_task(description, total=total, info="")

        def step(n: int | float = 1, info: str = "") -> None:
            progress.update(identifier, advance=n, info=info)

        yield step


@contextmanager
def _lines(description: str, total: int | float, console: Console) -> Iterator[Step]:
    start = last = time.monotonic()
    done, last_info = 0.0, ""

    def line(info: str) -> None:
        spent = time.monotonic() - start
        left = spent * (total - done) / done if 0 < done < total else 0.0
        tail = f", about {left:.0f} s left" if left else ""
        note = f", {info}" if info else ""
        print(
            f"{description}: {done:.10g}/{total:.10g}{note}, {spent:.1f} s{tail}", file=console.file
        )

    def step(n: int | float = 1, info: str = "") -> None:
        nonlocal done, last, last_info
        done, last_info = done + n, info
        if time.monotonic() - last >= LOG_EVERY and done < total:
            last = time.monotonic()
            line(info)

    yield step
    line(last_info)
