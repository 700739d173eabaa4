"""The state equations of a network as a table, and what matching them is expected to take."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from simplicit.calibration.rows import rows_of
from simplicit.calibration.skipped import skipped
from simplicit.calibration.structure import structured
from simplicit.capture.read import capture
from simplicit.data import datasets as data
from simplicit.equations.layer_phi import Kept
from simplicit.equations.network import Equation, StateEquations
from simplicit.errors import InputError
from simplicit.explicit import by_name as networks
from simplicit.fit import structure_of
from simplicit.lab.config import config
from simplicit.lab.run.seed import SeedRun
from simplicit.matching.expected.before import spoken, timed
from simplicit.matching.expected.estimate import Estimate, Work
from simplicit.matching.ways.patterns import spending
from simplicit.recipe import Recipe
from simplicit.refine import robustify
from simplicit.system.memory import GB
from simplicit.workers.executors import count

SPARSITY = 0.8
"""Of what is expected of a class: it names no budget."""


@dataclass(frozen=True)
class Line:
    """One equation.

    Attributes:
        block: Its name.
        size: Entries of z.
        states: Entries of x.
        phi: φ.
        reads: What it reads through weights.
        adds: What it reads as it is.
        weights: Its weights; 0 where they were counted further up.
        rows: Row problems: units or channels.
        features: Unknowns of each, without the bias.
        positions: Places per sample that share the rows.
        memory: Bytes that matching them is expected to take.
        seconds: Seconds of it, sweeps included.
    """

    block: str
    size: int
    states: int
    phi: str
    reads: tuple[str, ...]
    adds: tuple[str, ...]
    weights: int
    rows: int
    features: int
    positions: int
    memory: float
    seconds: float


def of_class(target: str) -> bool:
    """Say whether a class is named.

    Args:
        target: A YAML file, or `package.module:Class`.

    Returns:
        Whether it is no file.
    """
    return ":" in target and not Path(target).exists()


def work_of(
    target: str, overrides: Sequence[str], shape: str | None, sparsity: float | None = None
) -> Work:
    """Build a network with its configured or freshly drawn weights, read it, and say what is asked.

    Args:
        target: A YAML file, or `package.module:Class`.
        overrides: `key=value` for the YAML file.
        shape: Of one sample of a class, numbers with commas between them.
        sparsity: Of a class; `SPARSITY` when omitted.

    Returns:
        What there is to do; of a class, with all processors.

    Raises:
        InputError: If there is no such network, or it cannot be read.
    """
    if not of_class(target):
        if shape is not None:
            raise InputError("--shape: only with a class; a configuration names its dataset")
        if sparsity is not None:
            raise InputError("--sparsity: only with a class; accepted is implicit.sparsity=…")
        settings = config.load_each(Path(target), overrides)[0]  # all with the same network
        dataset = data.load(settings.evaluation.dataset, settings.data_dir)
        with tempfile.TemporaryDirectory() as folder:  # where no trained weights are yet
            run = SeedRun(settings, dataset, settings.seeds[0], Path(folder))
            equations = run.read()
        return work(equations, run.recipe(equations), settings.implicit.workers)
    if overrides:
        raise InputError(f"{overrides[0]!r}: accepted only with a configuration")
    net = networks.build(target, ())
    recipe = Recipe(sparsity=SPARSITY if sparsity is None else sparsity)
    return work(capture(net, torch.randn(2, *_sizes(shape))), recipe)


def work(equations: StateEquations, recipe: Recipe, workers: int | None = None) -> Work:
    """Say what matching a network asks for.

    Args:
        equations: The network as captured.
        recipe: What is asked for.
        workers: Parallel blocks of rows; all processors when omitted.

    Returns:
        What there is to do.
    """
    structure = structure_of(recipe, equations)
    written = structured(equations, structure)
    left = skipped(written, recipe.skip)
    rows = rows_of(written, left)
    recipe, budget, _ = spending(equations, recipe, rows, written.layers, left)
    return Work(
        equations,
        written,
        rows,
        recipe,
        recipe.passes(not equations.structured, structure),
        budget,
        count(workers),
        0 if recipe.robustness is None else robustify.LEVELS * robustify.SWEEPS,
    )


def _sizes(shape: str | None) -> list[int]:
    parts = (shape or "").split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--shape {shape}: accepted is the shape of one sample, e.g. 3,32,32")
    return [int(part) for part in parts]


def lines(equations: StateEquations, expected: Estimate | None = None) -> list[Line]:
    """Describe each equation.

    Args:
        equations: The network.
        expected: What matching it takes.

    Returns:
        One line per equation, in forward order.
    """
    names = [e.name for e in equations.hidden] + ["input"]  # index −1 is the input
    counted: set[object] = set()
    found = []
    for e in equations.layers:
        learned = 0
        for term in e.terms:
            key = term.parameter or id(term.weight)
            learned += 0 if key in counted else term.weight.numel()
            counted.add(key)
        rows, features, positions = _problem(e)
        own = [layer for layer in (expected.layers if expected else []) if layer.name == e.name]
        found.append(
            Line(
                e.name if e is not equations.output else f"{e.name} (output)",
                e.size,
                e.states,
                e.phi.name + (", kept as it is" if isinstance(e.phi, Kept) else ""),
                tuple(dict.fromkeys(names[term.source] for term in e.terms)),
                tuple(dict.fromkeys(names[summand.source] for summand in e.fixed)),
                learned,
                rows if learned else 0,
                features,
                positions,
                max((layer.matching for layer in own), default=0.0),
                sum(layer.seconds for layer in own),
            )
        )
    return found


def _problem(e: Equation) -> tuple[int, int, int]:
    # terms of one equation are solved together: their features stand side by side
    if not e.terms:
        return 0, 0, 0
    distinct = {term.parameter or id(term.weight): term for term in e.terms}
    features = sum(term.weight.flatten(1).shape[1] for term in distinct.values())
    return len(e.terms[0].weight), features, e.terms[0].map.positions


def summary(work: Work, samples: int) -> dict[str, Any]:
    """Sum up what matching takes.

    Args:
        work: What there is to do.
        samples: Calibration inputs.

    Returns:
        The lines and their totals, for JSON.
    """
    equations, expected = work.network, expect(work, samples)
    every = lines(equations, expected)
    return {
        "blocks": [asdict(line) for line in every],
        "inputs": equations.p,
        "states": equations.n,
        "outputs": equations.q,
        "nonzeros": equations.nonzeros,
        "rows": sum(line.rows for line in every),
        "kept": list(equations.kept),
        "samples": samples,
        "workers": work.workers,
        "phases": {
            phase: {"seconds": sum(parts), "memory": expected.memory[phase]}
            for phase, parts in expected.phases.items()
        },
        "memory": expected.peak,
        "seconds": expected.seconds,
    }


def expect(work: Work, samples: int) -> Estimate:
    """Say what matching takes on this machine.

    Args:
        work: What there is to do.
        samples: Calibration inputs.

    Returns:
        The estimate.
    """
    like, shape = work.network.like, work.network.input_shape
    return timed(work, torch.rand(2, *shape, dtype=like.dtype), samples)


def table(equations: StateEquations, expected: Estimate) -> Table:
    """Write the equations as a table.

    Args:
        equations: The network.
        expected: What matching it takes.

    Returns:
        A table with a row per equation.
    """
    found = Table(title="x = φ(z),  z = Σ W s + Σ G s + b")
    right = ("z", "x", "weights", "rows × features", "places", "MB", "s")
    for heading in ("block", "φ", "W reads", "G adds", *right):
        numbers = heading in right
        found.add_column(heading, justify="right" if numbers else "left", no_wrap=numbers)
    for line in lines(equations, expected):
        solved = f"{line.rows} × {line.features}" if line.rows else "–"
        found.add_row(
            line.block,
            line.phi,
            ", ".join(line.reads) or "–",
            ", ".join(line.adds) or "–",
            f"{line.size:,}",
            f"{line.states:,}",
            f"{line.weights:,}" if line.weights else ("shared" if line.reads else "–"),
            solved,
            f"{line.positions:,}" if line.rows else "–",
            f"{line.memory / 1e6:,.0f}" if line.rows else "–",
            f"{line.seconds:,.1f}" if line.rows else "–",
        )
    return found


def notes(work: Work, expected: Estimate, samples: int) -> list[str]:
    """Say what the table does not.

    Args:
        work: What there is to do.
        expected: What it takes.
        samples: Calibration inputs.

    Returns:
        Sentences.
    """
    equations = work.network
    kept = equations.kept
    unread = f"Kept as they are, their slopes unknown: {'; '.join(kept)}."
    rows = sum(line.rows for line in lines(equations))
    phases = [f"{phase} {spoken(sum(parts))}" for phase, parts in expected.phases.items()]
    widest = max(expected.memory, key=lambda phase: expected.memory[phase])
    asked = "" if work.recipe.sparsity is None else f", for a sparsity of {work.recipe.sparsity:g}"
    return [
        f"{rows:,} row problems, {equations.nonzeros:,} non-zero weights (N0), "
        f"{equations.n:,} states.",
        unread if kept else "Every operation is read; none is kept as it is.",
        f"Memory about {expected.peak / GB:.2f} GB, while {widest}.",
        f"Time about {spoken(expected.seconds)} on {samples:,} samples with {work.workers} "
        f"{'worker' if work.workers == 1 else 'workers'}{asked}: {', '.join(phases)}.",
    ]
