"""Sweeps on the outputs: some rows after others, each by least squares on the network's outputs.

Matching states treats every row alike; the outputs do not. A sweep solves every row once, some
channels at a time (`channels`). Between two sweeps the weights that cost the outputs least are
eliminated, over all rows together: here all costs are in one unit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from math import inf

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
from simplicit.outputs.path_norm import path_norm, prices
from simplicit.outputs.sweeps.channels import TINY, Block, Channels, Known, Layer
from simplicit.outputs.sweeps.grams import Grams
from simplicit.outputs.sweeps.growing import grown
from simplicit.outputs.sweeps.kept import Kept, Place
from simplicit.outputs.sweeps.samples import Samples, summed
from simplicit.sparsity.budget import spend
from simplicit.sparsity.pattern import UNSTRUCTURED, Pattern, rows_together

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

FEWER, PER_FEATURE = 2048, 4
"""Samples that the first sweeps look at, at least: in all, and for each feature of the longest
rows. Of 4,000 and of 12,000 images, they lead to outputs as near, in half of the time."""

LAST = 3
"""Sweeps on the way down that look at all samples, as the refits do. With none, the outputs end a
sixth further away."""

Step = Callable[..., None]


# budgets in equal ratios, the first and the last included
def _falling(first: int, last: int, falls: int) -> list[int]:
    return [round(first * (last / first) ** (k / falls)) for k in range(falls + 1)]


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
        every: The model's equations in forward order, the outputs last.
        samples: The model on the samples.
        layers: The model's rows.
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
        self._start, self.every = equations, list(equations.layers)
        self._random = torch.Generator().manual_seed(seed)
        shapes = [tuple(rows.weights(self.every[rows.index]).shape) for rows in layers]
        firsts = [0, *accumulate(groups * K for groups, K, _ in shapes)]
        self.layers = [
            Layer(rows, first, *shape, plain=not shared(rows, self.every), pattern=pattern)
            for rows, first, shape, pattern in zip(
                layers, firsts, shapes, patterns or [UNSTRUCTURED] * len(layers), strict=False
            )
        ]
        biased = [rows.biased for rows in layers]
        self._biases = True if all(biased) else False if not any(biased) else None
        numbers = (
            layer.d * layer.groups * layer.rows.positions(self.every[layer.rows.index])
            for layer in self.layers
        )
        away, longest = Distance(T, equations.returned), max(numbers, default=0)
        self.samples = Samples(self.every, u, T, away, inactive, workers, longest)
        self.place: Place | None = None
        self.price = 0.0
        self._moved = 0.0  # changes of the distance, each as a part of it, added up
        self._begin({})

    # Grams and steps are of the samples that are looked at; costs stay
    def _begin(self, costs: dict[int, Tensor]) -> None:
        # no more memory than the longest rows' features
        self._known = Known(Grams(self.samples.m * self._longest), costs)
        self._solved: dict[int, float] = {}  # `_moved` before a row's last step

    def _look_at(self, each_of: int) -> None:
        self.samples.look_at(each_of)
        self._begin(self._known.costs)

    @property
    def _longest(self) -> int:
        return max((layer.d for layer in self.layers), default=0)

    @property
    def equations(self) -> StateEquations:
        """The model."""
        return replace(self._start, hidden=tuple(self.every[:-1]), output=self.every[-1])

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
            fewer = self.samples.m // max(FEWER, PER_FEATURE * self._longest)
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
            if self.samples.each_of > 1 and len(budgets) < LAST:
                self._look_at(1)
            losing = LOSES * (now - (budgets or [budget])[0]) / max(now - place.tied, 1)
            self._drop_dead()
            self.sweep(now, step, min(losing, place.at_once))
            place.budgets, place.sweeps = budgets, place.sweeps + 1
            after(f"sweep {place.sweeps}")
        if not place.refits:
            self._drop_dead()
            if self.samples.each_of > 1:
                self._look_at(1)
            self._grow(budget - self.nonzeros())
        while place.refits < REFITS and room() >= 1:
            self.sweep(step=step)
            place.refits, place.sweeps = place.refits + 1, place.sweeps + 1
            after(f"sweep {place.sweeps}")

    def write(self) -> Kept:
        """Write down, between two sweeps of `match`, all that the next ones depend on.

        Returns:
            All but the equations.
        """
        kept = Kept()
        self.samples.write(kept)
        kept.tensors["random"] = self._random.get_state()
        kept.put_rows("costs", self._known.costs)
        self._known.grams.write(kept)
        kept.records |= {
            "place": None if self.place is None else vars(self.place),
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
        self.samples.read(kept)
        self._random.set_state(kept.tensors["random"])
        like = self.samples.parts[0].Y
        self._begin(kept.get_rows("costs", like))
        self._known.grams.read(kept, like)
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
        if budget is not None and (costs := self._known.costs):
            kept = spend([cost.cpu() for cost in costs.values()], max(budget - self._tied(), 0))
            keep = dict(zip(costs, kept, strict=True))
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
        known = number in self._known.costs or not measure
        return known and self._moved - self._solved[number] <= STILL

    def _blocks(self, layer: Layer, bias: bool) -> Iterator[Block]:
        features = self.samples.features(layer.rows, bias)
        for group in range(layer.groups):
            V = [part[group] for part in features]
            squares = [v.square().sum(1) if v.ndim == 2 else v.square().sum((0, 1)) for v in V]
            square = summed(squares).double().clamp_min(TINY)
            together = rows_together(layer.pattern)
            size = max(TOGETHER // together, 1) * together
            for start in range(0, layer.K, size):
                channels = slice(start, min(start + size, layer.K))
                yield Block(layer, group, channels, V, square)

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
            sums = [phi.derivative(part.Z[k]).abs().sum(0) for part in self.samples.parts]
            found.append(summed(sums) / self.samples.m)
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

    def _weights(self, layer: Layer) -> int:
        return int(layer.rows.weights(self.every[layer.rows.index]).count_nonzero())

    # weights that sweeps leave alone, because equations share them
    def _tied(self) -> int:
        return sum(self._weights(layer) for layer in self.layers if not layer.plain)

    def _prices(self, layer: Layer) -> Tensor:
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
                found[block.group, block.channels] = self._channels(block).gains()
            return found

        patterns = [layer.pattern for layer in plain.values()]
        self.every[:] = grown(self.equations, list(plain), gain, count, patterns)

    def _channels(self, block: Block) -> Channels:
        return Channels(block, self.samples, self._known, self._random)

    def _solve(
        self,
        block: Block,
        rows: Sequence[int],
        keep: dict[int, int],
        losing: float | None,
        price: Tensor | None,
    ) -> None:
        before = self.samples.distance
        still = self._channels(block).solve(rows, keep, losing, price)
        self._solved |= {block.first + k: self._moved for k in still}
        if before:
            self._moved += abs(self.samples.distance / before - 1)
