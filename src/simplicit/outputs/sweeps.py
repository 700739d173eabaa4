"""Joint matching: one row after another, each by least squares on the network's outputs.

Matching states treats every row alike; what counts is the output. To second order in a change δ of
row i's pre-activation, the distance of the model's outputs from the teacher's is (see `downstream`)

    1/m Σ_s  ½ h_s δ_s² − g_s δ_s,    δ = V w − z_i,

so row i's weights are convex weighted least squares on the row's own Gram (Gauss-Newton by rows; no
labels, no step lengths). Between two sweeps the weights that cost the outputs least are eliminated,
over all rows together: here all costs are in one unit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simplicit.calibration.structure import RowBlock
from simplicit.equations.phi import Phi
from simplicit.outputs.downstream import Downstream
from simplicit.outputs.path_norm import path_norm, prices, shrink
from simplicit.sparsity.budget import spend
from simplicit.sparsity.elimination import eliminate

DAMPING = 1e-3
"""Added to the diagonal of a row's Gram, relative to it."""

REFITS = 2
"""Sweeps at the end that leave the supports as they are."""

BYTES = 24.0
"""Per sample and feature: float64 as collected and as V, float32 as kept and as worked on."""

INACTIVE = 0.1
"""Weight of samples whose state is off, as a part of what it is when on."""

HALVINGS = 4
"""Shorter steps tried where a refit would take the outputs further away."""

PARTS = 2
"""Parts of the samples that threads work on side by side; fixed, so that bits do not depend on how
many threads there are."""

Step = Callable[..., None]


