"""What is expected beside what happens: seconds and peak memory of every phase, network by network.

    python benchmarks/estimate.py digits sparsity 300-100 lenet resnet20 tokens
    python benchmarks/estimate.py --workers 2 resnet18 resnet50 transformer

Each network has a process of its own, so that memory is its own. Seconds are those of this
process's processors, divided by the workers: other work on the machine does not count, but a phase
that does not use all workers seems shorter than it is; `--workers 1` (the default) leaves no doubt.
Memory is the largest resident size in each phase, less that before the call. It gates nothing.

Networks of the first line are trained for an epoch or two first, in `runs/estimate`. Data are
looked for where the configurations say; `--data` names another folder. Those of the second have
random weights and inputs, at 80 %; resnet18 and resnet50 are torchvision's, installed apart.
"""

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from simplicit import fit as library
from simplicit.data import datasets
from simplicit.lab.config import config
from simplicit.lab.run.seed import SeedRun
from simplicit.matching.expected.estimate import Estimate
from simplicit.matching.layers import Matching
from simplicit.recipe import Recipe
from simplicit.system import progress

REPOSITORY = Path(__file__).parents[1]
EPOCHS = {"digits": 10}
FILES = {
    "digits": ("digits.yaml", []),
    "sparsity": ("sparsity.yaml", []),
    "300-100": ("fashion-mnist-300-100.yaml", ["implicit.sparsity=0.9"]),
    "lenet": ("fashion-mnist-lenet.yaml", ["implicit.sparsity=0.9"]),
    "resnet20": ("cifar10-resnet20.yaml", ["implicit.sparsity=0.9"]),
}
NAMES = [*FILES, "tokens"]
LARGE = ["resnet18", "resnet50", "transformer"]

Inputs = tuple[nn.Module, Tensor, Recipe, int]


class Tokens(nn.Module):
    """A block of a transformer on the lines of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = nn.Linear(28, 48)
        self.block = nn.TransformerEncoderLayer(48, 4, 128, 0.0, batch_first=True)
        self.classes = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images of 28 lines."""
        return self.classes(self.block(self.lines(x)).mean(1))


class Transformer(nn.Module):
    """Two blocks of the width of BERT and GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(768, 12, 3072, 0.0, "gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.classes = nn.Linear(768, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify sequences (m, 128, 768)."""
        return self.classes(self.blocks(x).mean(1))


def large(name: str) -> Inputs:
    """A network of usual size and 64 images, or 128 sequences."""
    torch.manual_seed(0)
    recipe = Recipe(sparsity=0.8)
    if name == "transformer":
        return Transformer().eval(), torch.randn(128, 128, 768), recipe, 64
    import torchvision  # type: ignore[import-not-found]

    net = getattr(torchvision.models, name)(weights=None)
    images = torch.randn(64, 3, 224, 224)
    with torch.no_grad():  # statistics of batch norm
        net.train()(images)
    return net.eval(), images, recipe, 64


def case(name: str, data: str | None) -> Inputs:
    """Network, calibration inputs, recipe and batch size."""
    if name in LARGE:
        return large(name)
    file, changes = FILES.get(name, FILES["sparsity"])
    changes = [*changes, f"explicit.epoch={EPOCHS.get(name, 1)}"]
    changes += [f"data_dir={data}"] if data else []
    settings = config.load_each(REPOSITORY / "configs" / file, changes)[0]
    dataset = datasets.load(settings.evaluation.dataset, settings.data_dir)
    torch.manual_seed(0)
    if name == "tokens":
        images = dataset.train_inputs[:1000].view(-1, 28, 28)
        return Tokens().eval(), images, Recipe(sparsity=0.8), 64
    folder = REPOSITORY / "runs" / "estimate" / name
    folder.mkdir(parents=True, exist_ok=True)
    run = SeedRun(settings, dataset, 0, folder)
    recipe = run.recipe(run.read())
    return run._explicit()[0], run._calibration(), recipe, settings.evaluation.bs


class Watch:
    """Processor seconds and peak memory of every task while a call runs."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.start = self.process.memory_info().rss
        self.phases: dict[str, tuple[float, float]] = {}
        self.expected: Estimate | None = None
        self._peak, self._over = 0, threading.Event()

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self._peak = max(self._peak, self.process.memory_info().rss)

    @contextmanager
    def task(self, description: str, total: float, console: Any = None) -> Iterator[progress.Step]:
        self._peak, begin = 0, time.process_time()
        yield lambda *_: None
        time.sleep(0.01)
        spent = time.process_time() - begin
        self.phases[description] = spent, self._peak - self.start
        print(f"{description}: {spent:.1f} s of processors", file=sys.stderr, flush=True)

    def expect(self, matching: Matching, priced: int = 0) -> Estimate:
        from simplicit.matching.expected import before

        with patch.object(before, "QUICK", 0.0):  # the machine's own rates for small ones, too
            self.expected = expect(matching, priced)
        return self.expected


expect = Matching.expect


def measure(name: str, workers: int, data: str | None) -> None:
    """Match one network, and print a table."""
    net, u, recipe, batch_size = case(name, data)
    watch, begin = Watch(), time.monotonic()
    with (
        watch,
        patch.object(progress, "task", watch.task),
        patch.object(Matching, "expect", lambda matching, priced=0: watch.expect(matching, priced)),
    ):
        library.fit(net, u, recipe, batch_size=batch_size, workers=workers)
    assert watch.expected is not None
    wall = time.monotonic() - begin
    title = f"{name}: {len(u):,} inputs, {workers} workers, {wall:.0f} s by the clock"
    table = Table(title=title)
    for heading in ("phase", "expected s", "took s", "ratio", "expected MB", "took MB", "ratio"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    rows = [
        (
            phase,
            sum(watch.expected.phases[phase]),
            took / workers,
            watch.expected.memory[phase],
            size,
        )
        for phase, (took, size) in watch.phases.items()
    ]
    times = [sum(row[k] for row in rows) for k in (1, 2)]
    sizes = [max(row[k] for row in rows) for k in (3, 4)]
    for phase, *numbers in [*rows, ("all", *times, *sizes)]:
        a, b, c, d = numbers
        table.add_row(
            phase,
            *(f"{a:.2f}", f"{b:.2f}", f"{a / max(b, 1e-9):.2f}"),
            *(f"{c / 1e6:.0f}", f"{d / 1e6:.0f}", f"{c / max(d, 1.0):.2f}"),
        )
    Console(width=120).print(table)


def main() -> None:
    """Measure each network in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help=", ".join([*NAMES, *LARGE]))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", help="folder of the datasets")
    parser.add_argument("--here", action="store_true", help="no process of their own")
    chosen = parser.parse_args()
    for name in chosen.names:
        if chosen.here:
            measure(name, chosen.workers, chosen.data)
            continue
        more = ["--workers", str(chosen.workers), *(["--data", chosen.data] if chosen.data else [])]
        command = [sys.executable, __file__, "--here", name, *more]
        subprocess.run(command, check=False, cwd=REPOSITORY)


if __name__ == "__main__":
    main()
