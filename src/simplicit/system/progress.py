"""Progress of long work: bars on a terminal, plain timed lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Step = Callable[..., None]
"""`step(n, info="")` advances a task by n units and shows a short text beside it."""

LOG_EVERY = 5.0
"""Seconds between two plain lines of the same task."""


@contextmanager
def task(description: str, total: int | float, console: Console | None = None) -> Iterator[Step]:
    """Show one task while the `with` block runs.

    Args:
        description: What is being done, e.g. `solving rows`.
        total: Number of units (rows, batches, epochs).
        console: Where to; standard error by default.

    Yields:
        The function that advances it.
    """
    console = console or Console(file=sys.stderr)
    show = _bar if console.is_terminal else _lines
    with show(description, total, console) as step:
        yield step


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
