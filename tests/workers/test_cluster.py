"""A real scheduler and real workers, as processes on the loopback address, one of them killed."""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from errands import dies, fails, kills, scaled, slow
from kinds import inputs, quick_fit, same
from simplicit.errors import InputError, WorkerError
from simplicit.recipe import Recipe
from simplicit.workers.cluster import connected
from simplicit.workers.executors import opened
from simplicit.workers.run import run
from simplicit.workers.workers import Workers

pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("default")  # what Dask warns of is its own


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def environment() -> dict[str, str]:
    # workers import the modules of these tests, as those of a user would import the user's
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}


@contextmanager
def dask(log: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    # simplicit counts itself
    own = environment() | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    command = [sys.executable, "-m", "dask", *arguments]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env=own, cwd=log.parent) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def cluster(folder: Path, workers: int = 2) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    port = free()
    address = f"tcp://127.0.0.1:{port}"
    own = ["--host", "127.0.0.1", "--no-dashboard"]
    with dask(folder / "scheduler.log", "scheduler", "--port", str(port), *own) as scheduler:
        each = ["worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        makes = [dask(folder / f"worker-{k}.log", *each) for k in range(workers)]
        try:
            processes = [make.__enter__() for make in makes]
            while not listens(port):
                assert scheduler.poll() is None, "the scheduler has ended"
                time.sleep(0.05)
            with connected(address) as client:
                client.wait_for_workers(workers, timeout=60)
            yield address, [scheduler, *processes]
        finally:
            for make in makes:
                make.__exit__(None, None, None)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with cluster(tmp_path_factory.mktemp("cluster")) as (found, _):
        yield found


def test_answers_in_order_and_a_matrix_goes_once(address):
    M = torch.randn(1000, 400, dtype=torch.float64)
    with connected(address) as client, opened(client) as executor:
        workers = Workers(executor)
        found = list(run(partial(scaled, M), [float(i) for i in range(9)], workers))
        assert all(torch.equal(a, i * M.sum(0)) for i, a in enumerate(found))
        again = list(run(partial(scaled, M.clone()), [1.0], workers))
        assert torch.equal(again[0], found[1])
        assert workers.lender.sent == M.nbytes
        with pytest.raises(ValueError, match="piece 2"):
            list(run(fails, range(5), workers))
        # its executor is one, too
        assert list(run(abs, [-1, -2], client.get_executor())) == [1, 2]


def test_workers_are_asked_directly_where_they_are_reached(address, monkeypatch):
    M = torch.randn(600, 400, dtype=torch.float64)
    with connected(address) as client:
        with opened(client) as executor:
            assert client.direct_to_workers
            ways, scatter = [], client.scatter

            def broken(*args, direct, **kwargs):
                ways.append(direct)
                if direct:
                    raise OSError("no route to the worker")
                return scatter(*args, direct=direct, **kwargs)

            # one worker is gone meanwhile
            monkeypatch.setattr(client, "scatter", broken)
            (found,) = run(partial(scaled, M), [2.0], executor)
            assert torch.equal(found, 2.0 * M.sum(0)) and ways == [True, False]
        assert client.direct_to_workers is None
        with opened(client):  # none is reached
            assert client.direct_to_workers is False
        client.direct_to_workers = False
        with opened(client):
            assert client.direct_to_workers is False


def gives_the_bits_of_one_worker(address: str) -> None:
    kind = "convolutions"
    recipe, u = Recipe(sparsity=0.6), inputs(kind)
    one = quick_fit(kind, recipe, u, batch_size=8)
    with patch("simplicit.workers.run.LIGHT", 1e4), connected(address) as client:
        many = quick_fit(kind, recipe, u, batch_size=8, executor=client)
    assert same(many.model, one.model)


def test_a_cluster_gives_the_bits_of_one_worker(address):
    gives_the_bits_of_one_worker(address)


SLOW = """
ip link set lo mtu 1500 up
tc qdisc add dev lo root netem delay 1ms rate 100mbit 2> /dev/null ||
    tc qdisc add dev lo root tbf rate 100mbit burst 64kb latency 1s
"""
"""Of a namespace's loopback device: 1 ms and 100 Mbit/s; the rate alone where there is no netem."""


def test_a_slow_network_changes_no_bit(tmp_path):
    space = ["unshare", "--map-root-user", "--net", "sh", "-ec"]
    try:
        subprocess.run([*space, SLOW], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no slow network can be made here: {error}")
    # without pytest, whose hooks and checks of shapes take longer than the fits
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_cluster import cluster, gives_the_bits_of_one_worker
with cluster(Path({str(tmp_path)!r}), workers=1) as (address, _):
    gives_the_bits_of_one_worker(address)
print("the bits are the same")
"""
    command = f"{SLOW} exec {sys.executable} -c {shlex.quote(script)}"
    found = subprocess.run(
        [*space, command], capture_output=True, text=True, timeout=200, env=environment()
    )
    assert found.returncode == 0 and "the bits are the same" in found.stdout, found.stderr


def test_workers_that_are_killed_and_a_scheduler_that_goes_away(tmp_path, capsys, monkeypatch):
    with (
        cluster(tmp_path, workers=4) as (address, processes),
        connected(address) as client,
        opened(client) as executor,
    ):
        monkeypatch.setattr("simplicit.workers.cluster.PATIENCE", 1.0)
        workers = Workers(executor)
        # one costs its piece
        assert list(run(partial(dies, str(tmp_path)), range(12), workers)) == [*range(12)]
        assert (tmp_path / "died").exists() and workers.again >= 1
        with pytest.raises(WorkerError, match="piece 1 of .*kills ended 2 workers"):
            list(run(kills, range(3), workers))
        answers = run(slow, range(12), workers)
        found = [next(answers)]
        processes[0].kill()
        found += answers
        assert found == [*range(12)]
        assert "the scheduler is gone: the run goes on here" in capsys.readouterr().err
        assert list(run(slow, range(3), workers)) == [0, 1, 2]


def test_an_address_without_a_scheduler_is_refused(monkeypatch):
    monkeypatch.setattr("simplicit.workers.cluster.PATIENCE", 0.5)
    with (
        pytest.raises(InputError, match="--scheduler tcp://127.0.0.1:.*no scheduler answers"),
        connected(f"tcp://127.0.0.1:{free()}"),
    ):
        pass
    with pytest.raises(InputError, match="executor='cluster': accepted are threads, processes"):
        with opened("cluster"):
            pass
