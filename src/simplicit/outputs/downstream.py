"""All states of a model without feedback on some samples, and how rows move its outputs.

With all other layers as they are, a change δ of a row's pre-activations moves the outputs by J δ,
where J goes through every state downstream. The distance of the outputs from the teacher's has
slope ∇ℓ and curvature F in the outputs, hence −g = J'∇ℓ and J'FJ in those pre-activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.equations.equation import Equation, Term
from simplicit.equations.phi import Phi
from simplicit.outputs.distance import Distance
from simplicit.outputs.expansion import Expansion

EXACT = 16
"""Most outputs whose derivatives are all computed; of more, random combinations."""

PROBES = 4
"""Random combinations of the outputs a sample."""


Changed = tuple[int, Tensor | None, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Move:
    """The states and outputs that a change of one layer leads to.

    Args:
        states: Index of a layer, which of its pre-activations change (None: all), their new values
            and those of their states.
        Y: New outputs, (m, q).
        distance: Of these outputs from the teacher's, summed over the samples.
    """

    states: list[Changed]
    Y: Tensor
    distance: float


class Downstream:
    """States and outputs of a model on some samples.

    Args:
        layers: Its equations in forward order, the outputs last. They are read anew at every call;
            call `accept` after changing one.
        u: Inputs, flattened (m, p).
        T: The teacher's outputs (m, q).
        distance: Distance to them.
        inactive: Weight of a sample where φ is flat, as a part of what it had if φ were not.

    Attributes:
        distance: How far the outputs are from the teacher's, summed over the samples.
    """

    def __init__(
        self,
        layers: Sequence[Equation],
        u: Float[Tensor, "m p"],
        T: Float[Tensor, "m q"],
        distance: Distance,
        inactive: float,
    ) -> None:
        self.layers, self.u, self.T = layers, u, T
        self._distance, self.inactive = distance, inactive
        self.Z: list[Tensor] = []
        self.X: list[Tensor] = []
        with torch.no_grad():
            for equation in layers[:-1]:
                self.Z.append(equation.preactivation([*self.X, u]))
                self.X.append(equation.phi(self.Z[-1]))
            self.Y = layers[-1].preactivation([*self.X, u])
            self.distance = self._far(self.Y)

    def features(self, rows: Rows, bias: bool) -> list[Tensor]:
        """Compute what a layer's rows read.

        Args:
            rows: The rows.
            bias: Whether a one is the last feature.

        Returns:
            Features of each group, (d, m) for rows of one position, (m, positions, d) otherwise.
        """
        equation = self.layers[rows.index]
        found = []
        for V in rows.features(equation, [*self.X, self.u]):
            V = F.pad(V, (0, int(bias)), value=1.0)
            single = rows.positions(equation) == 1
            found.append(V.T.contiguous() if single else V.unflatten(0, (len(self.u), -1)))
        return found

    def expand(
        self, rows: Rows, group: int, channels: slice, V: Tensor, generator: torch.Generator
    ) -> Expansion:
        """Expand the distance to second order in the pre-activations of some channels.

        Args:
            rows: Rows of the layer.
            group: The channels' group.
            channels: Which channels of it.
            V: The group's features.
            generator: Of random combinations, where there are many outputs.

        Returns:
            The expansion.
        """
        index, Y, distance = rows.index, self.Y, self._distance
        phi, q = self.layers[index].phi, Y.shape[1]
        places = rows.places(self.layers[index], group, channels)
        last = index == len(self.X)
        exact = q <= EXACT or last
        vectors = [distance.slope(Y, self.T)]
        if not last:
            if exact:
                chosen = torch.eye(q, dtype=Y.dtype, device=Y.device).expand(len(Y), q, q)
            else:
                chosen = distance.random(Y, PROBES, generator) / PROBES**0.5
            vectors += list(chosen.unbind(2))
        own = places.flatten()
        slopes = [
            slope.unflatten(1, places.shape).transpose(0, 1)
            for slope in self._slopes(index, vectors, own)
        ]
        if last:
            J = F.one_hot(places, q).to(Y).mT[:, None].expand(-1, len(Y), -1, -1)
        else:
            J = torch.stack(slopes[1:], 2)
        z = (Y if last else self.Z[index])[:, own].unflatten(1, places.shape).transpose(0, 1)
        elementwise = phi if isinstance(phi, Phi) and not last else None
        curvature = distance.curvature(Y) if exact else None
        return Expansion(V, J, slopes[0], z, elementwise, curvature, self.inactive, own)

    # derivatives of linear functions of the outputs in some states of a layer, or in
    # pre-activations where φ is not elementwise
    def _slopes(self, index: int, vectors: list[Tensor], own: Tensor) -> list[Tensor]:
        if index == len(self.X):
            return [v[:, own] for v in vectors]
        with torch.enable_grad():
            start = torch.zeros_like(self.Z[index][:, own], requires_grad=True)
            if isinstance(self.layers[index].phi, Phi):
                Y = self._follow(index, start, own, [])
            else:
                x = self.layers[index].phi(self.Z[index].index_add(1, own, start))
                Y = self._follow(index, x - self.X[index], None, [])
            if not Y.requires_grad:
                return [torch.zeros_like(start) for _ in vectors]
            last = len(vectors) - 1
            return [
                torch.autograd.grad(Y, start, v, retain_graph=k < last, materialize_grads=True)[0]
                for k, v in enumerate(vectors)
            ]

    # outputs when some states of a layer, or all, change; what changes on the way is written down
    def _follow(self, index: int, dx: Tensor, own: Tensor | None, states: list[Changed]) -> Tensor:
        change, Y = {index: dx}, self.Y
        for j, equation in enumerate(self.layers[index + 1 :], index + 1):
            parts = []
            for part in (*equation.terms, *equation.fixed):
                if part.source not in change:
                    continue
                s = change[part.source]
                if part.source == index and own is not None:
                    if isinstance(part, Term) and part.is_matrix and part.fixed is None:
                        parts.append(s @ part.weight[:, own].T)
                        continue
                    s = torch.zeros_like(self.X[index]).index_add(1, own, s)
                fixed = part.fixed if isinstance(part, Term) else None
                parts.append(part.map(s if fixed is None else fixed(s)))
            if not parts:
                continue
            dz = sum(parts[1:], parts[0])
            if j == len(self.X):
                Y = self.Y + dz
                break
            z = self.Z[j] + dz
            x = equation.phi(z)
            states.append((j, None, z, x))
            change[j] = x - self.X[j]
        return Y

    @torch.no_grad()
    def move(
        self,
        index: int,
        dz: Float[Tensor, "m places"],
        own: Int[Tensor, " places"] | None = None,
    ) -> Move:
        """Follow a change of a layer's pre-activations to the outputs; nothing is changed yet.

        Args:
            index: The layer.
            dz: The change.
            own: Which pre-activations; all without.

        Returns:
            The states and outputs that come of it.
        """
        if index == len(self.X):
            Y = self.Y + dz if own is None else self.Y.index_add(1, own, dz)
            return Move([], Y, self._far(Y))
        phi, Z, X = self.layers[index].phi, self.Z[index], self.X[index]
        if own is not None and not isinstance(phi, Phi):
            dz, own = torch.zeros_like(Z).index_add(1, own, dz), None
        z, x = (Z, X) if own is None else (Z[:, own], X[:, own])
        states: list[Changed] = [(index, own, z + dz, phi(z + dz))]
        Y = self._follow(index, states[0][3] - x, own, states)
        return Move(states, Y, self._far(Y))

    def accept(self, move: Move) -> None:
        """Take over a move.

        Args:
            move: What `move` gave, of the layer that the model has now.
        """
        for index, own, z, x in move.states:
            if own is None:
                self.Z[index], self.X[index] = z, x
            else:
                self.Z[index][:, own], self.X[index][:, own] = z, x
        self.Y, self.distance = move.Y, move.distance

    def _far(self, Y: Tensor) -> float:
        return float(self._distance(Y, self.T).sum())
