"""Joint matching: one row after another, each by least squares on the network's outputs.

Matching states treats every row alike; what counts is the output. With all other rows as they are,
a change δ of row i's pre-activation moves the outputs by J δ, where J goes through every state
downstream. So row i's weights minimise, to second order, the distance of the model's outputs from
the teacher's:

    min_w  1/m Σ_s  ½ h_s δ_s² − g_s δ_s,    δ = V w − z_i,    h = J'FJ,    g = −J'∇ℓ

with ∇ℓ, F the slope and curvature of that distance: convex weighted least squares on the row's own
Gram (Gauss-Newton by rows; no labels, no step lengths). Between two sweeps the weights that cost
the outputs least are eliminated, over all rows together: here all costs are in one unit.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .budget import spend
from .elimination import eliminate
from .match import RowBlock
from .path_norm import path_norm, prices, shrink
from .phi import Phi

DAMPING = 1e-3
"""Added to the diagonal of a row's Gram, relative to it."""

REFITS = 2
"""Sweeps at the end that leave the supports as they are."""

BYTES = 24.0
"""Per sample and feature: float64 as collected and as V, float32 as kept and as worked on."""

HALVINGS = 4
"""Shorter steps tried where a refit would take the outputs further away."""

Step = Callable[..., None]
Changed = list[tuple[slice, Tensor, Tensor]]


