"""Moments of the rows of a layer with many positions, batch by batch."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from joblib import Parallel, delayed
from torch import Tensor

from simplicit.calibration.frontier import Frontier
from simplicit.calibration.rows import Channels
from simplicit.convex.gram import Gram
from simplicit.equations.network import Equation
from simplicit.system import memory

BATCH = 100
"""Samples at a time: the patches of a 3 × 3 convolution on 64 × 32 × 32 values take 240 MB."""

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


def moments(
    rows: Channels,
    equation: Equation,
    frontier: Frontier,
    bias: bool,
    coherence: float = 0.0,
    aware: Candidate | None = None,
    known: list[Gram] | None = None,
    workers: int = 1,
) -> list[Gram]:
    """Accumulate the row problems of a layer on the model's states.

    Target of the rows is what is missing to the teacher's pre-activations when all other summands
    of the equation are the model's: so the last convolution of a residual block also makes up for
    the errors of its shortcut.

    With coherence c errors e at the P positions of a sample weigh as e' ((1 − c) I + c 11') e / P:
    a sample's mean over its positions is one more row of the data, of weight √c P.

    Args:
        rows: Which rows.
        equation: The equation with its present weights.
        frontier: States of teacher and model.
        bias: Whether rows correct their bias; then the last feature is 1.
        coherence: How far errors at different positions add up, 0 to 1.
        aware: Where a teacher's state is off, the target is what these weights make of it, at most
            0: any pre-activation that leaves it off will do. Only for ReLU.
        known: Moments of the same features, of which only the targets change.
        workers: Threads that take batches side by side; sums are taken in the order of the batches.

    Returns:
        Statistics of each group: float64, as the certificates need, of states in the network's
        own dtype.
    """
    W = rows.weights(equation)
    groups, K, d = W.shape
    N = d + int(bias)
    kind = {"dtype": torch.float64, "device": W.device}
    shapes = (
        [(groups, K, N), (groups, K)] if known else [(groups, K, N), (groups, K), (groups, N, N)]
    )
    # the sum, and two batches a thread on their way to it
    entries = sum(map(prod, shapes)) * (1 + 2 * workers)
    memory.require(8.0 * entries, f"moments of {equation.name}", W.device)
    most = min(max(ENOUGH // frontier.m, FEWEST), POSITIONS)

    @torch.no_grad()
    def of_batch(index: int, sources: list[Tensor], z: Tensor) -> tuple[int, list[Tensor]]:
        some = _positions(rows.positions(equation), most, rows.index, index, z.device)
        V = F.pad(rows.features(equation, sources, some), (0, int(bias)), value=1.0).double()
        others = equation.preactivation(sources, without=rows.terms)
        rest, teacher = (rows.targets(equation, t, some).double() for t in (others, z))
        target = teacher - rest
        if aware is not None:
            found = V[..., :d] @ aware.W.to(V).mT + aware.shift.to(V)[:, None]
            target = torch.where(teacher > 0, target, found.clamp_max(-rest))
        parts = [(1.0, V, target)]
        if coherence and len(some) > 1:
            parts = _with_means(V, target, len(z), rows.positions(equation), coherence)
        sums = [torch.zeros(*shape, **kind) for shape in shapes]
        for weight, v, t in parts:
            sums[0].baddbmm_(t.mT, v, alpha=weight)
            sums[1] += weight * t.square().sum(1)
            for G in sums[2:]:
                G.baddbmm_(v.mT, v, alpha=weight)
        return V.shape[1], sums

    m, totals = 0, [torch.zeros(*shape, **kind) for shape in shapes]
    pool = Parallel(n_jobs=workers, backend="threading", return_as="generator")
    calls = (delayed(of_batch)(i, *batch) for i, batch in enumerate(_split(frontier)))
    for count, sums in cast(Iterable[tuple[int, list[Tensor]]], pool(calls)):
        m += count
        for total, part in zip(totals, sums, strict=True):
            total += part
    R, t2, *rest = (total / m for total in totals)
    if known:
        return [g.with_targets(r, s) for g, r, s in zip(known, R, t2, strict=True)]
    return [Gram.of(g, r, s, m) for g, r, s in zip(*rest, R, t2, strict=True)]


def _split(frontier: Frontier) -> Iterable[tuple[list[Tensor], Tensor]]:
    for sources, z in frontier.batches():
        for i in range(0, len(z), BATCH):
            yield [s[i : i + BATCH] for s in sources], z[i : i + BATCH]


# Rows of n of the P positions of each sample, and their means, with the weights of both. What the
# mean of some positions has too much of their own second moments, the rows have less.
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
