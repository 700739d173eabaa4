"""The Gram of a layer's rows, block by block of calibration inputs.

Target of the rows is the part of the teacher's pre-activations that all other summands of the
model's equation leave over. So the last convolution of a residual block also corrects the errors of
its shortcut.

Products of a block are taken in the network's own precision and added up in float64. In float32
the features are first moved by their mean over the first block, which is put back in float64. So
the error is a millionth of their variance, however far from zero they are. Where samples are so few
that the Gram is singular, or nearly, that error would make it indefinite: its products are then in
float64. The certificates hold for the Gram that results.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.features import Listed
from simplicit.calibration.frontier import Frontier
from simplicit.calibration.rows import Rows
from simplicit.calibration.shifts import Shifted, Shifts
from simplicit.convex.gram import Gram
from simplicit.equations.equation import Equation
from simplicit.system import memory
from simplicit.workers.executors import of
from simplicit.workers.run import IN_FLIGHT, run
from simplicit.workers.shards import shards

BATCH, ALONE = 100, 1000
"""Samples of a block: the patches of a 3 × 3 convolution on 64 × 32 × 32 values take 120 MB in
float32. So many where a sample has one position."""

IMAGES = 2**25
"""Bytes of a block of images, where patches are not written out and more samples fit; or a quarter
of its Gram's, which takes long to add up."""

POSITIONS = 64
"""Positions that a sample contributes at most, drawn anew for every block."""

FEWEST, ENOUGH, EACH = 16, 128_000, 200
"""Of many samples each contributes less, but not less than `FEWEST`: so many in all are enough, and
so many for each feature. On ResNet-20, half of them costs half a point, and more gain nothing."""

FEW = 2
"""Rows of the data for each feature up to which products are in float64. They take as
many operations as a few factors of the Gram do."""

KEPT = 2**29
"""Bytes of features, at most, that are kept for new targets; above, they are read again."""


SINGLE = 0.01
"""Least weight of single positions, where some are drawn of fewer samples than there are features,
however much their errors add up."""


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
    coherence: float
    single: float
    most: int
    dtype: torch.dtype
    shifts: Shifts | None = None
    centre: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Block:
    """What the rows read in some samples, and what they should give.

    Attributes:
        features: Centred features and their weight, of single positions and of samples' means.
        target: The teacher's pre-activations less what other summands give.
        zero: What would give the pre-activation 0.
        on: Where the teacher's pre-activation is above 0.
        samples: How many.
    """

    features: list[tuple[float, Listed | Shifted]]
    target: Tensor
    zero: Tensor
    on: Tensor
    samples: int


_Batch = tuple[list[Tensor], Tensor]
"""What an equation reads of some samples, and what it should give."""

_Answer = tuple[int, list[Tensor], list[_Block]]
"""Rows of the data, sums over them, and the blocks where they are kept."""


