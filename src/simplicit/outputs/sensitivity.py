"""How much the network's outputs depend on each of its pre-activations.

Random directions of the outputs are followed back to all pre-activations at once. One batch of
samples holds what autograd saves of the way forward and one slope for each pre-activation, never a
Jacobian; batches are as large as fits into `MEMORY`. Of many samples, some say enough.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.batches import Batches
from simplicit.calibration.rows import Rows
from simplicit.equations.forward import predict
from simplicit.equations.network import StateEquations
from simplicit.outputs.distance import Distance, signs
from simplicit.system import progress
from simplicit.workers.run import run
from simplicit.workers.shards import shards

PROBES = 2
"""Random directions of the outputs a sample."""

ENOUGH = 1000
"""Samples, spread evenly over all, that are looked at."""

MEMORY = 2.0**27
"""Bytes that a batch may take, or one sample if it takes more. Batches of ResNet-18 that stay in
the caches take 11 s where 1 GiB takes 14 s."""

COPIES = 1
"""Of a layer's slopes, while they are sorted by channel."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How far errors of a layer's channels move the outputs.

    Attributes:
        coupling: For each group S = E Σ_positions gg', g = F^½ ∂y/∂z of its channels, with F the
            curvature of `Distance`.
        coherence: Correlation between the positions of what an error does, 0 to 1. At 0 errors at
            different positions move the outputs apart; at 1 only their sum counts, as it does just
            before an average over all positions.
    """

    coupling: list[Float[Tensor, "K K"]]
    coherence: float


@dataclass(frozen=True, eq=False)
class _Task:
    network: StateEquations
    equations: StateEquations
    layers: Sequence[Rows]
    distance: Distance


def sensitivity(
    network: StateEquations,
    equations: StateEquations,
    layers: Sequence[Rows],
    stream: Batches,
    seed: int = 0,
    executor: Executor | None = None,
) -> list[Sensitivity]:
    """Estimate how far errors of the channels move the outputs, by random directions of these.

    Args:
        network: The network as captured.
        equations: The same in the structure that is solved.
        layers: Rows of `equations`.
        stream: Calibration inputs.
        seed: Of the directions.
        executor: Takes batches side by side.

    Returns:
        The sensitivity of each layer; float64, on the CPU.
    """
    every = equations.layers
    sizes = [rows.weights(every[rows.index]).shape[:2] for rows in layers]
    apart = [torch.zeros(groups, K, K, dtype=torch.float64) for groups, K in sizes]
    together = [0.0 for _ in layers]
    generator, count = torch.Generator().manual_seed(seed), at_once(network, stream.example)
    m = looked_at(stream.m)
    T = torch.cat(list(run(partial(_outputs, network), _parts(stream, count), executor)))
    step_of = partial(_sums, _Task(network, equations, layers, Distance(T, network.returned)))
    parts = (
        (part, signs(len(part), network.q, PROBES, generator)) for part in _parts(stream, count)
    )
    pieces = shards(parts, m / count)
    with progress.task("sensitivity of the outputs", total=m) as step:
        for samples, products, sums in run(step_of, pieces, executor):
            for S, product in zip(apart, products, strict=True):
                S += product
            together = [total + part for total, part in zip(together, sums, strict=True)]
            step(samples)
    found = []
    for rows, S, summed in zip(layers, apart, together, strict=True):
        alone = float(S.diagonal(dim1=1, dim2=2).sum())
        coherence = _coherence(alone, summed, rows.positions(every[rows.index]))
        found.append(Sensitivity(list((S / (m * PROBES)).unbind(0)), coherence))
    return found


def looked_at(m: int) -> int:
    """Say how many samples are looked at.

    Args:
        m: How many there are.

    Returns:
        All, or `ENOUGH` of them.
    """
    return min(m, ENOUGH)


def _parts(stream: Batches, count: int) -> Iterator[Tensor]:
    some, start = looked_at(stream.m), 0
    every = torch.arange(some) * stream.m // some
    for batch in stream:
        own = every[(every >= start) & (every < start + len(batch))] - start
        start += len(batch)
        if len(own):
            yield from batch[own.to(batch.device)].split(count)


@torch.no_grad()
def _outputs(network: StateEquations, u: Tensor) -> Tensor:
    return predict(network, u.to(network.like).flatten(1))


_Sums = tuple[int, list[Tensor], list[float]]


def _sums(task: _Task, parts: Sequence[tuple[Tensor, Tensor]]) -> _Sums:
    samples, apart, together = _part(task, *parts[0])
    for part in parts[1:]:
        count, products, sums = _part(task, *part)
        samples += count
        apart = [S.add_(product) for S, product in zip(apart, products, strict=True)]
        together = [total + own for total, own in zip(together, sums, strict=True)]
    return samples, apart, together


# for every layer the products of its channels' slopes, and the squares of their sums over positions
def _part(task: _Task, u: Tensor, drawn: Tensor) -> _Sums:
    every = task.equations.layers
    Z, Y = _replayed(task.network, u)
    directions = task.distance.directions(Y.detach(), drawn).unbind(2)
    apart, together = [torch.zeros(()) for _ in task.layers], [0.0 for _ in task.layers]
    for k, f in enumerate(directions):
        more = k < PROBES - 1
        slopes = torch.autograd.grad(Y, [*Z, Y], f, retain_graph=more, materialize_grads=True)
        if task.equations.feedback:
            slopes = (torch.cat(slopes[-2::-1], 1), slopes[-1])
        for index, rows in enumerate(task.layers):
            for use in (rows, *rows.uses):  # a weight is felt wherever it is used
                g = use.by_channel(every[use.index], slopes[use.index])
                apart[index] = apart[index] + _products(g).double().cpu()
                together[index] += float(g.sum(2, dtype=torch.float64).square().sum())
    return len(u), apart, together


# of channels, summed over samples and positions: short rows are not written out by channel
def _products(g: Float[Tensor, "groups m positions K"]) -> Float[Tensor, "groups K K"]:
    if g.shape[2] >= g.shape[3]:
        return (g.mT @ g).sum(1)
    every = g.flatten(1, 2)
    return every.mT @ every


@torch.enable_grad()
def _replayed(network: StateEquations, u: Tensor) -> tuple[list[Tensor], Tensor]:
    return network.replay(u.detach().clone().requires_grad_())


def at_once(network: StateEquations, example: Tensor) -> int:
    """Say how many samples a batch has: as many as fit, operations that are kept included.

    Args:
        network: The network as captured.
        example: One or more samples.

    Returns:
        At least one; measured, by all that autograd saves of one.
    """

    def saved(count: int) -> int:
        sizes: dict[int, int] = {}  # by storage: weights are saved, too, once for all samples

        def look(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
            Z, Y = _replayed(network, example.expand(count, *example.shape[1:]))
        for z in (*Z, Y):
            look(z)
        return sum(sizes.values())

    example, each = example[:1], [e.size for e in network.layers]
    slopes = (sum(each) + COPIES * max(each)) * network.like.element_size()
    one = saved(2) - saved(1) + slopes
    return max(1, int(MEMORY // one))


# E (Σ g)² = P a + P² b and E Σ g² = P (a + b) for slopes g at P positions with E gg' = aI + b11'
def _coherence(alone: float, summed: float, positions: int) -> float:
    if positions == 1 or not alone:
        return 0.0
    return min(max((summed / alone - 1) / (positions - 1), 0.0), 1.0)
