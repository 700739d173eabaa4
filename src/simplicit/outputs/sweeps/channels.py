"""Some channels of a layer: what goes from each, and where their other weights end up.

To second order in a change δ of a channel's pre-activations, the distance of the model's outputs
from the teacher's is (see `downstream`)

    1/m Σ_s  ½ δ_s' J_s'F J_s δ_s − g_s' δ_s,    δ = V w − z,

so the channel's weights are convex weighted least squares on the row's own Gram (Gauss-Newton by
rows; no labels, no step lengths).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.outputs.downstream import Downstream, Move
from simplicit.outputs.expansion import Expansion
from simplicit.outputs.sweeps.grams import Grams
from simplicit.outputs.sweeps.row import choose, choose_blocks, refit
from simplicit.outputs.sweeps.samples import Samples, summed
from simplicit.sparsity.pattern import Blocks, Pattern, rows_together

DAMPING = 1e-3
"""Added to the diagonal of a row's Gram, relative to it. Of its largest entry, what rounding leaves
is added, too: where the outputs feel nothing, as of a bias of all keys of an attention, slope and
curvature are rounding errors."""

ROOM = 2**25
"""Numbers of the inverse Grams of rows that are chosen from side by side, at most: 256 MB."""

HALVINGS = 4
"""Shorter steps tried where a refit would take the outputs further away."""

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Layer:
    """Rows of a layer.

    Attributes:
        rows: The rows.
        first: Number of the first of them among all rows.
        groups: Groups of channels.
        K: Channels of a group.
        d: Weights of a channel.
        plain: Whether they share no weight with another equation.
        pattern: Which weights may be zero together.
    """

    rows: Rows
    first: int
    groups: int
    K: int
    d: int
    plain: bool
    pattern: Pattern


@dataclass(frozen=True, eq=False)
class Block:
    """Channels that are solved between two exact passes.

    Attributes:
        layer: Their layer.
        group: Their group.
        channels: Which of its channels.
        V: Features, for each part of the samples.
        size: Sums of their squares.
    """

    layer: Layer
    group: int
    channels: slice
    V: list[Tensor]
    size: Float[Tensor, " d"]

    @property
    def first(self) -> int:
        """Number of the first channel among all rows."""
        return self.layer.first + self.group * self.layer.K + self.channels.start


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of rows from earlier sweeps.

    Attributes:
        grams: Their last Grams.
        costs: What further removals from rows with the same zeros cost, by the first one's number.
    """

    grams: Grams
    costs: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class _Asked:
    """Channels of a block that share their zeros, the first one's number, and their support."""

    first: int
    members: list[int]
    S: Tensor


@dataclass(frozen=True, eq=False)
class _Row:
    """A channel's curvatures, the inverse of its Gram, and the Gram where it is a new one."""

    k: int
    h: list[Tensor]
    inverse: Tensor
    H: Tensor | None


@dataclass(frozen=True, eq=False)
class _Posed:
    """Channels that share their zeros, what goes from them, and what more would cost."""

    first: int
    S: Tensor
    rows: list[_Row]
    gone: Tensor
    costs: Tensor | None