class Readings:
    """What the rows of a layer read and what they should give, on the model's states.

    With coherence c errors e at the P positions of a sample weigh as e' ((1 − c) I + c 11') e / P:
    a sample's mean over its positions is one more row of the data, of weight √c P.

    Args:
        rows: Which rows.
        equation: The equation with its present weights.
        frontier: States of teacher and model.
        bias: Whether rows correct their bias; then the last feature is 1.
        coherence: How far errors at different positions add up, 0 to 1.
        executor: Takes blocks side by side; sums are taken in the order of the blocks.
    """

    def __init__(
        self,
        rows: Rows,
        equation: Equation,
        frontier: Frontier,
        bias: bool,
        coherence: float = 0.0,
        executor: Executor | None = None,
    ) -> None:
        self.frontier, self.bias, self.executor = frontier, bias, executor
        self._positions = rows.positions(equation)
        W = rows.weights(equation)
        groups, K, d = W.shape
        most = drawn(frontier.m, self._positions, d)
        self._shifts = shifts = Shifts.of(rows, equation, most)
        most = self._positions if shifts else most
        # means over positions have no more dimensions than there are samples
        single = SINGLE if frontier.m < d else 0.0
        dtype = torch.float64 if shifts else precision(frontier.m * most, d, W.dtype)
        self._task = _Task(rows, equation, coherence, single, most, dtype, shifts)
        item = dtype.itemsize
        # the sum, and those of the blocks on their way to it
        flight = 1 + IN_FLIGHT * of(executor)
        N = d + int(bias)
        size = groups * (K * N + K + N * N) * (8.0 + (flight - 1) * item)
        memory.require(size, f"moments of {equation.name}", W.device)
        self._block = in_block(frontier.m, self._positions, d, shifts)
        self._centre = W.new_zeros(groups, 1, d, dtype=torch.float64)
        if dtype != torch.float64:
            first = _block(self._task, next(self._pieces()))
            V = first.features[0][1]
            centre = (V.sum() / V.samples).to(W)[:, None]
            self._task = replace(self._task, centre=centre)
            self._centre = centre.double()
        values = shifts.size if shifts else most * groups * d
        targets = most * groups * K
        self._small = frontier.m * (values * item + targets * (2 * item + 1)) <= KEPT
        # a block that another process has read is read again: it takes less time than to send it
        self._small &= getattr(executor, "here", True)
        # multiply-adds of a block of the Gram; new targets cost a vector of it a channel
        self._work = self._block * most * groups * float(d) * (d + K)
        self._again = self._block * most * groups * 2.0 * d * K
        self._blocks: list[_Block] = []

    def moments(self, keep: bool = False) -> list[Gram]:
        """Accumulate the row problems.

        Args:
            keep: Whether new targets will be asked for: then features that take little memory are
                kept.

        Returns:
            Statistics of each group.
        """
        self._blocks = []
        step = partial(_shard, partial(_read, self._task, keep and self._small))
        m, totals = self._sum(run(step, self._shards(), self.executor, work=self._work))
        tS, t, t2, s, n, SS = totals
        if self._shifts:
            G, s = self._shifts.square(SS, s, n), self._shifts.original(s)
        else:
            c = self._centre
            moved = s[:, :, None] * c
            G, s = SS + moved + moved.mT + n[..., None] * (c.mT @ c), s + n * c[:, 0]
        if self.bias:
            last, corner = s[:, :, None], n[..., None].expand(len(s), 1, 1)
            G = torch.cat([torch.cat([G, last], 2), torch.cat([last.mT, corner], 2)], 1)
        R = self._with_bias(tS, t)
        return [Gram.of(g, r, square, m) for g, r, square in zip(G, R, t2, strict=True)]

    def retargeted(self, grams: Sequence[Gram], found: Candidate) -> list[Gram]:
        """Move targets where a teacher's state is off, in front of a ReLU.

        There the target is the pre-activation that given weights have, at most 0: any
        pre-activation that leaves the state off will do.

        Args:
            grams: Moments of the same features.
            found: Weights of the rows.

        Returns:
            The moments with new targets.
        """
        if self._blocks:
            step = partial(_retarget, self._task, found)
            answers = run(step, self._blocks, self.executor, work=self._again)
        else:
            again = partial(_shard, partial(_read_again, self._task, found))
            answers = run(again, self._shards(), self.executor, work=self._again)
        _, (tS, t, t2) = self._sum(answers)
        R = self._with_bias(tS, t)
        return [g.with_targets(r, square) for g, r, square in zip(grams, R, t2, strict=True)]

    def _pieces(self) -> Iterator[_Piece]:
        size, index = self._block, 0
        for sources, z in _gathered(self.frontier.batches(), size):
            for i in range(0, len(z), size):
                yield _Piece(index, [s[i : i + size] for s in sources], z[i : i + size])
                index += 1

    def _shards(self) -> Iterator[list[_Piece]]:
        return shards(self._pieces(), self.frontier.m / self._block)

    def _sum(self, answers: Iterable[_Answer]) -> tuple[int, list[Tensor]]:
        m, totals, blocks = _added_up(answers)
        self._blocks += blocks
        return m, [total.div_(m) for total in totals]

    # moments with the features as they are, from those of the features less their centre
    def _with_bias(self, tS: Tensor, t: Tensor) -> Tensor:
        shifts, c = self._shifts, self._centre
        R = shifts.original(tS) if shifts else tS + t[:, :, None] * c
        return torch.cat([R, t[:, :, None]], 2) if self.bias else R


