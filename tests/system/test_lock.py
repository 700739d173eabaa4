"""One process at a time in a folder, whatever becomes of the one before."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simplicit.errors import InputError
from simplicit.system import lock

HOLDER = """
import sys
from pathlib import Path
from simplicit.system.lock import held
with held(Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    """A process that has the lock, until its standard input ends."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    return process


def test_a_second_process_is_refused_by_the_number_of_the_first(tmp_path):
    with holder(tmp_path / "a") as first:
        for _ in range(2):
            says = rf"a is in use by process {first.pid}: wait for its end, or give another folder"
            with pytest.raises(InputError, match=says), lock.held(tmp_path / "a"):
                raise AssertionError("both are in it")
        with lock.held(tmp_path / "b"):
            pass
        first.communicate()
    assert first.returncode == 0
    with lock.held(tmp_path / "a"):
        assert (tmp_path / "a" / lock.NAME).read_text() == f"{os.getpid()}\n"


def test_a_killed_process_holds_nothing(tmp_path):
    with holder(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / lock.NAME).exists()
        with lock.held(tmp_path):
            pass
    assert [*tmp_path.iterdir()] == []


def test_two_calls_of_one_process_are_two(tmp_path):
    with lock.held(tmp_path):
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lock.held(tmp_path):
            pass
        # the one that was refused has taken nothing away
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lock.held(tmp_path):
            pass


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(ValueError), lock.held(tmp_path / "runs" / "one"):
        raise ValueError
    assert [*tmp_path.iterdir()] == []
    with lock.held(tmp_path / "runs" / "one"):
        (tmp_path / "runs" / "one" / "file").touch()
    assert [path.name for path in (tmp_path / "runs" / "one").iterdir()] == ["file"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file: give another folder"):
        with lock.held(tmp_path / "file"):
            pass
