"""The same work by threads, processes and Dask: time, memory, bytes, and whether bits are the same.

    python benchmarks/executors.py                    # a network of the size of ResNet-18
    python benchmarks/executors.py --workers 1 8 --samples 100
    python benchmarks/executors.py --run configs/sparsity.yaml   # a run by each, a worker killed

Each line is a process of its own, with one BLAS thread a worker. Memory is the sum over all its
processes of what each has, shared pages divided by who share them, at its highest. Bytes are those
that went over the loopback address, which only Dask uses, beside those of every shared array once a
worker. With `--run` the SHA-256 of `model.safetensors` stands beside each. It gates nothing.
"""

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS, WORKED = 0.25, 0.2
"""Between two looks at the memory; of a worker, before it is killed."""


def network(width: int):
    """ResNet-18 (He et al., 2016) for small images, its weights at random."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, read: int, write: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(read, write, 3, stride, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(write), nn.BatchNorm2d(write)
            self.conv2 = nn.Conv2d(write, write, 3, 1, 1, bias=False)
            self.shortcut = nn.Sequential()
            if read != write or stride > 1:
                conv = nn.Conv2d(read, write, 1, stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(write))

        def forward(self, x):
            z = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(z + self.shortcut(x))

    torch.manual_seed(0)
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
    layers.append(nn.ReLU())
    for k in range(4):
        layers.append(Block(widths[k], widths[k + 1], 1 if k == 0 else 2))
        layers.append(Block(widths[k + 1], widths[k + 1], 1))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)]
    return nn.Sequential(*layers).eval()


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def dask(workers: int):
    """A scheduler and its workers, as processes on the loopback address."""
    address = f"tcp://127.0.0.1:{free()}"
    environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    begin = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    port = ["--port", address.rpartition(":")[2], "--host", "127.0.0.1", "--no-dashboard"]
    every = [subprocess.Popen([*begin, "scheduler", *port], **quiet)]
    alone = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
    every += [
        subprocess.Popen([*begin, "worker", address, *alone], **quiet) for _ in range(workers)
    ]
    try:
        yield address, every[1:]
    finally:
        for process in every:
            process.kill()
            process.wait()


class Memory(threading.Thread):
    """The most that this process and those it began have had."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._ends = 0, threading.Event()

    def run(self) -> None:
        import psutil

        own = psutil.Process()
        while not self._ends.wait(SECONDS):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it has ended meanwhile
                    continue
            self.most = max(self.most, total)

    def __enter__(self) -> "Memory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()


def ready() -> None:
    """Import, in a worker, what its first piece would import."""
    import simplicit.fit  # noqa: F401


def job(options: argparse.Namespace) -> dict:
    """Match the network by one executor."""
    import psutil
    import torch

    from simplicit.fit import fit
    from simplicit.recipe import Recipe
    from simplicit.workers.cluster import connected
    from simplicit.workers.processes import Processes
    from simplicit.workers.workers import Workers

    torch.set_num_threads(1)
    made: list[Workers] = []
    begun = Workers.__init__

    def remember(self, inner) -> None:
        begun(self, inner)
        made.append(self)

    Workers.__init__ = remember
    net = network(options.width)
    inputs = torch.rand(options.samples, 3, options.size, options.size)
    recipe, workers = Recipe(sparsity=0.8, structure="layered"), options.workers[0]
    with ExitStack() as stack:
        executor = None
        if options.executor == "dask":
            address, _ = stack.enter_context(dask(workers))
            executor = stack.enter_context(connected(address))
            executor.wait_for_workers(workers)
            executor.run(ready)
        elif options.executor == "processes":
            executor = stack.enter_context(Processes(workers))
        memory = stack.enter_context(Memory())
        before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        begin = time.perf_counter()
        model = fit(net, inputs, recipe, workers=workers, executor=executor).model
        seconds = time.perf_counter() - begin
        moved = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
        time.sleep(2 * SECONDS)
    return {
        "seconds": seconds,
        "memory": memory.most,
        "moved": moved,
        "least": sum(w.lender.sent for w in made) * workers,
        "again": sum(w.again for w in made),
        "hash": hashlib.sha256(
            b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        ).hexdigest()[:16],
    }


def lines(options: argparse.Namespace) -> None:
    """Print a line for each executor and number of workers."""
    ways = [("threads", 1)]
    for workers in options.workers:
        ways += [(name, workers) for name in ("threads", "processes", "dask")]
    print(f"{'executor':10s} workers  seconds  times    GB   MB moved  MB least  again  hash")
    first = None
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    for name, workers in dict.fromkeys(ways):
        if name in options.leave:
            continue
        own = ["--executor", name, "--workers", str(workers), "--samples", str(options.samples)]
        own += ["--size", str(options.size), "--width", str(options.width)]
        done = subprocess.run(
            [sys.executable, __file__, *own],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        first = first or found["seconds"]
        print(
            f"{name:10s} {workers:7d} {found['seconds']:8.1f} {first / found['seconds']:6.2f} "
            f"{found['memory'] / 1e9:5.2f} {found['moved'] / 1e6:10,.0f} "
            f"{found['least'] / 1e6:9,.0f} {found['again']:6d}  {found['hash']}",
            flush=True,
        )


def runs(config: str, overrides: list[str], leave: list[str]) -> None:
    """Do a run by each executor, kill a worker of the last two, and print its hash."""
    import psutil

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "simplicit", "run", config, *overrides]

    def kill(process: subprocess.Popen, known: list[int] | None) -> None:
        """End the first worker that is seen at work."""
        begun: dict[int, float] = {}
        while process.poll() is None:
            time.sleep(0.02)
            workers = known
            if workers is None:
                # the server that forks has a child, too: those below it are the workers
                pools = [c for c in psutil.Process(process.pid).children() if c.children()]
                workers = [c.pid for pool in pools for c in pool.children()]
            for pid in workers:
                used = psutil.Process(pid).cpu_times().user
                if used - begun.setdefault(pid, used) > WORKED:
                    os.kill(pid, signal.SIGKILL)
                    return

    print(f"{'executor':22s} seconds  model.safetensors")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name in ("one thread", "threads", "processes", "processes, one killed",
                     "dask", "dask, one killed"):  # fmt: skip
            if name in leave:
                continue
            out = Path(folder) / name.replace(" ", "-")
            own, given = ["--out", str(out)], None
            if name.startswith("dask"):
                address, workers = stack.enter_context(dask(3))
                own += ["--scheduler", address]
                given = [w.pid for w in workers]
            elif name != "one thread":
                own += ["implicit.workers=2", f"implicit.executor={name.partition(',')[0]}"]
            log = stack.enter_context((Path(folder) / "log").open("ab"))
            begin = time.perf_counter()
            process = subprocess.Popen([*command, *own], env=environment, stdout=log, stderr=log)
            if "killed" in name:
                kill(process, given)
            assert process.wait() == 0, (Path(folder) / "log").read_text()
            seconds = time.perf_counter() - begin
            digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
            print(f"{name:22s} {seconds:7.1f}  {digest[:32]}", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--leave", nargs="*", default=[], help="executors to leave out")
    parser.add_argument("--run", metavar="CONFIG", help="compare runs of a configuration instead")
    parser.add_argument("--overrides", nargs="*", default=[])
    parser.add_argument(
        "--executor", choices=("threads", "processes", "dask"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.executor:
        print(json.dumps(job(options)))
    elif options.run:
        runs(options.run, options.overrides, options.leave)
    else:
        lines(options)


if __name__ == "__main__":
    main()