class JointMatching:
    """A model without feedback, matched on the outputs of its teacher.

    Args:
        W: Weights of [Z Y] on V = [X U 1], (n + q, N).
        blocks: Its layers in forward order, the outputs last.
        phis: φ of each hidden layer, in the same order.
        V: Features (m, N); the first n columns, the states, are computed anew.
        Y: The teacher's logits, (m, q).
        free: Features that are never removed and do not count, (N,).
        inactive: Weight of a sample where φ is flat, as a part of what it had if φ were not.
        workers: Threads that share the samples.

    Attributes:
        level: Price of the path norm, see `path_norm`; with one, rows also shrink.
    """

    def __init__(
        self,
        W: Float[Tensor, "r N"],
        blocks: Sequence[RowBlock],
        phis: Sequence[Phi],
        V: Float[Tensor, "m N"],
        Y: Float[Tensor, "m q"],
        free: Bool[Tensor, " N"],
        inactive: float,
        workers: int = 1,
    ) -> None:
        self.m, self.W = len(V), W.float()
        self.blocks, self.free = blocks, free
        variance = float(Y.float().var(0, correction=0).sum()) or 1.0
        self.parts = [
            Downstream(
                self.W, blocks, phis, v.T.float().contiguous(), y.T.float().contiguous(),
                variance, inactive,
            )
            for v, y in zip(V.tensor_split(PARTS), Y.tensor_split(PARTS), strict=True)
        ]  # fmt: skip
        self._pool = ThreadPoolExecutor(max(1, min(workers, PARTS)))
        self.costs: dict[int, Tensor] = {}
        self.level = 0.0
        self.down = self.up = self.W.new_zeros(0).double()

    @property
    def distance(self) -> float:
        """How far the outputs are from the teacher's, a mean over the samples."""
        return sum(part.distance(part.Y) for part in self.parts) / self.m

    def match(self, budget: int, sweeps: int, step: Step = lambda *_: None) -> None:
        """Go down to a budget in equal ratios, sweep by sweep, and refit.

        What states that are constant or that nothing reads had of the budget is spent again.

        Args:
            budget: Non-zeros to leave in all rows together; free features are not counted.
            sweeps: At least 4: the first, and `REFITS` at the end, remove nothing.
            step: Called after each row.
        """
        start, falls = max(self.nonzeros(), 1), sweeps - REFITS - 1
        for index in range(falls + 1):
            self._drop_dead()
            self.sweep(round(start * (budget / start) ** (index / falls)), step)
        self._drop_dead()
        self._grow(budget - self.nonzeros())
        for _ in range(REFITS):
            self.sweep(step=step)

    def sweep(self, budget: int | None = None, step: Step = lambda *_: None) -> None:
        """Solve every row once, first layer first.

        Args:
            budget: Non-zeros to leave in all rows together; free features are not counted. The
                supports stay as they are without one. The first sweep with a budget finds what
                removals cost, and removes nothing yet.
            step: Called after each row.
        """
        order = [k for b in self.blocks for k in range(b.rows.start, b.rows.stop)]
        keep: dict[int, int] = {}
        if budget is not None and self.costs:
            kept = spend([self.costs[k].cpu() for k in order], budget)
            keep = dict(zip(order, kept, strict=True))
        for index, block in enumerate(self.blocks):
            if self.level:
                self.down, self.up = prices(self.W, self.slopes(), self.free)
            for k in range(block.rows.start, block.rows.stop):
                self._solve(k, index, keep.get(k), measure=budget is not None)
                step(1)

    def slopes(self) -> Float[Tensor, " n"]:
        """Average the slope of φ over the samples.

        Returns:
            One number a state.
        """
        states = []
        for block, phi in zip(self.blocks, self.parts[0].phis, strict=False):
            slopes = [phi.derivative(part.Z[block.rows]).abs().sum(1) for part in self.parts]
            states.append(torch.stack(slopes).sum(0) / self.m)
        return torch.cat(states[::-1])

    @property
    def outputs(self) -> Float[Tensor, "m q"]:
        """The model's outputs on the samples."""
        return torch.cat([part.Y for part in self.parts], 1).T

    def path_norm(self) -> float:
        """Sum the products of |weights| over all paths, as the samples pass them on average.

        Returns:
            S of `path_norm`.
        """
        return path_norm(self.W, self.slopes(), self.free)

    def nonzeros(self) -> int:
        """Count the weights of features that are not free.

        Returns:
            Their number.
        """
        return int(torch.count_nonzero(self.W[:, ~self.free]))

    # what reads a state that is constant has it in its bias; what nothing reads has no weights
    def _drop_dead(self) -> None:
        counted, one = ~self.free, self.free.nonzero()[:, 0]
        for block in self.blocks[:-1]:  # forward: a row that read constants only is one, too
            empty = (self.W[block.rows][:, counted] == 0).all(1).nonzero()[:, 0] + block.rows.start
            value = self.parts[0].V[empty, 0]
            if len(one):
                self.W[:, one[0]] += self.W[:, empty] @ value
            else:
                empty = empty[value == 0]
            self.W[:, empty] = 0.0
        for block in reversed(self.blocks[:-1]):  # backward: nor does what only such a row reads
            unread = (self.W[:, block.rows] == 0).all(0).nonzero()[:, 0] + block.rows.start
            self.W[unread[:, None], counted.nonzero()[:, 0]] = 0.0

    # gives rows back the weights that would bring the outputs nearest, each by itself
    def _grow(self, count: int) -> None:
        if count < 1:
            return
        tiny = torch.finfo(torch.float32).tiny
        gains, counts = torch.zeros_like(self.W), ~self.free
        # a state without a row of its own is a constant, as the bias is
        states = slice(0, len(self.parts[0].Z))
        counts[states] &= (self.W[states][:, ~self.free] != 0).any(1)
        for index, block in enumerate(self.blocks):
            for k in range(block.rows.start, block.rows.stop):
                slope, curvature = self._sum("gains", k, index)
                gain = slope.square() / curvature.clamp_min(tiny)
                absent = (self.W[k] == 0) & counts
                gains[k, block.columns] = (gain * absent)[block.columns]
        best = gains.flatten().topk(min(count, gains.numel()))
        added = best.indices[best.values > 0]
        # a weight that is there and does nothing yet: the next sweep finds its value
        self.W.view(-1)[added] = tiny

    # asks every part of the samples the same
    def _each(self, question: str, *arguments: Any) -> list[Any]:
        return list(self._pool.map(lambda part: getattr(part, question)(*arguments), self.parts))

    def _sum(self, question: str, *arguments: Any) -> list[Tensor]:
        answers = zip(*self._each(question, *arguments), strict=True)
        return [torch.stack(parts).sum(0) for parts in answers]

    def _solve(self, k: int, index: int, keep: int | None, measure: bool) -> None:
        columns = self.blocks[index].columns
        S = columns[(self.W[k, columns] != 0) | self.free[columns]]
        old = self.W[k, S].double()
        H, slope = (t / self.m for t in self._sum("moments", k, index, S))
        H.diagonal().mul_(1 + DAMPING).add_(torch.finfo(torch.float32).tiny)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
        w, price = old + inverse @ slope, torch.zeros_like(old)
        if self.level:
            price = self.level * self.down[k] * self.up[S]
            w = shrink(H, H @ old + slope, old, price)
        gone = S[:0]
        if measure:
            gone, self.costs[k] = _removals(inverse, w, self.free[S], keep)
        if len(gone):
            # what stays takes over from what goes, all at once
            w = w - inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], w[gone])
            w[gone] = 0.0
        # what makes room for the budget may take the outputs further away, a refit may not
        most = torch.inf if len(gone) else self.distance + float(price @ old.abs())
        change = w - old
        for _ in range(HALVINGS):
            moves = self._each("move", k, index, S, change.float())
            distance = sum(move.distance for move in moves) / self.m
            if distance + float(price @ (old + change).abs()) <= most:
                self.W[k, S] = (old + change).float()
                for part, move in zip(self.parts, moves, strict=True):
                    part.accept(move)
                return
            change = change / 2


# The weights that go, and what further removals would cost. A row loses at most half of its
# weights in a sweep, so the cost of the other half need not be known.
def _removals(inverse: Tensor, w: Tensor, free: Tensor, keep: int | None) -> tuple[Tensor, Tensor]:
    weights = int((~free).sum())
    keep = weights if keep is None else min(keep, weights)
    (order,), (cost,) = eliminate(inverse, w[None], free, keep // 2)
    gone = weights - keep
    return order[:gone], torch.cat([cost[gone:], cost.new_full((keep // 2,), torch.inf)])