def in_block(m: int, positions: int, features: int, shifts: Shifts | None) -> int:
    """Say how many samples a block has.

    Args:
        m: Samples.
        positions: Of each sample.
        features: At each position.
        shifts: How features are read, where they are not written out.

    Returns:
        The number; of shifts not more than half of all samples, so that two can work.
    """
    if shifts is None:
        return ALONE if positions == 1 else BATCH
    fit = max(IMAGES, 2 * features**2) // (8 * shifts.size)
    return max(BATCH, min(fit, -(-m // 2)))


def drawn(m: int, positions: int, features: int) -> int:
    """Say how many positions each sample contributes.

    Args:
        m: Samples.
        positions: Of each sample.
        features: At each position.

    Returns:
        At most all of them.
    """
    enough = min(ENOUGH, EACH * features)
    return min(positions, max(enough // m, FEWEST), POSITIONS)


def precision(samples: int, features: int, own: torch.dtype) -> torch.dtype:
    """Say in which precision products of features are taken.

    Args:
        samples: Rows of the data.
        features: At each of them.
        own: The network's precision.

    Returns:
        float64 where samples are so few that rounding would make the Gram indefinite.
    """
    return torch.float64 if samples <= FEW * features else own


# short batches joined to blocks of at least a size
def _gathered(batches: Iterable[_Batch], least: int) -> Iterator[_Batch]:
    group: list[_Batch] = []
    for batch in batches:
        group.append(batch)
        if sum(len(z) for _, z in group) >= least:
            yield _joined(group)
            group = []
    if group:
        yield _joined(group)


def _joined(group: list[_Batch]) -> _Batch:
    if len(group) == 1:
        return group[0]
    sources = zip(*(own for own, _ in group), strict=True)
    return [torch.cat(parts) for parts in sources], torch.cat([z for _, z in group])


def _added_up(answers: Iterable[_Answer]) -> _Answer:
    m, totals, blocks = 0, [], []
    for count, sums, kept in answers:
        m += count
        if totals:
            totals = [total.add_(part) for total, part in zip(totals, sums, strict=True)]
        else:
            totals = [part.double() for part in sums]
        blocks += kept
    return m, totals, blocks


# of a single block as it is, in single precision where the network is: half as much to send
def _shard(step: Callable[[_Piece], _Answer], pieces: list[_Piece]) -> _Answer:
    return step(pieces[0]) if len(pieces) == 1 else _added_up(map(step, pieces))


@torch.no_grad()
def _read(task: _Task, keep: bool, piece: _Piece) -> _Answer:
    block = _block(task, piece)
    sums = _of_targets(block, block.target)
    sums.append(_added([(weight, S.sum()) for weight, S in block.features]))
    weights = sum(weight * S.samples for weight, S in block.features)
    sums.append(torch.full((1, 1), weights, dtype=torch.float64, device=block.target.device))
    sums.append(_added([(weight, S.gram()) for weight, S in block.features]))
    return block.features[0][1].samples, sums, [block] if keep else []


@torch.no_grad()
def _retarget(task: _Task, found: Candidate, block: _Block) -> _Answer:
    V, W = block.features[0][1], found.W.to(block.target)
    shift = found.shift.to(W)[:, None]
    if task.shifts:
        W = task.shifts.sorted(W)
    elif task.centre is not None:
        shift = shift + task.centre @ W.mT
    off = torch.minimum(V.given(W).add_(shift), block.zero)
    target = torch.where(block.on, block.target, off)
    return V.samples, _of_targets(block, target), []


def _read_again(task: _Task, found: Candidate, piece: _Piece) -> _Answer:
    return _retarget(task, found, _block(task, piece))


def _of_targets(block: _Block, target: Tensor) -> list[Tensor]:
    targets = [target]
    if len(block.features) > 1:
        targets.append(target.unflatten(1, (block.samples, -1)).mean(2))
    parts = [(weight, S, t) for (weight, S), t in zip(block.features, targets, strict=True)]
    return [
        _added([(weight, S.against(t)) for weight, S, t in parts]),
        _added([(weight, t.sum(1).double()) for weight, _, t in parts]),
        _added([(weight, t.square().sum(1).double()) for weight, _, t in parts]),
    ]


# in place: a wide Gram is not copied
def _added(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    (weight, total), *others = parts
    total.mul_(weight)
    for weight, part in others:
        total.add_(part, alpha=weight)
    return total


@torch.no_grad()
def _block(task: _Task, piece: _Piece) -> _Block:
    rows, equation, z = task.rows, task.equation, piece.z
    positions = rows.positions(equation)
    some = _positions(positions, task.most, rows.index, piece.index, z.device)
    chosen = some if len(some) < positions else None
    V: Listed | Shifted
    if task.shifts:
        term = equation.terms[rows.terms[0]]
        V = task.shifts.read(term.reads(piece.sources[term.source]))
    else:
        listed = rows.features(equation, piece.sources, chosen).to(task.dtype)
        V = Listed(listed if task.centre is None else listed - task.centre)
    others = equation.preactivation(piece.sources, without=rows.terms)
    rest, teacher = (rows.targets(equation, t, chosen).to(task.dtype) for t in (others, z))
    return _Block(_weighed(task, V, len(z)), teacher - rest, -rest, teacher > 0, len(z))


# The mean over n of P positions overcounts their variance; this subtracts the excess from the
# single rows.
def _weighed(
    task: _Task, V: Listed | Shifted, samples: int
) -> list[tuple[float, Listed | Shifted]]:
    n, P, coherence = V.samples // samples, task.rows.positions(task.equation), task.coherence
    if not coherence or n == 1:
        return [(1.0, V)]
    excess = (P - n) / (n * (P - 1))
    together = coherence * P / (1 - excess)
    alone = max(1 - coherence - together * excess, task.single if excess else 0.0)
    return [(alone, V), (together * n, V.means(samples))]


# other positions in every block, the same in every pass over the data
def _positions(count: int, most: int, layer: int, block: int, device: torch.device) -> Tensor:
    if count <= most:
        return torch.arange(count, device=device)
    generator = torch.Generator().manual_seed(1_000_003 * layer + block)
    return torch.randperm(count, generator=generator)[:most].to(device)
