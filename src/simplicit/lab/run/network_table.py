"""The state equations of a network as a table, and what matching them is expected to take."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from simplicit.calibration.moments import drawn
from simplicit.capture.read import capture
from simplicit.data import datasets as data
from simplicit.equations.layer_phi import Kept
from simplicit.equations.network import Equation, StateEquations
from simplicit.errors import InputError
from simplicit.explicit import by_name as networks
from simplicit.lab.config import config
from simplicit.lab.run.seed import SeedRun
from simplicit.matching.supports import CHOICES
from simplicit.sparsity.choice import WIDE
from simplicit.sparsity.splitting import LEVELS, STEPS
from simplicit.system.memory import GB

PASSES = 2
"""Grams of each layer: on the network's own states, and on the model's in the closed loop."""

COPIES = 10
"""Matrices the size of a layer's Gram, at most: itself, its inverse, and one for each of 8 rows."""

ORDER = 512
"""Rows of the matrices whose product is timed, float64."""


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
        memory: Bytes of their moments and inverses.
        flops: Multiplications and additions of matching.
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
    flops: float


def equations_of(target: str, overrides: Sequence[str], shape: str | None) -> StateEquations:
    """Build a network with its configured or freshly drawn weights, and read it.

    Args:
        target: A YAML file, or `package.module:Class`.
        overrides: `key=value` for the YAML file.
        shape: Of one sample of a class, numbers with commas between them.

    Returns:
        Its state equations.

    Raises:
        InputError: If there is no such network, or it cannot be read.
    """
    if ":" not in target or Path(target).exists():
        if shape is not None:
            raise InputError("--shape: only with a class; a configuration names its dataset")
        settings = config.load_each(Path(target), overrides)[0]  # all with the same network
        dataset = data.load(settings.evaluation.dataset, settings.data_dir)
        with tempfile.TemporaryDirectory() as folder:  # where no trained weights are yet
            return SeedRun(settings, dataset, settings.seeds[0], Path(folder)).read()
    if overrides:
        raise InputError(f"{overrides[0]!r}: accepted only with a configuration")
    net = networks.build(target, ())
    return capture(net, torch.randn(2, *_sizes(shape)))


def _sizes(shape: str | None) -> list[int]:
    parts = (shape or "").split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--shape {shape}: accepted is the shape of one sample, e.g. 3,32,32")
    return [int(part) for part in parts]


def lines(equations: StateEquations, samples: int) -> list[Line]:
    """Describe each equation.

    Args:
        equations: The network.
        samples: Calibration inputs.

    Returns:
        One line per equation, in forward order.
    """
    names = [e.name for e in equations.hidden] + ["input"]  # index −1 is the input
    counted: set[object] = set()
    found = []
    for e in equations.layers:
        weights = 0
        for term in e.terms:
            key = term.parameter or id(term.weight)
            weights += 0 if key in counted else term.weight.numel()
            counted.add(key)
        rows, features, positions = _problem(e)
        read = samples * drawn(samples, positions, features) if weights else 0
        moments = 2.0 * read * features**2 * PASSES
        found.append(
            Line(
                e.name if e is not equations.output else f"{e.name} (output)",
                e.size,
                e.states,
                e.phi.name + (", kept as it is" if isinstance(e.phi, Kept) else ""),
                tuple(dict.fromkeys(names[term.source] for term in e.terms)),
                tuple(dict.fromkeys(names[summand.source] for summand in e.fixed)),
                weights,
                rows if weights else 0,
                features,
                positions,
                8.0 * COPIES * features**2 if weights else 0.0,
                moments + _prices(rows, features) + _choices(rows, features) if weights else 0.0,
            )
        )
    return found


# an elimination of every row; of a wide one, of candidates that a splitting leaves
def _prices(rows: int, features: int) -> float:
    screened = _splitting(rows, features) if features > WIDE else 0.0
    return 2.0 * rows * min(features, WIDE) ** 3 + screened


