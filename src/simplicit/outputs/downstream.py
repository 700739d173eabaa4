"""All states of a model without feedback on some samples, and what one row does to its outputs.

With all other rows as they are, a change δ of row k's pre-activation moves the outputs by J δ,
where J goes through every state downstream. The distance of the outputs from the teacher's has
slope ∇ℓ and curvature F in the outputs, hence −g = J'∇ℓ and h = J'FJ in that pre-activation.

Samples are columns here: what is done is a few long vectors at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.calibration.structure import RowBlock
from simplicit.equations.phi import Phi
from simplicit.outputs.distance import temperature


@dataclass(frozen=True, eq=False)
class Move:
    """What a change of one row makes of the states downstream and of the outputs.

    Args:
        states: Rows of x, their new pre-activations and their new states.
        Y: New outputs, (q, m).
        distance: Of these outputs from the teacher's, summed over the samples.
    """

    states: list[tuple[slice, Tensor, Tensor]]
    Y: Tensor
    distance: float


class Downstream:
    """States and outputs of a model on some samples.

    Args:
        W: Weights of [Z Y] on V = [X U 1], (n + q, N), float32; whoever changes a row of them tells
            so by `accept`.
        blocks: Its layers in forward order, the outputs last.
        phis: φ of each hidden layer, in the same order.
        V: Features (N, m), float32; the first n rows, the states, are computed anew.
        T: The teacher's logits, (q, m), float32.
        variance: Of the teacher's outputs, summed over them.
        inactive: Weight of a sample where φ is flat, as a part of what it had if φ were not.
    """

    def __init__(
        self,
        W: Float[Tensor, "r N"],
        blocks: Sequence[RowBlock],
        phis: Sequence[Phi],
        V: Float[Tensor, "N m"],
        T: Float[Tensor, "q m"],
        variance: float,
        inactive: float,
    ) -> None:
        self.W, self.blocks, self.phis, self.inactive = W, blocks, phis, inactive
        self.n = blocks[-1].rows.start
        self.V, self.T, self.variance = V, T, variance
        self.temperature = temperature(variance)
        self.log_p = (T / self.temperature).log_softmax(0)
        self.Z = V.new_empty(self.n, V.shape[1])
        for block, phi in zip(blocks[:-1], phis, strict=True):
            self.Z[block.rows] = W[block.rows] @ V
            V[block.rows] = phi(self.Z[block.rows])
        self.Y = W[self.n :] @ V

    def distance(self, Y: Float[Tensor, "q m"]) -> float:
        """Measure how far outputs are from the teacher's, summed over the samples.

        Half of it is the squared error relative to the variance of the teacher's outputs, half the
        Kullback-Leibler divergence of the classes' probabilities (see `distance`).

        Args:
            Y: Outputs.

        Returns:
            The distance, 0 for the teacher's own.
        """
        square = (Y - self.T).square().sum() / self.variance
        log_p = (Y / self.temperature).log_softmax(0)
        divergence = (self.log_p.exp() * (self.log_p - log_p)).sum()
        return float(square / 4 + divergence / 2)

    def expand(self, k: int, index: int) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Expand the distance to second order in the pre-activation of row k.

        Args:
            k: A row of W.
            index: The block it is in.

        Returns:
            Curvature h (Gauss-Newton, at least 0) and downward slope g, of every sample.
        """
        tau = self.temperature
        p = (self.Y / tau).softmax(0)
        slope = (self.T - self.Y) / (2 * self.variance) + (self.log_p.exp() - p) / (2 * tau)
        if k >= self.n:
            j = k - self.n
            return 1 / (2 * self.variance) + p[j] * (1 - p[j]) / (2 * tau**2), slope[j]
        J = self._tangent(k, index)
        # about the mean: a difference of squares may be negative where p is nearly one class
        spread = ((J - (J * p).sum(0)).square() * p).sum(0)
        h = J.square().sum(0) / (2 * self.variance) + spread / (2 * tau**2)
        derivative = self.phis[index].derivative(self.Z[k])
        return h * derivative.square().clamp_min(self.inactive), derivative * (J * slope).sum(0)

    def moments(
        self, k: int, index: int, S: Int[Tensor, " s"]
    ) -> tuple[Float[Tensor, "s s"], Float[Tensor, " s"]]:
        """Sum the row's weighted Gram and its gradient over the samples.

        Args:
            k: A row of W.
            index: The block it is in.
            S: The features it uses.

        Returns:
            Σ h v v' and Σ g v, float64.
        """
        h, g = self.expand(k, index)
        V = self.V[S]
        return ((V * h) @ V.T).double(), (V @ g).double()

    def gains(self, k: int, index: int) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Sum, of every feature by itself, what a weight on it would do.

        Args:
            k: A row of W.
            index: The block it is in.

        Returns:
            Its slope Σ g v and its curvature Σ h v².
        """
        h, g = self.expand(k, index)
        return self.V @ g, self.V.square() @ h

    def move(self, k: int, index: int, S: Int[Tensor, " s"], change: Float[Tensor, " s"]) -> Move:
        """Follow a change of row k's weights to the outputs; nothing is changed yet.

        Args:
            k: A row of W.
            index: The block it is in.
            S: The features it uses.
            change: Of its weights on them.

        Returns:
            The states and outputs that would come of it.
        """
        dz = change @ self.V[S]
        if k >= self.n:
            Y = self.Y.clone()
            Y[k - self.n] += dz
            return Move([], Y, self.distance(Y))
        columns, moves, changed = [], [], []
        rows, dz = slice(k, k + 1), dz[None]
        for block, phi in zip(self.blocks[index:-1], self.phis[index:], strict=True):
            if columns:
                rows, dz = block.rows, self.W[block.rows][:, columns] @ torch.cat(moves)
            z = self.Z[rows] + dz
            changed.append((rows, z, phi(z)))
            moves.append(changed[-1][2] - self.V[rows])
            columns += range(rows.start, rows.stop)
        Y = self.Y + self.W[self.n :][:, columns] @ torch.cat(moves)
        return Move(changed, Y, self.distance(Y))

    def accept(self, move: Move) -> None:
        """Take over a move.

        Args:
            move: What `move` gave, of the row that W has now.
        """
        for rows, z, x in move.states:
            self.Z[rows], self.V[rows] = z, x
        self.Y = move.Y

    # the outputs' derivative in state k, through all states downstream, (q, m)
    def _tangent(self, k: int, index: int) -> Tensor:
        columns, tangents = [k], [torch.ones_like(self.Z[k : k + 1])]
        for block, phi in zip(self.blocks[index + 1 : -1], self.phis[index + 1 :], strict=True):
            dz = self.W[block.rows][:, columns] @ torch.cat(tangents)
            tangents.append(phi.derivative(self.Z[block.rows]) * dz)
            columns += range(block.rows.start, block.rows.stop)
        return self.W[self.n :][:, columns] @ torch.cat(tangents)