class JointMatching:
    """A model without feedback and all its states on the calibration inputs, features-major.

    Args:
        W: Weights of [Z Y] on V = [X U 1], (n + q, N).
        blocks: Its layers in forward order, the outputs last.
        phis: φ of each hidden layer, in the same order.
        V: Features (m, N); the first n columns, the states, are computed anew.
        Y: The teacher's logits, (m, q).
        free: Features that are never removed and do not count, (N,).
        inactive: Weight of a sample where φ is flat, as a part of what it had if φ were not.

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
    ) -> None:
        self.m = len(V)
        self.blocks, self.phis, self.free, self.inactive = blocks, phis, free, inactive
        self.n = blocks[-1].rows.start
        self.W, self.V = W.float(), V.T.float().contiguous()
        self.Z = self.V.new_empty(self.n, self.m)
        for block, phi in zip(blocks[:-1], phis, strict=True):
            self.Z[block.rows] = self.W[block.rows] @ self.V
            self.V[block.rows] = phi(self.Z[block.rows])
        self.Y = self.W[self.n :] @ self.V
        self.T = Y.T.float().contiguous()
        self.log_p = self.T.log_softmax(0)
        self.variance = float(self.T.var(1, correction=0).sum()) or 1.0
        self.costs: dict[int, Tensor] = {}
        self.level = 0.0
        self.down = self.up = self.V.new_zeros(0).double()

    def distance(self, Y: Tensor) -> float:
        """Measure how far outputs are from the teacher's, as a mean over the samples.

        Half of it is the squared error relative to the variance of the teacher's outputs, half the
        Kullback-Leibler divergence of the classes' probabilities.

        Args:
            Y: Outputs (q, m).

        Returns:
            The distance, 0 for the teacher's own.
        """
        square = (Y - self.T).square().sum(0).mean() / self.variance
        divergence = (self.log_p.exp() * (self.log_p - Y.log_softmax(0))).sum(0).mean()
        return float(square / 4 + divergence / 2)

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
        parts = [
            phi.derivative(self.Z[block.rows]).abs().mean(1)
            for block, phi in zip(self.blocks, self.phis, strict=False)
        ]
        return torch.cat(parts[::-1])

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
            value = self.V[empty, 0]
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
        gains = torch.zeros_like(self.W)
        for index, block in enumerate(self.blocks):
            for k in range(block.rows.start, block.rows.stop):
                h, g = self._expand(k, index)
                curvature = (self.V.square() @ h).clamp_min(torch.finfo(torch.float32).tiny)
                gain = (self.V @ g).square() / curvature
                absent = (self.W[k] == 0) & ~self.free
                gains[k, block.columns] = (gain * absent)[block.columns]
        best = gains.flatten().topk(min(count, gains.numel()))
        added = best.indices[best.values > 0]
        # a weight that is there and does nothing yet: the next sweep finds its value
        self.W.view(-1)[added] = torch.finfo(torch.float32).tiny

    def _solve(self, k: int, index: int, keep: int | None, measure: bool) -> None:
        h, g = self._expand(k, index)
        columns = self.blocks[index].columns
        S = columns[(self.W[k, columns] != 0) | self.free[columns]]
        V, old = self.V[S], self.W[k, S].double()
        H = ((V * h) @ V.T).double() / self.m
        small = 1e-9 * float(H.diagonal().mean()) + torch.finfo(torch.float32).tiny
        H.diagonal().mul_(1 + DAMPING).add_(small)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
        moment = (V @ g).double() / self.m
        w, price = old + inverse @ moment, torch.zeros_like(old)
        if self.level:
            price = self.level * self.down[k] * self.up[S]
            w = shrink(H, H @ old + moment, old, price)
        gone = S[:0]
        if measure:
            gone, self.costs[k] = _removals(inverse, w, self.free[S], keep)
        if len(gone):
            # what stays takes over from what goes, all at once
            w = w - inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], w[gone])
            w[gone] = 0.0
        # what makes room for the budget may take the outputs further away, a refit may not
        most = torch.inf if len(gone) else self.distance(self.Y) + float(price @ old.abs())
        change = w - old
        for _ in range(HALVINGS):
            changed, Y = self._downstream(k, index, change.float() @ V)
            if self.distance(Y) + float(price @ (old + change).abs()) <= most:
                for rows, z, x in changed:
                    self.Z[rows], self.V[rows] = z, x
                self.Y = Y
                self.W[k, S] = (old + change).float()
                return
            change = change / 2

    # curvature h and downward slope g of the distance in row k's pre-activation, (m,) each
    def _expand(self, k: int, index: int) -> tuple[Tensor, Tensor]:
        p = self.Y.softmax(0)
        slope = (self.T - self.Y) / (2 * self.variance) + (self.log_p.exp() - p) / 2
        if k >= self.n:
            j = k - self.n
            return 1 / (2 * self.variance) + p[j] * (1 - p[j]) / 2, slope[j]
        J = self._tangent(k, index)
        square = J.square()
        spread = (square * p).sum(0) - (J * p).sum(0).square()
        h = square.sum(0) / (2 * self.variance) + spread / 2
        derivative = self.phis[index].derivative(self.Z[k])
        return h * derivative.square().clamp_min(self.inactive), derivative * (J * slope).sum(0)

    # the outputs' derivative in state k, through all states downstream, (q, m)
    def _tangent(self, k: int, index: int) -> Tensor:
        columns, tangents = [k], [torch.ones_like(self.Z[k : k + 1])]
        for block, phi in zip(self.blocks[index + 1 : -1], self.phis[index + 1 :], strict=True):
            dz = self.W[block.rows][:, columns] @ torch.cat(tangents)
            tangents.append(phi.derivative(self.Z[block.rows]) * dz)
            columns += range(block.rows.start, block.rows.stop)
        return self.W[self.n :][:, columns] @ torch.cat(tangents)

    # what a change of row k's pre-activation makes of the states downstream and of the outputs
    def _downstream(self, k: int, index: int, dz: Tensor) -> tuple[Changed, Tensor]:
        if k >= self.n:
            Y = self.Y.clone()
            Y[k - self.n] += dz
            return [], Y
        columns, moves, changed = [], [], []
        rows, dz = slice(k, k + 1), dz[None]
        for block, phi in zip(self.blocks[index:-1], self.phis[index:], strict=True):
            if columns:
                rows, dz = block.rows, self.W[block.rows][:, columns] @ torch.cat(moves)
            z = self.Z[rows] + dz
            changed.append((rows, z, phi(z)))
            moves.append(changed[-1][2] - self.V[rows])
            columns += range(rows.start, rows.stop)
        return changed, self.Y + self.W[self.n :][:, columns] @ torch.cat(moves)


# The weights that go, and what further removals would cost. A row loses at most half of its
# weights in a sweep, so the cost of the other half need not be known.
def _removals(inverse: Tensor, w: Tensor, free: Tensor, keep: int | None) -> tuple[Tensor, Tensor]:
    weights = int((~free).sum())
    keep = weights if keep is None else min(keep, weights)
    (order,), (cost,) = eliminate(inverse, w[None], free, keep // 2)
    gone = weights - keep
    return order[:gone], torch.cat([cost[gone:], cost.new_full((keep // 2,), torch.inf)])