def _choices(rows: int, features: int) -> float:
    return len(CHOICES) * _splitting(rows, features)


# steps are products for all rows, in float32, which is twice as fast; and an inverse for each level
def _splitting(rows: int, features: int) -> float:
    return len(LEVELS) * (2.0 * STEPS * rows * features**2 + features**3) / 2


def _problem(e: Equation) -> tuple[int, int, int]:
    # terms of one equation are solved together: their features stand side by side
    if not e.terms:
        return 0, 0, 0
    distinct = {term.parameter or id(term.weight): term for term in e.terms}
    features = sum(term.weight.flatten(1).shape[1] for term in distinct.values())
    return len(e.terms[0].weight), features, e.terms[0].map.positions


def speed() -> float:
    """Time a product of two matrices.

    Returns:
        Floating-point operations a second, in float64, with the threads there are.
    """
    some = torch.rand(ORDER, ORDER, dtype=torch.float64)
    torch.mm(some, some)
    begin, repeats = time.perf_counter(), 5
    for _ in range(repeats):
        torch.mm(some, some)
    return repeats * 2 * ORDER**3 / (time.perf_counter() - begin)


def summary(equations: StateEquations, samples: int, rate: float) -> dict[str, Any]:
    """Sum up what matching takes.

    Args:
        equations: The network.
        samples: Calibration inputs.
        rate: Floating-point operations a second.

    Returns:
        The lines and their totals, for JSON.
    """
    every = lines(equations, samples)
    return {
        "blocks": [asdict(line) for line in every],
        "inputs": equations.p,
        "states": equations.n,
        "outputs": equations.q,
        "nonzeros": equations.nonzeros,
        "rows": sum(line.rows for line in every),
        "kept": list(equations.kept),
        "samples": samples,
        "memory": max(line.memory for line in every) + _activity(equations, samples),
        "seconds": sum(line.flops for line in every) / rate,
        "flops_per_second": rate,
    }


def _activity(equations: StateEquations, samples: int) -> float:
    # the widest layer's states for all samples, and what it is made of
    widest = max(e.size + e.states for e in equations.hidden)
    return float(widest * samples * equations.like.element_size())


def table(equations: StateEquations, samples: int) -> Table:
    """Write the equations as a table.

    Args:
        equations: The network.
        samples: Calibration inputs.

    Returns:
        A table with a row per equation.
    """
    found = Table(title="x = φ(z),  z = Σ W s + Σ G s + b")
    right = ("z", "x", "weights", "rows × features", "places", "MB")
    for heading in ("block", "φ", "W reads", "G adds", *right):
        numbers = heading in right
        found.add_column(heading, justify="right" if numbers else "left", no_wrap=numbers)
    for line in lines(equations, samples):
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
            f"{line.memory / 1e6:,.1f}" if line.rows else "–",
        )
    return found


def notes(equations: StateEquations, samples: int, rate: float) -> list[str]:
    """Say what the table does not.

    Args:
        equations: The network.
        samples: Calibration inputs.
        rate: Floating-point operations a second.

    Returns:
        Sentences.
    """
    total = summary(equations, samples, rate)
    kept = equations.kept
    unread = f"Kept as they are, their slopes unknown: {'; '.join(kept)}."
    return [
        f"{total['rows']:,} row problems, {equations.nonzeros:,} non-zero weights (N0), "
        f"{equations.n:,} states.",
        unread if kept else "Every operation is read; none is kept as it is.",
        f"Memory about {total['memory'] / GB:.2f} GB: the widest layer on {samples:,} samples, and "
        f"{COPIES} matrices of the largest layer's features.",
        f"Time about {total['seconds']:.0f} s: {PASSES} Grams of every layer, a price of every "
        f"weight and {len(CHOICES)} choices of supports, at {rate / 1e9:.1f} GFLOP/s (a {ORDER} × "
        f"{ORDER} product timed just now); "
        "sweeps and the passes through the network are not in it.",
    ]
