"""Processes that are killed, stopped, out of memory, or left alone by who called them."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from simplicit.errors import WorkerError
from simplicit.workers import run as module
from simplicit.workers.executors import opened
from simplicit.workers.processes import Processes
from simplicit.workers.run import run
from simplicit.workers.workers import Workers


def once(folder: str, what: str, bad: int, piece: int) -> int:
    """Something that happens to the first worker that takes a certain piece."""
    marker = Path(folder) / what
    if piece == bad and not marker.exists():
        marker.touch()
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "out of memory":
            raise MemoryError
    time.sleep(0.02)
    return piece**2


def always(piece: int) -> int:
    if piece == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


@pytest.mark.parametrize("what", ["killed", "stopped", "out of memory"])
def test_a_worker_that_fails_costs_its_piece_alone(tmp_path, monkeypatch, what):
    monkeypatch.setattr(module, "LATE", 0.5 if what == "stopped" else 60.0)
    monkeypatch.setattr(module, "LOOK", 0.1)
    with Processes(2) as executor:
        workers = Workers(executor)
        found = list(run(partial(once, str(tmp_path), what, 4), range(12), workers))
        assert found == [i**2 for i in range(12)]
        assert (tmp_path / what).exists()
        # the next piece of the same worker may have been lost with it
        assert 1 <= workers.again <= (12 if what == "stopped" else 2)
        assert list(run(abs, [-1, -2], workers)) == [1, 2]


def test_a_piece_that_ends_two_workers_is_named():
    with Processes(2) as executor:
        with pytest.raises(WorkerError, match=r"piece 3 of .*always ended 2 workers"):
            list(run(always, range(8), executor))
        assert list(run(abs, [-1], executor)) == [1]


def test_a_pool_that_breaks_leaves_the_rest_to_threads_here(tmp_path, capsys):
    with Processes(1) as mine, ProcessPoolExecutor(2, mp_context=mine._context) as broken:
        found = list(run(partial(once, str(tmp_path), "killed", 2), range(9), broken))
    assert found == [i**2 for i in range(9)]
    assert "the run goes on here" in capsys.readouterr().err


def total(M: Tensor, factor: float) -> Tensor:
    return factor * M.sum(0)


def private(M: Tensor, piece: int) -> int:
    """Bytes that no file stands for, once this process has read a matrix."""
    float(M.sum())
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux says it alone")
def test_a_large_matrix_is_in_memory_once():
    M = torch.randn(4000, 1000, dtype=torch.float64)
    with Processes(3) as executor:
        workers = Workers(executor)
        few = max(run(partial(private, M[:4]), range(6), workers))
        many = max(run(partial(private, M), range(6), workers))
        assert many - few < 0.2 * M.nbytes
        assert workers.lender.sent == M.nbytes
        assert list(Path(executor._folder).iterdir())
    assert not executor._folder.exists()


def test_names_stand_for_threads_and_processes():
    with opened("processes", 2) as processes, opened("threads", 2) as threads:
        for executor in (processes, threads):
            found = list(run(partial(total, torch.ones(3, 3)), [1.0, 2.0], executor))
            assert [float(f[0]) for f in found] == [3.0, 6.0]
    with opened(None, 1) as none:
        assert none is None


LONELY = """
import time
from simplicit.workers.processes import Processes
if __name__ == "__main__":
    executor = Processes(2)
    for _ in range(2):
        executor.submit(time.sleep, 60)
    print(*[w.pid.result() for w in executor._workers], executor._folder, flush=True)
    time.sleep(60)
"""


def test_a_caller_that_is_killed_leaves_no_process_behind(tmp_path):
    script = tmp_path / "lonely.py"
    script.write_text(LONELY)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        *pids, folder = caller.stdout.readline().split()
        caller.kill()
    end = time.monotonic() + 20
    while any(psutil.pid_exists(int(pid)) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(int(pid)) for pid in pids)
    # what it has left on the disk goes when the next one begins
    with Processes(1):
        assert not Path(folder).exists()
