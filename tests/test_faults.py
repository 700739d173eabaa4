"""What happens on a real machine: processes that are killed, signals, full and read-only disks."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simplicit.lab.run.run import run
from small_run import DIGITS, SMALL, contents, hurry, settings

RUN = ("run", str(DIGITS), *SMALL, "evaluation.baselines=[explicit,implicit]")
GOES_ON = "stopped; the same command with --out and the run's folder goes on"

SLOW = """
import sys, time, types
from simplicit import cli
from simplicit.system import files, lock

def load(name, folder):
    with lock.held(folder), files.replace_with(folder / "half.txt") as temporary:
        try:
            temporary.write_text("half")
            print("working", flush=True)
            time.sleep(60)
        finally:
            if name == "long":
                print("cleaning up", flush=True)
                time.sleep(60)

for name in ("simplicit.data", "simplicit.data.datasets"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["simplicit.data.datasets"].load = load
cli.main()
"""
"""The command line with work that only waits and, if asked, takes as long to clean up. It does not
need what takes seconds to import."""


@contextmanager
def process(
    *arguments: object, code: str | None = None, before: Callable[[], None] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`simplicit …` in a process of its own, gone in any case when the block ends."""
    program = ("-m", "simplicit") if code is None else ("-c", code)

    def begin() -> None:
        # a shell that has put these tests into the background has Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not None:
            before()

    started = subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=begin,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def heard(started: subprocess.Popen[str], line: str) -> None:
    assert started.stdout is not None and started.stdout.readline() == f"{line}\n"


@contextmanager
def heeded(number: signal.Signals) -> Iterator[None]:
    """Under nohup SIGHUP is ignored, also by all that is started."""
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_a_run_in_one_line_and_nothing_is_half_written(tmp_path, number):
    with heeded(number), process("data", "short", "--dir", tmp_path / "out", code=SLOW) as started:
        heard(started, "working")
        assert len(contents(tmp_path)) == 2  # the lock and half a file
        started.send_signal(number)
        out, err = started.communicate()
    assert started.returncode == 128 + number and out == ""
    assert err == f"{GOES_ON}\n"
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_does_not_wait_for_the_cleanup(tmp_path, first):
    with process("data", "long", "--dir", tmp_path / "out", code=SLOW) as started:
        heard(started, "working")
        started.send_signal(first)
        heard(started, "cleaning up")
        begin = time.monotonic()
        started.send_signal(signal.SIGINT)
        _, err = started.communicate()
    assert started.returncode == 130 and time.monotonic() - begin < 30
    assert err == f"{GOES_ON}\n"
    assert set(contents(tmp_path)) <= {"out/.lock"}


def test_what_a_shell_keeps_from_a_run_it_does_not_hear(tmp_path):
    def deaf() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with process("data", "short", "--dir", tmp_path / "out", code=SLOW, before=deaf) as started:
        heard(started, "working")
        started.send_signal(signal.SIGHUP)
        started.send_signal(signal.SIGTERM)
        assert started.wait() == 128 + signal.SIGTERM


def test_a_run_that_is_killed_goes_on_and_a_second_one_beside_it_is_refused(
    finished, tmp_path, monkeypatch
):
    folder = tmp_path / "out"
    with process(*RUN, "--out", folder) as first:
        while not (folder / "checkpoint" / "plan.safetensors").exists():
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        before = contents(folder)
        with process(*RUN, "--out", folder) as second:
            out, err = second.communicate()
        assert second.returncode == 2 and out == ""
        assert err.splitlines()[1:] == [
            f"error: {folder} is in use by process {first.pid}: wait for its end, or give another "
            "folder"
        ]
        assert contents(folder) == before
        first.kill()
        first.wait()
        assert first.returncode == -signal.SIGKILL
    (folder / ".metrics.json.1.tmp").write_text("half of th")
    hurry(monkeypatch)
    run(settings(), folder)
    for name in ("model.safetensors", "model.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    kept = contents(folder)
    assert not [n for n in kept if n.endswith((".tmp", ".lock")) or n.startswith("checkpoint")]


def test_a_file_that_may_not_grow_is_one_line_and_the_run_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "out"

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    with process(*RUN, "--out", folder, before=small_files) as started:
        _, err = started.communicate()
    assert started.returncode == 2 and "Traceback" not in err
    assert err.splitlines()[-1] == (
        f"error: {folder / 'explicit.safetensors'}: File too large; what is finished is kept, the "
        "same command with --out goes on"
    )
    assert set(contents(folder)) == {"config.yaml", "environment.json"}
    hurry(monkeypatch)
    assert len(run(settings(), folder)) == 2


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; the test is skipped where none may be mounted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on(tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        filler = disk / "filler"
        filler.write_bytes(b"0" * (64 - 5 * 4) * 1024)  # five pages are left
        with process(*RUN, "--out", disk / "out") as started:
            _, err = started.communicate()
        assert started.returncode == 2 and "Traceback" not in err
        assert "No space left on device; what is finished is kept" in err.splitlines()[-1]
        assert not [name for name in contents(disk) if name.endswith((".tmp", ".lock"))]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        hurry(monkeypatch)
        assert len(run(settings(), disk / "out")) == 2


def test_a_disk_that_is_read_only_is_one_line(tmp_path):
    with mounted(tmp_path / "disk", "size=64k,ro") as disk:
        with process(*RUN, "--out", disk / "out") as started:
            _, err = started.communicate()
    assert started.returncode == 2
    assert err.splitlines()[-1] == (
        f"error: {disk / 'out'}: Read-only file system; give a folder that can be written"
    )
