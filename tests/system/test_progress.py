"""Bars on a terminal; in a log plain lines, few of them and each complete."""

import io
import re

import pytest
from rich.console import Console

from simplicit.system import progress


def log() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=False), text


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_every_few_seconds_and_one_at_the_end(clock):
    console, text = log()
    with progress.task("solving rows", total=100, console=console) as step:
        for _ in range(100):
            clock[0] += 0.2
            step(1, "gap 1e-3")
    lines = text.getvalue().splitlines()
    assert len(lines) == 20 / progress.LOG_EVERY
    assert lines[0] == "solving rows: 25/100, gap 1e-3, 5.0 s, about 15 s left"
    assert lines[-1] == "solving rows: 100/100, gap 1e-3, 20.0 s"


def test_short_work_is_one_line_without_control_characters(clock):
    console, text = log()
    with progress.task("training [a/b]", total=2.0, console=console) as step:
        step(2.0)
    assert text.getvalue() == "training [a/b]: 2/2, 0.0 s\n"


def test_stopped_work_has_no_last_line(clock):
    console, text = log()
    with (
        pytest.raises(KeyboardInterrupt),
        progress.task("solving rows", total=2, console=console) as step,
    ):
        step(1)
        raise KeyboardInterrupt
    assert text.getvalue() == ""


def test_waiting_without_advance_is_told_too(clock):
    console, text = log()
    with progress.task("finding the level", total=1, console=console) as step:
        clock[0] += 6
        step(0, "90 weights, 100 wanted")
        assert text.getvalue() == "finding the level: 0/1, 90 weights, 100 wanted, 6.0 s\n"
        step(1)


def test_a_terminal_gets_a_bar():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, legacy_windows=False)
    with progress.task("solving rows", total=4, console=console) as step:
        step(3, "gap 1e-3")
        step(1, "gap 1e-5")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert "\x1b" in text.getvalue()
    assert "solving rows" in plain and "4/4" in plain and "gap 1e-5" in plain


def test_it_goes_to_standard_error(capsys):
    with progress.task("solving rows", total=1) as step:
        step(1)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("solving rows: 1/1")
