"""Sweeps on the outputs: some rows after others, each by least squares on the network's outputs.

Matching states treats every row alike; the outputs do not. To second order in a change δ of a row's
pre-activations, the distance of the model's outputs from the teacher's is (see `downstream`)

    1/m Σ_s  ½ δ_s' J_s'F J_s δ_s − g_s' δ_s,    δ = V w − z,

so the row's weights are convex weighted least squares on the row's own Gram (Gauss-Newton by rows;
no labels, no step lengths). Between two sweeps the weights that cost the outputs least are
eliminated, over all rows together: here all costs are in one unit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, repeat
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.rows import Rows, shared
from simplicit.equations.equation import Equation
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.model.dead_states import folded
from simplicit.outputs.distance import Distance
from simplicit.outputs.downstream import Downstream, Move
from simplicit.outputs.expansion import Expansion
from simplicit.outputs.grams import Grams
from simplicit.outputs.growing import grown
from simplicit.outputs.kept import Kept, Place
from simplicit.outputs.path_norm import path_norm, prices
from simplicit.outputs.row import choose, choose_blocks, refit
from simplicit.sparsity.budget import spend
from simplicit.sparsity.pattern import UNSTRUCTURED, Blocks, Pattern, rows_together

DAMPING = 1e-3
"""Added to the diagonal of a row's Gram, relative to it. Of its largest entry, what rounding leaves
is added, too: where the outputs feel nothing, as of a bias of all keys of an attention, slope and
curvature are rounding errors."""

REFITS = 2
"""Sweeps at the end that leave the supports as they are."""

INACTIVE = 0.1
"""Weight of samples whose state is off, as a part of what it is when on."""

STILL = 1e-4
"""A row stands still if its channels' last step and all other steps since have together changed the
distance by no more than this part of it. Unless it has weights to lose, it is then left alone."""

LOSES = 3.0
"""Most weights that a row loses in a sweep, times its share of them if all rows lost alike; at most
half of its weights."""

TOGETHER = 16
"""Channels between two exact passes through the layers behind them."""

ROOM = 2**25
"""Numbers of the inverse Grams of rows that are chosen from side by side, at most: 256 MB."""

HALVINGS = 4
"""Shorter steps tried where a refit would take the outputs further away."""

PARTS = 2
"""Parts of the samples that threads work on side by side; fixed, so that bits do not depend on how
many threads there are."""

THREADED = 2**18
"""Numbers in the features of the longest rows from which on threads share the samples. Chosen: a
thread that takes up a piece costs as much as the piece where they are a tenth as many."""

FEWER, PER_FEATURE = 2048, 4
"""Samples that the first sweeps look at, at least: in all, and for each feature of the longest
rows. Of 4,000 and of 12,000 images, they lead to outputs as near, in half of the time."""

LAST = 3
"""Sweeps on the way down that look at all samples, as the refits do. With none, the outputs end a
sixth further away."""

TINY = torch.finfo(torch.float32).tiny

Step = Callable[..., None]


def threaded(numbers: float) -> bool:
    """Say whether threads share the samples.

    Args:
        numbers: In the features of the longest rows.

    Returns:
        Whether they do.
    """
    return numbers >= THREADED


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


# budgets in equal ratios, the first and the last included
def _falling(first: int, last: int, falls: int) -> list[int]:
    return [round(first * (last / first) ** (k / falls)) for k in range(falls + 1)]


@dataclass(frozen=True, eq=False)
class _Layer:
    rows: Rows
    first: int  # number of its first row among all rows
    groups: int
    K: int
    d: int
    plain: bool  # shares no weight with another equation
    pattern: Pattern


@dataclass(frozen=True, eq=False)
class _Block:
    """Channels that are solved between two exact passes."""

    layer: _Layer
    group: int
    channels: slice
    V: list[Tensor]  # features, for each part of the samples
    size: Tensor  # sums of their squares, (d,)

    @property
    def first(self) -> int:
        """Number of the first channel among all rows."""
        return self.layer.first + self.group * self.layer.K + self.channels.start


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


class Sweeps:
    """A model without feedback, matched on the outputs of its teacher.

    Args:
        equations: The model's equations.
        layers: Its rows.
        u: Calibration inputs, flattened (m, p).
        T: The teacher's outputs, (m, q).
        inactive: Weight of a sample where φ is flat, as a part of what it had if φ were not.
        workers: Threads that share the samples.
        seed: Of random combinations of the outputs, where there are many.
        patterns: Which weights of each layer may be zero together; single ones without.

    Attributes:
        price: Price of the path norm, see `path_norm`; with one, rows also shrink.
        place: How far `match` has come; None before it has begun.
    """

    def __init__(
        self,
        equations: StateEquations,
        layers: Sequence[Rows],
        u: Float[Tensor, "m p"],
        T: Float[Tensor, "m q"],
        inactive: float = INACTIVE,
        workers: int = 1,
        seed: int = 0,
        patterns: Sequence[Pattern] | None = None,
    ) -> None:
        self._start, self._samples = equations, (u, T)
        self.every: list[Equation] = list(equations.layers)
        self._distance, self._inactive = Distance(T, equations.returned), inactive
        self._random = torch.Generator().manual_seed(seed)
        shapes = [tuple(rows.weights(self.every[rows.index]).shape) for rows in layers]
        firsts = [0, *accumulate(groups * K for groups, K, _ in shapes)]
        self.layers = [
            _Layer(rows, first, *shape, plain=not shared(rows, self.every), pattern=pattern)
            for rows, first, shape, pattern in zip(
                layers, firsts, shapes, patterns or [UNSTRUCTURED] * len(layers), strict=False
            )
        ]
        biased = [rows.biased for rows in layers]
        self._biases = True if all(biased) else False if not any(biased) else None
        each = (
            layer.d * layer.groups * layer.rows.positions(self.every[layer.rows.index])
            for layer in self.layers
        )
        many = workers if threaded(len(u) * max(each, default=0)) else 1
        self._map = map if many <= 1 else ThreadPoolExecutor(min(many, PARTS)).map
        self.costs: dict[int, Tensor] = {}
        self.place: Place | None = None
        self.price = 0.0
        self._moved = 0.0  # changes of the distance, each as a part of it, added up
        self._look_at(1)

    # every how manyth of the samples from now on; what is known of rows was of others
    def _look_at(self, every: int) -> None:
        self._each_of, (u, T) = every, (samples[::every] for samples in self._samples)
        self.m = len(u)
        self.parts = [
            Downstream(self.every, part, t, self._distance, self._inactive)
            for part, t in zip(u.tensor_split(PARTS), T.tensor_split(PARTS), strict=True)
            if len(part)
        ]
        longest = max((layer.d for layer in self.layers), default=0)
        self._grams = Grams(self.m * longest)  # no more memory than the longest rows' features
        self._solved: dict[int, float] = {}  # `_moved` before a row's last step

    @property
    def equations(self) -> StateEquations:
        """The model."""
        return replace(self._start, hidden=tuple(self.every[:-1]), output=self.every[-1])

    @property
    def distance(self) -> float:
        """How far the outputs are from the teacher's, a mean over the samples."""
        return sum(part.distance for part in self.parts) / self.m

    @property
    def outputs(self) -> Float[Tensor, "m q"]:
        """The model's outputs on the samples."""
        return torch.cat([part.Y for part in self.parts])

    @property
    def count(self) -> int:
        """Rows of all layers."""
        return sum(layer.groups * layer.K for layer in self.layers)

    def match(
        self,
        budget: int,
        sweeps: int,
        step: Step = lambda *_: None,
        after: Callable[[str], None] = lambda _: None,
        room: Callable[[], float] = lambda: inf,
    ) -> None:
        """Go down to a budget in equal ratios, sweep by sweep, and refit.

        What states that are constant or that nothing reads had of the budget is spent again.

        Args:
            budget: Non-zeros to leave in all rows together; biases are not counted.
            sweeps: At least 4: the first, and `REFITS` at the end, remove nothing.
            step: Called after some rows with their number.
            after: Called after each sweep with its name.
            room: Asked before each sweep how many there is time for. Fewer go down in larger steps;
                two there are in any case: one that finds prices, one that removes.
        """
        start = max(self.nonzeros(), 1)
        if self.place is None:
            longest = max((layer.d for layer in self.layers), default=0)
            fewer = self.m // max(FEWER, PER_FEATURE * longest)
            if fewer > 1 and sweeps > REFITS:
                self._look_at(fewer)
            self.place = Place(_falling(start, budget, sweeps - REFITS - 1), self._tied())
        place = self.place
        while place.budgets:
            now, *budgets = place.budgets
            if 1 + len(budgets) > (most := room()) and len(budgets) > 1:
                # every weight has to have a price, for which there is the time of one sweep less
                budgets = _falling(max(now, 1), budget, max(int(most) - 2, 1))[1:]
                place.at_once = 1.0
            if self._each_of > 1 and len(budgets) < LAST:
                self._look_at(1)
            losing = LOSES * (now - (budgets or [budget])[0]) / max(now - place.tied, 1)
            self._drop_dead()
            self.sweep(now, step, min(losing, place.at_once))
            place.budgets, place.sweeps = budgets, place.sweeps + 1
            after(f"sweep {place.sweeps}")
        if not place.refits:
            self._drop_dead()
            if self._each_of > 1:
                self._look_at(1)
            self._grow(budget - self.nonzeros())
        while place.refits < REFITS and room() >= 1:
            self.sweep(step=step)
            place.refits, place.sweeps = place.refits + 1, place.sweeps + 1
            after(f"sweep {place.sweeps}")

    def write(self) -> Kept:
        """Write down, between two sweeps of `match`, all that the next ones depend on.

        States and outputs are changed step by step: summed up anew they have other bits.

        Returns:
            All but the equations.
        """
        kept = Kept()
        for k, part in enumerate(self.parts):
            for j, (z, x) in enumerate(zip(part.Z, part.X, strict=True)):
                kept.tensors |= {f"Z {k} {j}": z, f"X {k} {j}": x}
            kept.tensors[f"Y {k}"] = part.Y
        kept.tensors["random"] = self._random.get_state()
        kept.put_rows("costs", self.costs)
        self._grams.write(kept)
        kept.records |= {
            "place": None if self.place is None else vars(self.place),
            "distances": [part.distance for part in self.parts],
            "each of": self._each_of,
            "moved": self._moved,
            "solved": [*self._solved.items()],
        }
        return kept

    def read(self, kept: Kept, layers: Sequence[Equation]) -> None:
        """Take over what `write` has written: `match` then goes on from there.

        Args:
            kept: What was written.
            layers: The equations as they were then.
        """
        self.every[:] = layers
        self._look_at(kept.records["each of"])
        like = self.parts[0].Y
        for k, (part, distance) in enumerate(
            zip(self.parts, kept.records["distances"], strict=True)
        ):
            for j, (z, x) in enumerate(zip(part.Z, part.X, strict=True)):
                # not into them: where φ does nothing, both are one
                part.Z[j] = torch.empty_like(z).copy_(kept.tensors[f"Z {k} {j}"])
                part.X[j] = torch.empty_like(x).copy_(kept.tensors[f"X {k} {j}"])
            part.Y = torch.empty_like(part.Y).copy_(kept.tensors[f"Y {k}"])
            part.distance = distance
        self._random.set_state(kept.tensors["random"])
        self.costs = kept.get_rows("costs", like)
        self._grams.read(kept, like)
        place = kept.records["place"]
        self.place = None if place is None else Place(**place)
        self._moved, self._solved = kept.records["moved"], dict(kept.records["solved"])

    @torch.no_grad()
    def sweep(
        self, budget: int | None = None, step: Step = lambda *_: None, losing: float = 0.5
    ) -> None:
        """Solve every row once, first layer first. Rows that stand still are left alone.

        Args:
            budget: Non-zeros to leave in all rows together; biases are not counted. The supports
                stay as they are without one. The first sweep with a budget finds what removals
                cost, and removes nothing yet.
            step: Called after some rows with their number.
            losing: Most of its weights that a row may lose in the next sweep, as a part of them.
        """
        keep: dict[int, int] = {}
        if budget is not None and self.costs:
            order = list(self.costs)
            kept = spend([self.costs[k].cpu() for k in order], max(budget - self._tied(), 0))
            keep = dict(zip(order, kept, strict=True))
        for layer in self.layers:
            counts = layer.rows.weights(self.every[layer.rows.index]).count_nonzero(2)
            together = rows_together(layer.pattern)
            weights = {  # of rows that share their zeros, by the number of the first one
                layer.first + group * layer.K + k: sum(own[k : k + together])
                for group, own in enumerate(counts.tolist())
                for k in range(0, layer.K, together)
            }
            asked = [
                k for k, n in weights.items()
                if layer.plain and not self._still(k, n, keep, budget is not None)
            ]  # fmt: skip
            if not asked:
                step(layer.groups * layer.K)
                continue
            price = self._prices(layer) if self.price else None
            for block in self._blocks(layer, layer.rows.biased):
                some = block.channels.stop - block.channels.start
                own = None if price is None else price[block.group, block.channels]
                rows = [k - block.first for k in asked if 0 <= k - block.first < some]
                if rows:
                    self._solve(block, rows, keep, None if budget is None else losing, own)
                step(some)

    # whether the outputs say nothing new to a row
    def _still(self, number: int, weights: int, keep: dict[int, int], measure: bool) -> bool:
        if number not in self._solved or self.price or keep.get(number, weights) < weights:
            return False
        known = number in self.costs or not measure
        return known and self._moved - self._solved[number] <= STILL

    def _blocks(self, layer: _Layer, bias: bool) -> Iterator[_Block]:
        features = self._each("features", layer.rows, bias)
        for group in range(layer.groups):
            V = [part[group] for part in features]
            squares = [v.square().sum(1) if v.ndim == 2 else v.square().sum((0, 1)) for v in V]
            square = torch.stack(squares).sum(0).double().clamp_min(TINY)
            together = rows_together(layer.pattern)
            size = max(TOGETHER // together, 1) * together
            for start in range(0, layer.K, size):
                channels = slice(start, min(start + size, layer.K))
                yield _Block(layer, group, channels, V, square)

    def slopes(self) -> list[Tensor | None]:
        """Average the slopes of φ over the samples.

        Returns:
            For each hidden layer a number a state, or None where φ is not elementwise.
        """
        found: list[Tensor | None] = []
        for k, equation in enumerate(self.every[:-1]):
            phi = equation.phi
            if not isinstance(phi, Phi):
                found.append(None)
                continue
            sums = [phi.derivative(part.Z[k]).abs().sum(0) for part in self.parts]
            found.append(torch.stack(sums).sum(0) / self.m)
        return found

    def path_norm(self) -> float:
        """Sum the products of |weights| over all paths, as the samples pass them on average.

        Returns:
            S of `path_norm`.
        """
        return path_norm(self.equations, self.slopes())

    def nonzeros(self) -> int:
        """Count the weights, biases apart.

        Returns:
            Their number.
        """
        return sum(self._weights(layer) for layer in self.layers)

    def _weights(self, layer: _Layer) -> int:
        return int(layer.rows.weights(self.every[layer.rows.index]).count_nonzero())

    # weights that sweeps leave alone, because equations share them
    def _tied(self) -> int:
        return sum(self._weights(layer) for layer in self.layers if not layer.plain)

    def _prices(self, layer: _Layer) -> Tensor:
        every = prices(self.equations, self.slopes())
        found = self.price * layer.rows.weights(every[layer.rows.index])
        return F.pad(found, (0, int(layer.rows.biased)))

    def _drop_dead(self) -> None:
        learned = {(layer.rows.index, t) for layer in self.layers for t in layer.rows.terms}
        left = [
            term.weight
            for index, e in enumerate(self.every)
            for t, term in enumerate(e.terms)
            if (index, t) not in learned
        ]
        self.every[:] = folded(self.equations, self._biases, left).layers

    # gives rows back the weights that would bring the outputs nearest, each by itself
    @torch.no_grad()
    def _grow(self, count: int) -> None:
        plain = {layer.rows: layer for layer in self.layers if layer.plain}

        def gain(rows: Rows) -> Tensor:
            found = torch.zeros_like(rows.weights(self.every[rows.index]))
            for block in self._blocks(plain[rows], bias=False):
                sums = zip(*self._map(Expansion.gains, self._expand(block)), strict=True)
                slope, curvature = (torch.stack(both).sum(0) for both in sums)
                found[block.group, block.channels] = slope.square() / curvature.clamp_min(TINY)
            return found

        patterns = [layer.pattern for layer in plain.values()]
        self.every[:] = grown(self.equations, list(plain), gain, count, patterns)

    # asks every part of the samples the same
    def _each(self, question: str, *arguments: Any) -> list[Any]:
        return list(self._map(lambda part: getattr(part, question)(*arguments), self.parts))

    def _expand(self, block: _Block) -> list[Expansion]:
        seeds = torch.randint(2**31, (PARTS,), generator=self._random).tolist()

        def expand(part: Downstream, own: Tensor, seed: int) -> Expansion:
            generator = torch.Generator().manual_seed(seed)
            return part.expand(block.layer.rows, block.group, block.channels, own, generator)

        return list(self._map(expand, self.parts, block.V, seeds))

    # Some channels of a layer: what goes from each, chosen side by side; then one after the other
    # to second order; then all together exactly.
    def _solve(
        self,
        block: _Block,
        rows: Sequence[int],
        keep: dict[int, int],
        losing: float | None,
        price: Tensor | None,
    ) -> None:
        layer, parts = block.layer, self._expand(block)
        W = layer.rows.weights(self.every[layer.rows.index])[block.group, block.channels]
        bias = int(layer.rows.biased)
        old, price = F.pad(W, (0, bias)), None if price is None else price.double()
        shared = [own for first in rows if len((own := self._sharing(block, first, old)).S)]
        slopes = None  # refits choose nothing
        if losing is not None:
            slopes = _sum(self._map(Expansion.gradients, parts)) / self.m
        pose = partial(self._pose, block, parts, old, slopes, keep, losing)
        change, before, distance = torch.zeros_like(old), 0.0, self.distance
        removed = False
        for some in _together(shared):
            posed = list(self._map(pose, some))
            for group in posed:
                removed |= len(group.gone) > 0
                for row in group.rows:
                    if row.H is not None:
                        self._grams.keep(block.first + row.k, group.S, row.h, row.H)
                if group.costs is not None:
                    self.costs[block.first + group.first] = group.costs
            for one in posed:
                for row in one.rows:
                    k, S, start = row.k, one.S, old[row.k, one.S].double()
                    found = self._map(Expansion.gradient, parts, repeat(k), repeat(S))
                    cost = None if price is None else price[k, S]
                    w = refit(row.inverse, _sum(found) / self.m, start, one.gone, cost)
                    before += 0.0 if cost is None else float(cost @ start.abs())
                    change[k, S] = moved = (w - start).to(change)
                    again = repeat(k), repeat(S), repeat(moved)
                    list(self._map(Expansion.change, parts, *again))
        solved = {block.first + k: self._moved for k in rows}
        if not self._take(block, parts, change, distance + before, removed, price):
            # with a new Gram there may be a step
            together = rows_together(layer.pattern)
            again = {k for k in solved for own in range(together) if self._grams.forget(k + own)}
            solved = {k: moved for k, moved in solved.items() if k not in again}
        self._solved |= solved
        if distance:
            self._moved += abs(self.distance / distance - 1)

    # rows that share their zeros with one of a block, it among them; none that reads nothing
    def _sharing(self, block: _Block, first: int, old: Tensor) -> _Asked:
        pattern, d = block.layer.pattern, block.layer.d
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
        block: _Block,
        parts: Sequence[Expansion],
        old: Tensor,
        slopes: Tensor | None,
        keep: dict[int, int],
        losing: float | None,
        asked: _Asked,
    ) -> _Posed:
        S, layer = asked.S, block.layer
        rows = [self._row(block, parts, k, S) for k in asked.members]
        if slopes is None or losing is None:
            return _Posed(asked.first, S, rows, S[:0], None)
        left = keep.get(block.first + asked.first)
        w = torch.stack([old[r.k, S].double() + r.inverse @ slopes[r.k, S] for r in rows])
        if isinstance(layer.pattern, Blocks):
            bias = len(block.size) - layer.d
            column = F.pad(layer.pattern.column.to(S.device), (0, bias), value=-1)[S]
            inverses = torch.stack([row.inverse for row in rows])
            found = choose_blocks(inverses, w, column, left, losing)
        else:
            found = choose(rows[0].inverse, w[0], S >= layer.d, left, losing)
        return _Posed(asked.first, S, rows, *found)

    def _row(self, block: _Block, parts: Sequence[Expansion], k: int, S: Tensor) -> _Row:
        h = [part.curvatures(k) for part in parts]
        H = known = self._grams.find(block.first + k, S, h)
        if H is None:
            H = _sum(part.gram(k, S, own) for part, own in zip(parts, h, strict=True)) / self.m
        # A feature may move no output, as the bias of attention's keys. What is left of its
        # curvature is rounding, relative to the others' in units of the features' own size.
        size = block.size[S]
        rounding = torch.finfo(block.V[0].dtype).eps * size * (H.diagonal() / size).max()
        damped = H + (DAMPING * H.diagonal() + rounding + TINY).diag()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return _Row(k, h, inverse, None if known is not None else H)

    # The channels' change, or a shorter one where it would take the outputs further away. Weights
    # that make room for the budget go in any case; of the lengths of the rest the best is taken.
    def _take(
        self,
        block: _Block,
        parts: Sequence[Expansion],
        change: Tensor,
        most: float,
        removed: bool,
        price: Tensor | None,
    ) -> bool:
        layer, group, channels = block.layer, block.group, block.channels
        equation, index = self.every[layer.rows.index], layer.rows.index
        W = layer.rows.weights(equation).clone()
        old, d = W[group, channels].clone(), layer.d
        gone = F.pad((change[:, :d] == -old) & (old != 0), (0, int(layer.rows.biased)))
        best = None
        always: list[Tensor] | None = None
        for length in (*(0.5**k for k in range(HALVINGS)), *([0.0] if removed else [])):
            step = torch.where(gone, change, length * change)

            if length < 1 and always is None:
                always = list(self._map(lambda own: own.shift(gone * change), parts))

            def move(down: Downstream, own: Expansion, least: Tensor | None, length=length) -> Move:
                dz = own.dz if least is None else least.lerp(own.dz, length)
                return down.move(index, dz.transpose(0, 1).flatten(1), own.own)

            moves = list(self._map(move, self.parts, parts, always or [None] * len(parts)))
            new = old + step[:, :d]
            worth = 0.0 if price is None else float((price[:, :d] * new.abs()).sum())
            found = sum(m.distance for m in moves) / self.m + worth
            good = found <= most
            if good or (removed and (best is None or found < best[0])):
                best = found, step, moves
            if good:
                break
        if best is None:
            return False
        _, step, moves = best
        W[group, channels] = old + step[:, :d]
        shift = W.new_zeros(W.shape[:2])
        shift[group, channels] = step[:, d:].sum(1)
        self.every[index] = layer.rows.put(equation, W, shift)
        for down, accepted in zip(self.parts, moves, strict=True):
            down.accept(accepted)
        return True
