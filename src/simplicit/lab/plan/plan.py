"""What a run takes with so many workers, phase by phase, and what decides where more do not help.

Rates are timed on this machine, pieces are those that matching hands out, and the rest is simulated
by `makespan`. A worker is taken to be as fast as one thread here, as if it were alone.
"""

import pickle
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from simplicit.calibration.frontier import SAMPLES
from simplicit.data import datasets as data
from simplicit.errors import InputError
from simplicit.lab.config import config
from simplicit.lab.plan.makespan import IN_FLIGHT, Link, Lost, lost, makespan, returned, sent
from simplicit.lab.run.network_table import of_class, work_of
from simplicit.matching.expected.before import machine
from simplicit.matching.expected.estimate import SENSITIVITY, Estimate, Work
from simplicit.matching.expected.pieces import stages
from simplicit.matching.expected.stage import Stage
from simplicit.outputs.sensitivity import at_once
from simplicit.workers.run import run

WORKERS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of workers, where none are named."""

LITTLE = 0.1
"""Part of the time that more workers have to save."""

ARRAYS, HANDED = 2, 500
"""Arrays of a piece that is handed over, and how often it is to time that: so many there and back
has a row that is refitted, and most pieces are such rows."""

COPIED = 2
"""Bytes that memory reads and writes for each that goes to another process of this machine."""

MB = 1e6


@dataclass(frozen=True)
class Asked:
    """What is planned.

    Attributes:
        work: What there is to do.
        samples: Calibration inputs.
        batch: Samples of a batch as it is given.
    """

    work: Work
    samples: int
    batch: int


@dataclass(frozen=True)
class Decides:
    """What more workers would not shorten.

    Attributes:
        reason: A field of `Lost`.
        phase: Description of the task.
        layer: Name of the layer; of the longest piece, where a stage has those of several.
        step: What is done there.
        seconds: Lost there, and `longest` for one piece.
        every: Lost for this reason in all stages.
        longest: Seconds of the longest piece.
    """

    reason: str
    phase: str
    layer: str
    step: str
    seconds: float
    every: float
    longest: float

    @property
    def where(self) -> str:
        """Phase, layer and step."""
        return ", ".join(part for part in (self.phase, self.layer, self.step) if part)


@dataclass(frozen=True)
class Phase:
    """A task with so many workers.

    Attributes:
        seconds: By the simulation.
        sent: Bytes to all workers.
        worker_sent: Bytes to one of them, on average.
        returned: Bytes from all workers.
        caller: Bytes that the caller needs.
        worker: Bytes that each worker needs; 0 where the caller is alone.
    """

    seconds: float
    sent: float
    worker_sent: float
    returned: float
    caller: float
    worker: float


@dataclass(frozen=True)
class Run:
    """All of it with so many workers.

    Attributes:
        workers: How many.
        phases: Each task.
        decides: What is in the way of more; None for one worker.
    """

    workers: int
    phases: dict[str, Phase]
    decides: Decides | None

    @property
    def seconds(self) -> float:
        """Of all tasks."""
        return sum(phase.seconds for phase in self.phases.values())


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        asked: What is planned.
        stages: What there is to do, in order.
        one: The estimate for one worker.
        here: That for the threads of this machine.
        link: What is between the caller and its workers.
        runs: With so many workers.
        enough: Workers beyond which not even the best number saves `LITTLE`.
        best: The best number, of powers of two.
    """

    asked: Asked
    stages: list[Stage]
    one: Estimate
    here: Estimate
    link: Link
    runs: list[Run]
    enough: Run
    best: Run


def asked_of(
    target: str,
    overrides: Sequence[str],
    shape: str | None = None,
    samples: int | None = None,
    sparsity: float | None = None,
) -> Asked:
    """Read what is to be planned.

    Args:
        target: A YAML file, or `package.module:Class`.
        overrides: `key=value` for the YAML file.
        shape: Of one sample of a class, numbers with commas between them.
        samples: Calibration inputs; by default those of the configuration, or 1,000 of a class.
        sparsity: Of a class.

    Returns:
        What there is to do.

    Raises:
        InputError: If there is no such network, or a value is none that is accepted.
    """
    if sparsity is not None and not 0 <= sparsity < 1:
        raise InputError(f"--sparsity {sparsity:g}: accepted is at least 0 and below 1")
    work = work_of(target, overrides, shape, sparsity)
    if of_class(target):
        return Asked(work, samples or SAMPLES, SAMPLES)
    settings = config.load_each(Path(target), overrides)[0]
    if samples is None:
        dataset, wanted = data.load(settings.evaluation.dataset, settings.data_dir), settings
        chosen = data.sample(len(dataset.train_labels), wanted.implicit.training_size, 0)
        samples = len(chosen) * wanted.implicit.augmentation
    return Asked(work, samples, settings.evaluation.bs)