class Channels:
    """The channels of a block on the samples.

    Args:
        block: The channels.
        samples: The model on the samples; what is found goes into it.
        known: What is known of the rows; what is learned goes into it.
        random: Of combinations of the outputs, where there are many.
    """

    def __init__(
        self, block: Block, samples: Samples, known: Known, random: torch.Generator
    ) -> None:
        rows, group, channels = block.layer.rows, block.group, block.channels
        self.block, self.samples, self.known = block, samples, known
        self.parts = samples.expand(rows, group, channels, block.V, random)
        W = rows.weights(samples.every[rows.index])[group, channels]
        self.old = F.pad(W, (0, int(rows.biased)))

    def gains(self) -> Float[Tensor, "K d"]:
        """Say how much nearer each weight would bring the outputs by itself.

        Returns:
            The gains, to second order.
        """
        sums = zip(*self.samples.map(Expansion.gains, self.parts), strict=True)
        slope, curvature = map(summed, sums)
        return slope.square() / curvature.clamp_min(TINY)

    def solve(
        self,
        rows: Sequence[int],
        keep: Mapping[int, int],
        losing: float | None,
        price: Float[Tensor, "K d"] | None,
    ) -> list[int]:
        """Choose what goes from each channel, side by side; solve one after the other; take all.

        Args:
            rows: The first of the channels that share their zeros, within the block.
            keep: Weights to leave in them, by their numbers among all rows.
            losing: Most of its weights that a row may lose the next time; None: none go now.
            price: Of |w|; nothing costs without.

        Returns:
            Those of the rows that have come where they belong for now.
        """
        block, parts, old, m = self.block, self.parts, self.old, self.samples.m
        price = None if price is None else price.double()
        shared = [own for first in rows if len((own := self._sharing(first)).S)]
        slopes = None  # refits choose nothing
        if losing is not None:
            slopes = summed(self.samples.map(Expansion.gradients, parts)) / m
        pose = partial(self._pose, slopes, keep, losing)
        change, before, distance = torch.zeros_like(old), 0.0, self.samples.distance
        removed = False
        for some in _together(shared):
            posed = list(self.samples.map(pose, some))
            for group in posed:
                removed |= len(group.gone) > 0
                self._learn(group)
            for one in posed:
                for row in one.rows:
                    k, S, start = row.k, one.S, old[row.k, one.S].double()
                    found = self.samples.map(Expansion.gradient, parts, repeat(k), repeat(S))
                    cost = None if price is None else price[k, S]
                    w = refit(row.inverse, summed(found) / m, start, one.gone, cost)
                    before += 0.0 if cost is None else float(cost @ start.abs())
                    change[k, S] = moved = (w - start).to(change)
                    again = repeat(k), repeat(S), repeat(moved)
                    list(self.samples.map(Expansion.change, parts, *again))
        if self._take(change, distance + before, removed, price):
            return list(rows)
        # with a new Gram there may be a step
        members, grams = range(rows_together(block.layer.pattern)), self.known.grams
        again = {k for k in rows for own in members if grams.forget(block.first + k + own)}
        return [k for k in rows if k not in again]

    def _learn(self, posed: _Posed) -> None:
        for row in posed.rows:
            if row.H is not None:
                self.known.grams.keep(self.block.first + row.k, posed.S, row.h, row.H)
        if posed.costs is not None:
            self.known.costs[self.block.first + posed.first] = posed.costs

    # rows that share their zeros with one of a block, it among them; none that reads nothing
    def _sharing(self, first: int) -> _Asked:
        old, pattern, d = self.old, self.block.layer.pattern, self.block.layer.d
        members = range(first, min(first + rows_together(pattern), len(old)))
        own = [k for k in members if not isinstance(pattern, Blocks) or bool(old[k, :d].any())]
        if not own:
            return _Asked(first, own, torch.empty(0, dtype=torch.long, device=old.device))
        on = torch.stack([old[k] != 0 for k in own]).any(0)
        on[d:] = True
        return _Asked(first, own, on.nonzero()[:, 0])

    # Grams, which may be of an earlier sweep, their inverses, and what goes from the rows
    def _pose(
        self,
        slopes: Tensor | None,
        keep: Mapping[int, int],
        losing: float | None,
        asked: _Asked,
    ) -> _Posed:
        block, S, layer = self.block, asked.S, self.block.layer
        rows = [self._row(k, S) for k in asked.members]
        if slopes is None or losing is None:
            return _Posed(asked.first, S, rows, S[:0], None)
        left = keep.get(block.first + asked.first)
        w = torch.stack([self.old[r.k, S].double() + r.inverse @ slopes[r.k, S] for r in rows])
        if isinstance(layer.pattern, Blocks):
            bias = len(block.size) - layer.d
            column = F.pad(layer.pattern.column.to(S.device), (0, bias), value=-1)[S]
            inverses = torch.stack([row.inverse for row in rows])
            found = choose_blocks(inverses, w, column, left, losing)
        else:
            found = choose(rows[0].inverse, w[0], S >= layer.d, left, losing)
        return _Posed(asked.first, S, rows, *found)

    def _row(self, k: int, S: Int[Tensor, " s"]) -> _Row:
        block, m = self.block, self.samples.m
        h = [part.curvatures(k) for part in self.parts]
        H = known = self.known.grams.find(block.first + k, S, h)
        if H is None:
            H = summed(part.gram(k, S, own) for part, own in zip(self.parts, h, strict=True)) / m
        # A feature may move no output, as the bias of attention's keys. What is left of its
        # curvature is rounding, relative to the others' in units of the features' own size.
        size = block.size[S]
        rounding = torch.finfo(block.V[0].dtype).eps * size * (H.diagonal() / size).max()
        damped = H + (DAMPING * H.diagonal() + rounding + TINY).diag()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return _Row(k, h, inverse, None if known is not None else H)

    # The channels' change, or a shorter one where it would take the outputs further away. Weights
    # that make room for the budget go in any case; of the lengths of the rest the best is taken.
    def _take(self, change: Tensor, most: float, removed: bool, price: Tensor | None) -> bool:
        samples, old, d = self.samples, self.old, self.block.layer.d
        index = self.block.layer.rows.index
        gone = (change == -old) & (old != 0)
        gone[:, d:] = False
        best = None
        always: list[Tensor] | None = None
        for length in (*(0.5**k for k in range(HALVINGS)), *([0.0] if removed else [])):
            step = torch.where(gone, change, length * change)

            if length < 1 and always is None:
                always = list(samples.map(lambda own: own.shift(gone * change), self.parts))

            def move(down: Downstream, own: Expansion, least: Tensor | None, length=length) -> Move:
                dz = own.dz if least is None else least.lerp(own.dz, length)
                return down.move(index, dz.transpose(0, 1).flatten(1), own.own)

            moves = list(
                samples.map(move, samples.parts, self.parts, always or [None] * len(self.parts))
            )
            new = (old + step)[:, :d]
            worth = 0.0 if price is None else float((price[:, :d] * new.abs()).sum())
            found = sum(m.distance for m in moves) / samples.m + worth
            good = found <= most
            if good or (removed and (best is None or found < best[0])):
                best = found, step, moves
            if good:
                break
        if best is None:
            return False
        _, step, moves = best
        self._put(step)
        for down, accepted in zip(samples.parts, moves, strict=True):
            down.accept(accepted)
        return True

    def _put(self, step: Tensor) -> None:
        rows, d, every = self.block.layer.rows, self.block.layer.d, self.samples.every
        W = rows.weights(every[rows.index]).clone()
        shift = W.new_zeros(W.shape[:2])
        W[self.block.group, self.block.channels] = (self.old + step)[:, :d]
        shift[self.block.group, self.block.channels] = step[:, d:].sum(1)
        every[rows.index] = rows.put(every[rows.index], W, shift)


# rows whose Grams are inverted side by side
def _together(asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    some: list[_Asked] = []
    numbers = 0
    for rows in asked:
        own = len(rows.members) * len(rows.S) ** 2
        if some and numbers + own > ROOM:
            yield some
            some, numbers = [], 0
        some.append(rows)
        numbers += own
    if some:
        yield some
