"""Progress of long work: bars on a terminal, plain timed lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

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

from simplicit.system.whole import Whole

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
        overall.end(description)
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
    with show(description, Whole(phases), console) as overall:
        token = _overall.set(overall)
        try:
            yield
        finally:
            _overall.reset(token)
        overall.finish()


_overall: ContextVar[Whole | None] = ContextVar("overall", default=None)


@contextmanager
def _whole_bar(description: str, overall: Whole, console: Console) -> Iterator[Whole]:
    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"about {_minutes(overall.left)} left" if overall.part < 1 else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[percent]:>3} %"),
        Left(),
        TextColumn("{task.fields[info]}"),
    )
    with Progress(*columns, console=console) as progress:
        identifier = progress.add_task(description, total=1.0, info="", percent=0)

        def show(task: str, info: str) -> None:
            text = ", ".join(filter(None, (task, info)))
            percent = int(100 * overall.part)
            progress.update(identifier, completed=overall.part, info=text, percent=percent)

        overall.show = show
        yield overall


@contextmanager
def _whole_lines(description: str, overall: Whole, console: Console) -> Iterator[Whole]:
    last = overall.start

    def show(task: str, info: str) -> None:
        nonlocal last
        now = time.monotonic()
        if overall.part < 1 and now - last < LOG_EVERY:
            return
        last = now
        tail = f", about {_minutes(overall.left)} left" if overall.part < 1 else ""
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
