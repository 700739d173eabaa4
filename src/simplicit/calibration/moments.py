"""The Gram of a layer's rows, batch by batch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.frontier import Frontier
from simplicit.calibration.rows import Rows
from simplicit.convex.gram import Gram
from simplicit.equations.equation import Equation
from simplicit.system import memory, workers

BATCH, ALONE = 100, 1000
"""Samples at a time: the patches of a 3 × 3 convolution on 64 × 32 × 32 values take 240 MB. So many
where a sample has one position."""

POSITIONS = 64
"""Positions that a sample contributes at most, drawn anew for every batch."""

FEWEST, ENOUGH = 16, 128_000
"""Of many samples each contributes less, but not less than this; so many in all are enough."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Weights of the rows and corrections of their biases.

    Args:
        W: A row per channel.
        shift: Corrections.
    """

    W: Float[Tensor, "groups K d"]
    shift: Float[Tensor, "groups K"]


@dataclass(frozen=True, eq=False)
class _Piece:
    index: int
    sources: list[Tensor]
    z: Tensor


@dataclass(frozen=True, eq=False)
class _Task:
    rows: Rows
    equation: Equation
    bias: bool
    coherence: float
    aware: Candidate | None
    most: int
    features: bool


def moments(
    rows: Rows,
    equation: Equation,
    frontier: Frontier,
    bias: bool,
    coherence: float = 0.0,
    aware: Candidate | None = None,
    known: list[Gram] | None = None,
    executor: Executor | None = None,
) -> list[Gram]:
    """Accumulate the row problems of a layer on the model's states.

    Target of the rows is the part of the teacher's pre-activations that all other summands of the
    model's equation leave over. So the last convolution of a residual block also corrects the
    errors of its shortcut.

    With coherence c errors e at the P positions of a sample weigh as e' ((1 − c) I + c 11') e / P:
    a sample's mean over its positions is one more row of the data, of weight √c P.

    Args:
        rows: Which rows.
        equation: The equation with its present weights.
        frontier: States of teacher and model.
        bias: Whether rows correct their bias; then the last feature is 1.
        coherence: How far errors at different positions add up, 0 to 1.
        aware: Where a teacher's state is off, the target is the pre-activation that these weights
            give, at most 0: any pre-activation that leaves the state off will do. Only for ReLU.
        known: Moments of the same features, of which only the targets change.
        executor: Takes batches side by side; sums are taken in the order of the batches.

    Returns:
        Statistics of each group: float64, as the certificates need, of states in the network's
        own dtype.
    """
    W = rows.weights(equation)
    groups, K, d = W.shape
    N = d + int(bias)
    entries = groups * (K * N + K + (0 if known else N * N))
    # the sum, and the batches on their way to it
    flight = 1 + 2 * getattr(executor, "_max_workers", 1)
    memory.require(8.0 * entries * flight, f"moments of {equation.name}", W.device)
    most = min(max(ENOUGH // frontier.m, FEWEST), POSITIONS)
    task = _Task(rows, equation, bias, coherence, aware, most, not known)
    batch = ALONE if rows.positions(equation) == 1 else BATCH
    m, totals = 0, None
    for count, sums in workers.run(partial(_of_batch, task), _split(frontier, batch), executor):
        m += count
        totals = sums if totals is None else [t.add_(s) for t, s in zip(totals, sums, strict=True)]
    assert totals is not None
    R, t2, *rest = (total / m for total in totals)
    if known:
        return [g.with_targets(r, s) for g, r, s in zip(known, R, t2, strict=True)]
    return [Gram.of(g, r, s, m) for g, r, s in zip(*rest, R, t2, strict=True)]


@torch.no_grad()
def _of_batch(task: _Task, piece: _Piece) -> tuple[int, list[Tensor]]:
    rows, equation, z = task.rows, task.equation, piece.z
    positions = rows.positions(equation)
    some = _positions(positions, task.most, rows.index, piece.index, z.device)
    chosen = some if len(some) < positions else None
    V = rows.features(equation, piece.sources, chosen).double()
    d = V.shape[2]
    V = F.pad(V, (0, int(task.bias)), value=1.0)
    others = equation.preactivation(piece.sources, without=rows.terms)
    rest, teacher = (rows.targets(equation, t, chosen).double() for t in (others, z))
    target = teacher - rest
    if task.aware is not None:
        found = V[..., :d] @ task.aware.W.to(V).mT + task.aware.shift.to(V)[:, None]
        target = torch.where(teacher > 0, target, found.clamp_max(-rest))
    parts = [(1.0, V, target)]
    if task.coherence and len(some) > 1:
        parts = _with_means(V, target, len(z), positions, task.coherence)
    sums = [
        _sum([weight * (t.mT @ v) for weight, v, t in parts]),
        _sum([weight * t.square().sum(1) for weight, v, t in parts]),
    ]
    if task.features:
        sums.append(_sum([weight * (v.mT @ v) for weight, v, _ in parts]))
    return V.shape[1], sums


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _split(frontier: Frontier, size: int) -> Iterator[_Piece]:
    index = 0
    for sources, z in frontier.batches():
        for i in range(0, len(z), size):
            yield _Piece(index, [s[i : i + size] for s in sources], z[i : i + size])
            index += 1


# The mean over n of P positions overcounts their variance; this subtracts the excess from the
# single rows.
def _with_means(
    V: Tensor, target: Tensor, samples: int, P: int, coherence: float
) -> list[tuple[float, Tensor, Tensor]]:
    n = V.shape[1] // samples
    excess = (P - n) / (n * (P - 1))
    together = coherence * P / (1 - excess)
    alone = max(1 - coherence - together * excess, 0.0)
    mean_V, mean_target = (x.unflatten(1, (samples, n)).mean(2) for x in (V, target))
    return [(alone, V, target), (together * n, mean_V, mean_target)]


# other positions in every batch, the same in every pass over the data
def _positions(count: int, most: int, layer: int, batch: int, device: torch.device) -> Tensor:
    if count <= most:
        return torch.arange(count, device=device)
    generator = torch.Generator().manual_seed(1_000_003 * layer + batch)
    return torch.randperm(count, generator=generator)[:most].to(device)