def link_of(bandwidth: float | None, latency: float, memory: float, each: float = 0.0) -> Link:
    """Say what is between the caller and its workers.

    Args:
        bandwidth: MB a second; by default what this machine copies.
        latency: Seconds.
        memory: Bytes a second that this machine reads and writes.
        each: Seconds of the caller for a piece, see `handed_over`.

    Returns:
        The link.

    Raises:
        InputError: If a value is none that is accepted.
    """
    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise InputError(f"--bandwidth {bandwidth:g}: accepted are MB/s above 0")
    if not 0 <= latency < float("inf"):
        raise InputError(f"--latency {latency:g}: accepted are seconds, at least 0")
    return Link(memory / COPIED if bandwidth is None else bandwidth * MB, latency, each)


def handed_over() -> float:
    """Time how long the caller is busy with a piece of next to nothing.

    Returns:
        Seconds: it is pickled, waits for its turn, and its answer is read.
    """
    row = [torch.zeros(8) for _ in range(ARRAYS)]
    with ThreadPoolExecutor(1) as executor:
        begin = time.thread_time()  # other work on the machine does not count
        for answer in run(_unread, (pickle.dumps(row) for _ in range(HANDED)), executor):
            pickle.loads(answer)
        return (time.thread_time() - begin) / HANDED


def _unread(piece: bytes) -> bytes:
    return piece


def plan(
    asked: Asked,
    workers: Sequence[int] = WORKERS,
    bandwidth: float | None = None,
    latency: float = 0.0,
) -> Plan:
    """Time this machine, and simulate.

    Args:
        asked: What is planned.
        workers: How many, one run each.
        bandwidth: MB a second; by default what this machine copies.
        latency: Seconds on the way to a worker.

    Returns:
        What it takes.
    """
    work, m = asked.work, asked.samples
    link_of(bandwidth, latency, 1.0)  # refused before anything is timed
    like, shape = work.network.like, work.network.input_shape
    example = torch.rand(2, *shape, dtype=like.dtype)
    rates, forward = machine(work, example)
    here = work.estimate(m, rates, forward)
    one = replace(work, workers=1).estimate(m, replace(rates, parallel=1.0), forward)
    felt = at_once(work.network, example) if SENSITIVITY in one.phases else 1
    found = stages(work, m, rates, forward, felt, asked.batch)
    link = link_of(bandwidth, latency, rates.memory, handed_over())
    counts = [*sorted(set(workers)), *_enough(found, link)]
    *runs, enough, best = (_run(found, one, count, link) for count in counts)
    return Plan(asked, found, one, here, link, runs, enough, best)


# the fewest workers, a power of two, that take little longer than the best number; this one
def _enough(found: list[Stage], link: Link) -> tuple[int, int]:
    most, counts = max(stage.count for stage in found), [1]
    while counts[-1] < most:
        counts.append(2 * counts[-1])
    times = [sum(makespan(stage, count, link) for stage in found) for count in counts]
    least = min(times)
    first = next(k for k, time in enumerate(times) if (1 - LITTLE) * time <= least)
    return counts[first], counts[times.index(least)]


def _run(found: list[Stage], expected: Estimate, workers: int, link: Link) -> Run:
    phases = {}
    for name in expected.phases:
        own = [stage for stage in found if stage.phase == name]
        there = sum(sent(stage, workers) for stage in own)
        # answers wait until those before them are there
        flight = max(
            min(IN_FLIGHT * workers, stage.count) * max(piece.moved for piece in stage.pieces)
            if stage.pieces and not stage.here and workers > 1
            else 0.0
            for stage in own
        )
        away = [stage.worker for stage in own if stage.pieces and not stage.here]
        phases[name] = Phase(
            sum(makespan(stage, workers, link) for stage in own),
            there,
            there / workers,
            sum(returned(stage, workers) for stage in own),
            expected.memory[name] + flight,
            max(away, default=0.0) if workers > 1 else 0.0,
        )
    return Run(workers, phases, _decides(found, workers, link))


def _decides(found: list[Stage], workers: int, link: Link) -> Decides | None:
    if workers == 1:
        return None
    losses = [lost(stage, workers, link) for stage in found]
    every = {name: sum(getattr(own, name) for own in losses) for name in vars(Lost())}
    reason = max(every, key=lambda name: every[name])
    # a layer's stages of one step, refits of different lengths, are one
    sums: dict[tuple[str, str, str], float] = {}
    longest: dict[tuple[str, str, str], float] = {}
    for stage, own in zip(found, losses, strict=True):
        piece = stage.longest
        layer = stage.layer or (piece.layer if piece else "")
        key = (stage.phase, layer, stage.step)
        sums[key] = sums.get(key, 0.0) + getattr(own, reason)
        longest[key] = max(longest.get(key, 0.0), piece.seconds if piece else 0.0)
    first = max(sums, key=lambda key: sums[key])
    return Decides(reason, *first, sums[first], every[reason], longest[first])
