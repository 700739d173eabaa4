"""Sweeps on the outputs: some rows after others, each by least squares on the network's outputs.

Matching states treats every row alike; the outputs do not. To second order in a change δ of a row's
pre-activations, the distance of the model's outputs from the teacher's is (see `downstream`)

    1/m Σ_s  ½ δ_s' J_s'F J_s δ_s − g_s' δ_s,    δ = V w − z,

so the row's weights are convex weighted least squares on the row's own Gram (Gauss-Newton by rows;
no labels, no step lengths). Between two sweeps the weights that cost the outputs least are
eliminated, over all rows together: here all costs are in one unit.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.calibration.rows import Rows, shared
from simplicit.equations.equation import Equation, Summand, Term
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.outputs.distance import Distance
from simplicit.outputs.downstream import Downstream, Expansion
from simplicit.outputs.path_norm import path_norm, prices, shrink
from simplicit.sparsity.budget import spend
from simplicit.sparsity.elimination import eliminate

DAMPING = 1e-3
"""Added to the diagonal of a row's Gram, relative to it. Of its largest entry, what rounding leaves
is added, too: where the outputs feel nothing, as of a bias of all keys of an attention, slope and
curvature are rounding errors."""

REFITS = 2
"""Sweeps at the end that leave the supports as they are."""

INACTIVE = 0.1
"""Weight of samples whose state is off, as a part of what it is when on."""

TOGETHER = 16
"""Channels between two exact passes through the layers behind them."""

HALVINGS = 4
"""Shorter steps tried where a refit would take the outputs further away."""

PARTS = 2
"""Parts of the samples that threads work on side by side; fixed, so that bits do not depend on how
many threads there are."""

Step = Callable[..., None]


@dataclass(frozen=True, eq=False)
class _Layer:
    rows: Rows
    first: int  # number of its first row among all rows
    groups: int
    K: int
    d: int
    plain: bool  # shares no weight with another equation


class Sweeps:
    """A model without feedback, matched on the outputs of its teacher.

    Args:
        equations: The model's equations.
        layers: Its rows.
        u: Calibration inputs, flattened (m, p).
        T: The teacher's outputs, (m, q).
        bias: Whether rows correct their biases.
        inactive: Weight of a sample where φ is flat, as a part of what it had if φ were not.
        workers: Threads that share the samples.
        seed: Of random combinations of the outputs, where there are many.

    Attributes:
        price: Price of the path norm, see `path_norm`; with one, rows also shrink.
    """

    def __init__(
        self,
        equations: StateEquations,
        layers: Sequence[Rows],
        u: Float[Tensor, "m p"],
        T: Float[Tensor, "m q"],
        bias: bool = True,
        inactive: float = INACTIVE,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        self._start, self.m, self.bias = equations, len(u), bias
        self.every: list[Equation] = list(equations.layers)
        distance = Distance(T)
        self.parts = [
            Downstream(self.every, part, t, distance, inactive)
            for part, t in zip(u.tensor_split(PARTS), T.tensor_split(PARTS), strict=True)
            if len(part)
        ]
        shapes = [tuple(rows.weights(self.every[rows.index]).shape) for rows in layers]
        firsts = [0, *accumulate(groups * K for groups, K, _ in shapes)]
        self.layers = [
            _Layer(rows, first, *shape, plain=not shared(rows, self.every))
            for rows, first, shape in zip(layers, firsts, shapes, strict=False)
        ]
        self._pool = ThreadPoolExecutor(max(1, min(workers, PARTS)))
        self._random = torch.Generator().manual_seed(seed)
        self.costs: dict[int, Tensor] = {}
        self.price = 0.0

    @property
    def equations(self) -> StateEquations:
        """The model."""
        return replace(self._start, hidden=tuple(self.every[:-1]), output=self.every[-1])

    @property
    def distance(self) -> float:
        """How far the outputs are from the teacher's, a mean over the samples."""
        return sum(part.distance(part.Y) for part in self.parts) / self.m

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
    ) -> None:
        """Go down to a budget in equal ratios, sweep by sweep, and refit.

        What states that are constant or that nothing reads had of the budget is spent again.

        Args:
            budget: Non-zeros to leave in all rows together; biases are not counted.
            sweeps: At least 4: the first, and `REFITS` at the end, remove nothing.
            step: Called after some rows with their number.
            after: Called after each sweep with its name.
        """
        start, falls = max(self.nonzeros(), 1), sweeps - REFITS - 1
        for index in range(falls + 1):
            self._drop_dead()
            self.sweep(round(start * (budget / start) ** (index / falls)), step)
            after(f"sweep {index + 1}")
        self._drop_dead()
        self._grow(budget - self.nonzeros())
        for index in range(REFITS):
            self.sweep(step=step)
            after(f"sweep {falls + 2 + index}")

    @torch.no_grad()
    def sweep(self, budget: int | None = None, step: Step = lambda *_: None) -> None:
        """Solve every row once, first layer first.

        Args:
            budget: Non-zeros to leave in all rows together; biases are not counted. The supports
                stay as they are without one. The first sweep with a budget finds what removals
                cost, and removes nothing yet.
            step: Called after some rows with their number.
        """
        keep: dict[int, int] = {}
        if budget is not None and self.costs:
            order = list(self.costs)
            tied = sum(self._weights(layer) for layer in self.layers if not layer.plain)
            kept = spend([self.costs[k].cpu() for k in order], max(budget - tied, 0))
            keep = dict(zip(order, kept, strict=True))
        for layer in self.layers:
            if not layer.plain:
                step(layer.groups * layer.K)
                continue
            price = self._prices(layer) if self.price else None
            features = self._each("features", layer.rows, self.bias)
            for group in range(layer.groups):
                for start in range(0, layer.K, TOGETHER):
                    channels = slice(start, min(start + TOGETHER, layer.K))
                    V = [part[group] for part in features]
                    own = None if price is None else price[group]
                    self._solve(layer, group, channels, V, keep, budget is not None, own)
                    step(channels.stop - channels.start)

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

    def _prices(self, layer: _Layer) -> Tensor:
        every = prices(self.equations, self.slopes())
        found = self.price * layer.rows.weights(every[layer.rows.index])
        return torch.nn.functional.pad(found, (0, int(self.bias)))

    # Constant states fold into the biases of their readers; states that nothing reads lose their
    # weights. Only matrices on whole samples: elsewhere a constant may be read at some positions.
    # Nor weights that equations share: they would be other ones in one of them. Nor weights that
    # are in no row: they stay as they are.
    def _drop_dead(self) -> None:
        hidden = range(len(self.every) - 1)
        uses = Counter(
            parameter for e in self.every for parameter in {term.parameter for term in e.terms}
        )

        learned = {
            id(self.every[layer.rows.index].terms[t])
            for layer in self.layers
            for t in layer.rows.terms
        }

        def own(part: Term | Summand) -> bool:
            if not _matrix(part) or id(part) not in learned:
                return False
            return not part.parameter or uses[part.parameter] == 1

        readers = {k: [] for k in hidden}
        for j, equation in enumerate(self.every):
            for part in (*equation.terms, *equation.fixed):
                if part.source in readers:
                    readers[part.source].append((j, part))
        simple = [
            k
            for k in hidden
            if isinstance(self.every[k].phi, Phi)
            and all(own(part) for part in (*self.every[k].terms, *self.every[k].fixed))
            and all(own(part) for _, part in readers[k])
        ]
        for k in simple:  # forward: a row that read constants only is one, too
            e = self.every[k]
            empty = ~torch.stack([t.weight.any(1) for t in e.terms]).any(0)
            bias = e.full_bias
            value = e.phi(torch.zeros_like(e.terms[0].weight[:, 0]) if bias is None else bias)
            if not self.bias:
                empty &= value == 0
            if bool(empty.any()):
                self._read(k, empty, value)
        for k in reversed(simple):  # backward: nor does what only such a row reads
            read = [
                term.weight.any(0)
                for j in range(k + 1, len(self.every))
                for term in self.every[j].terms
                if term.source == k
            ]
            unread = ~torch.stack(read).any(0) if read else None
            if unread is not None and bool(unread.any()):
                self.every[k] = _masked(self.every[k], ~unread[:, None])

    def _read(self, k: int, empty: Tensor, value: Tensor) -> None:
        for j in range(k + 1, len(self.every)):
            e = self.every[j]
            terms, bias = [], e.full_bias
            for term in e.terms:
                if term.source == k and bool(term.weight[:, empty].any()):
                    more = term.weight[:, empty] @ value[empty]
                    bias = more if bias is None else bias + more
                    weight = term.weight * ~empty
                    term = replace(term, map=replace(term.map, weight=weight))
                terms.append(term)
            self.every[j] = replace(e, terms=tuple(terms), bias=bias)

    # gives rows back the weights that would bring the outputs nearest, each by itself
    @torch.no_grad()
    def _grow(self, count: int) -> None:
        if count < 1:
            return
        tiny = torch.finfo(torch.float32).tiny
        alive = self._alive()
        gains: list[Tensor] = []
        for layer in self.layers:
            equation = self.every[layer.rows.index]
            W = layer.rows.weights(equation)
            gain = torch.zeros_like(W)
            if layer.plain:
                features = self._each("features", layer.rows, False)
                # a state without a row of its own is a constant, as the bias is
                sources = [alive.get(s, one) for s, one in self._ones(equation)]
                counts = (layer.rows.features(_bare(equation), sources) != 0).any(1)
                for group in range(layer.groups):
                    for start in range(0, layer.K, TOGETHER):
                        channels = slice(start, min(start + TOGETHER, layer.K))
                        parts = self._expansions(
                            layer, group, channels, [part[group] for part in features]
                        )
                        for k in range(channels.stop - channels.start):
                            slope, curvature = (
                                torch.stack(both).sum(0)
                                for both in zip(*(p.gains(k) for p in parts), strict=True)
                            )
                            found = slope.square() / curvature.clamp_min(tiny)
                            absent = (W[group, start + k] == 0) & counts[group]
                            gain[group, start + k] = found * absent
            gains.append(gain.flatten())
        flat = torch.cat(gains)
        best = flat.topk(min(count, flat.numel()))
        added = torch.zeros_like(flat)
        # a weight that is there and does nothing yet: the next sweep finds its value
        added[best.indices[best.values > 0]] = tiny
        for layer, more in zip(self.layers, added.split([len(g) for g in gains]), strict=True):
            if bool(more.any()):
                equation = self.every[layer.rows.index]
                W = layer.rows.weights(equation)
                W = torch.where(W == 0, more.view_as(W), W)
                self.every[layer.rows.index] = layer.rows.put(equation, W, W.new_zeros(W.shape[:2]))

    # for every hidden layer of matrices, which states have a row of their own
    def _alive(self) -> dict[int, Tensor]:
        found = {}
        for k, e in enumerate(self.every[:-1]):
            if e.terms and all(_matrix(part) for part in (*e.terms, *e.fixed)):
                used = torch.stack([term.weight.any(1) for term in e.terms]).any(0)
                found[k] = used[None].to(e.terms[0].weight)
        return found

    def _ones(self, equation: Equation) -> list[tuple[int, Tensor]]:
        like = self._start.like
        sizes = [*(e.states for e in self.every[:-1]), self._start.p]
        keys = [*range(len(sizes) - 1), -1]
        return [(k, like.new_ones(1, n)) for k, n in zip(keys, sizes, strict=True)]

    # asks every part of the samples the same
    def _each(self, question: str, *arguments: Any) -> list[Any]:
        return list(self._pool.map(lambda part: getattr(part, question)(*arguments), self.parts))

    def _expansions(
        self, layer: _Layer, group: int, channels: slice, V: Sequence[Tensor]
    ) -> list[Expansion]:
        seeds = torch.randint(2**31, (PARTS,), generator=self._random).tolist()

        def expand(part: Downstream, own: Tensor, seed: int) -> Expansion:
            generator = torch.Generator().manual_seed(seed)
            return part.expand(layer.rows, group, channels, own, generator)

        return list(self._pool.map(expand, self.parts, V, seeds))

    # some channels of a layer: each to second order, then all together exactly
    def _solve(
        self,
        layer: _Layer,
        group: int,
        channels: slice,
        V: Sequence[Tensor],
        keep: dict[int, int],
        measure: bool,
        price: Tensor | None,
    ) -> None:
        equation = self.every[layer.rows.index]
        W = layer.rows.weights(equation)
        parts = self._expansions(layer, group, channels, V)
        change = W.new_zeros(channels.stop - channels.start, layer.d + int(self.bias))
        squares = [v.square().sum(1) if v.ndim == 2 else v.square().sum((0, 1)) for v in V]
        size = torch.stack(squares).sum(0).double().clamp_min(torch.finfo(torch.float32).tiny)
        before, removed = 0.0, 0
        for k, row in enumerate(W[group, channels]):
            row = torch.nn.functional.pad(row, (0, int(self.bias)))
            free = torch.zeros_like(row, dtype=torch.bool)
            free[layer.d :] = True
            S = ((row != 0) | free).nonzero()[:, 0]
            if not len(S):
                continue
            number = layer.first + group * layer.K + channels.start + k
            old = row[S].double()
            sums = self._pool.map(lambda part, k=k, S=S: part.moments(k, S), parts)
            H, slope = (torch.stack(both).sum(0) / self.m for both in zip(*sums, strict=True))
            cost = torch.zeros_like(old) if price is None else price[channels][k, S].double()
            # A feature may move no output, as the bias of attention's keys. What is left of its
            # curvature is rounding, relative to the others' in units of the features' own size.
            rounding = torch.finfo(W.dtype).eps * size[S] * (H.diagonal() / size[S]).max()
            H.diagonal().mul_(1 + DAMPING).add_(rounding + torch.finfo(torch.float32).tiny)
            w, own, gone = _row(H, slope, old, cost, free[S], keep.get(number), measure)
            if own is not None:
                self.costs[number] = own
            removed += gone
            before += float(cost @ old.abs())
            change[k, S] = (w - old).to(change)
            for part in parts:
                part.change(k, S, change[k, S])
        self._take(layer, group, channels, parts, change, before, removed > 0, price)

    # The channels' change, or a shorter one where it would take the outputs further away. Weights
    # that make room for the budget go in any case; of the lengths of the rest the best is taken.
    def _take(
        self,
        layer: _Layer,
        group: int,
        channels: slice,
        parts: Sequence[Expansion],
        change: Tensor,
        before: float,
        removed: bool,
        price: Tensor | None,
    ) -> None:
        equation, index = self.every[layer.rows.index], layer.rows.index
        W = layer.rows.weights(equation).clone()
        old, d = W[group, channels].clone(), layer.d
        gone = torch.nn.functional.pad((change[:, :d] == -old) & (old != 0), (0, int(self.bias)))
        most, best = self.distance + before, None
        for length in (*(0.5**k for k in range(HALVINGS)), *([0.0] if removed else [])):
            step = torch.where(gone, change, length * change)

            def move(down: Downstream, own: Expansion, step: Tensor = step) -> Any:
                return down.move(
                    index, layer.rows.place(equation, group, channels, own.shift(step))
                )

            moves = list(self._pool.map(move, self.parts, parts))
            new = old + step[:, :d]
            worth = 0.0 if price is None else float((price[channels][:, :d] * new.abs()).sum())
            found = sum(m.distance for m in moves) / self.m + worth
            good = found <= most
            if good or (removed and (best is None or found < best[0])):
                best = found, step, moves
            if good:
                break
        if best is None:
            return
        _, step, moves = best
        W[group, channels] = old + step[:, :d]
        shift = W.new_zeros(W.shape[:2])
        shift[group, channels] = step[:, d:].sum(1)
        self.every[index] = layer.rows.put(equation, W, shift)
        for down, accepted in zip(self.parts, moves, strict=True):
            down.accept(accepted)


