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


PARTS = {"first": [1.0, 3.0], "second": [4.0], "third": [1.0] * 4}


def shown(text: io.StringIO) -> list[int]:
    return [int(found) for found in re.findall(r"(\d+) %", text.getvalue())]


def test_several_tasks_are_one_with_the_time_that_is_left(clock):
    console, text = log()
    with progress.whole("model", PARTS, console):
        with progress.task("first", 2) as step:
            clock[0] += 1
            step()
            clock[0] += 5  # twice as long as was expected
            step(1, "conv1")
        with progress.task("second", 100) as step:
            clock[0] += 8
            step(100)
        with progress.task("third", 8) as step:
            clock[0] += 6
            step(6)
            clock[0] += 2
            step(2)
    first, second, third, last = text.getvalue().splitlines()
    assert first.startswith("model: 33 %, first, conv1, 6.0 s, about 11 s left")
    assert second.startswith("model: 66 %, second, 14.0 s, about 7 s left")
    assert third.startswith("model: 91 %, third, 20.0 s, about 2 s left")
    assert last == "model: 100 %, 22.0 s"


def test_tasks_that_never_come_are_done_and_cost_no_time(clock):
    console, text = log()
    with progress.whole("model", PARTS, console), progress.task("third", 4) as step:
        clock[0] += 6
        step()
    assert text.getvalue().startswith("model: 75 %, third, 6.0 s, about ")
    assert shown(text) == [75, 100]


def test_it_never_goes_back_and_ends_once(monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY", -1.0)
    console, text = log()
    with progress.whole("model", PARTS, console):
        for name in ("first", "unknown", "second", "third", "first"):
            with progress.task(name, 3) as step:
                for _ in range(5):  # more than it said
                    step()
    assert shown(text) == sorted(shown(text)) and shown(text).count(100) == 1


def test_a_task_outside_has_a_bar_of_its_own(clock):
    console, text = log()
    with progress.whole("model", {}, console), progress.task("first", 1) as step:
        step()
    assert shown(text) == [100]
    with progress.task("plots", 1, console) as step:
        step()
    assert text.getvalue().splitlines()[-1] == "plots: 1/1, 0.0 s"


def test_stopped_tasks_do_not_end(clock):
    console, text = log()
    with pytest.raises(KeyboardInterrupt), progress.whole("model", PARTS, console):
        with progress.task("first", 2):
            raise KeyboardInterrupt
    assert text.getvalue() == ""


def test_a_terminal_gets_one_bar_for_all():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, legacy_windows=False)
    with progress.whole("model", PARTS, console), progress.task("second", 2) as step:
        step(1, "conv1")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert "model" in plain and "100 %" in plain and "left" in plain