# One row: refitted, or shrunk at a price; with `measure` the weights that go, and what further
# removals would cost. A row loses at most half of its weights in a sweep, so the cost of the other
# half need not be known.
def _row(
    H: Tensor,
    slope: Tensor,
    old: Tensor,
    price: Tensor,
    free: Tensor,
    keep: int | None,
    measure: bool,
) -> tuple[Tensor, Tensor | None, int]:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    w = old + inverse @ slope
    if bool(price.any()):
        w = shrink(H, H @ old + slope, old, price)
    if not measure:
        return w, None, 0
    weights = int((~free).sum())
    keep = weights if keep is None else min(keep, weights)
    (order,), (cost,) = eliminate(inverse, w[None], free, keep // 2)
    count = weights - keep
    costs = torch.cat([cost[count:], cost.new_full((keep // 2,), torch.inf)])
    gone = order[:count]
    if count:
        # what stays takes over from what goes, all at once
        w = w - inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], w[gone])
        w[gone] = 0.0
    return w, costs, count


def _matrix(part: Term | Summand) -> TypeGuard[Term]:
    return isinstance(part, Term) and part.is_matrix and part.fixed is None


def _masked(equation: Equation, mask: Tensor) -> Equation:
    terms = tuple(
        replace(term, map=replace(term.map, weight=term.weight * mask)) for term in equation.terms
    )
    return replace(equation, terms=terms)


def _bare(equation: Equation) -> Equation:
    return replace(equation, terms=tuple(replace(term, offset=None) for term in equation.terms))
