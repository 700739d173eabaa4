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
from simplicit.equations.equation import Equation
from simplicit.equations.phi import Phi
from simplicit.outputs.distance import Distance

EXACT = 16
"""Most outputs whose derivatives are all computed; of more, random combinations."""

PROBES = 4
"""Random combinations of the outputs a sample."""


@dataclass(frozen=True, eq=False)
class Move:
    """The states and outputs that a change of one layer leads to.

    Args:
        states: Index of a layer, its new pre-activations and its new states.
        Y: New outputs, (m, q).
        distance: Of these outputs from the teacher's, summed over the samples.
    """

    states: list[tuple[int, Tensor, Tensor]]
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

    def distance(self, Y: Float[Tensor, "m q"]) -> float:
        """Measure how far outputs are from the teacher's, summed over the samples.

        Args:
            Y: Outputs.

        Returns:
            The distance (see `distance`), 0 for the teacher's own.
        """
        return float(self._distance(Y, self.T).sum())

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
    ) -> "Expansion":
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
        equation, phi = self.layers[index], self.layers[index].phi
        q = Y.shape[1]
        exact = q <= EXACT or index == len(self.X)
        down = distance.slope(Y, self.T)
        vectors = [down]
        if index < len(self.X):
            if exact:
                chosen = torch.eye(q, dtype=Y.dtype, device=Y.device).expand(len(Y), q, q)
            else:
                chosen = distance.random(Y, PROBES, generator) / PROBES**0.5
            vectors += list(chosen.unbind(2))
        slopes = self._slopes(index, vectors)

        def sorted_(z: Tensor) -> Tensor:
            part = rows.targets(equation, z)[group][:, channels]
            return part.unflatten(0, (len(z), -1)).permute(2, 0, 1)

        if index == len(self.X):
            own = F.one_hot(sorted_(torch.arange(q).to(Y)[None]).long(), q).to(Y)
            J = own.transpose(2, 3).expand(-1, len(Y), -1, -1)
        else:
            J = torch.stack([sorted_(slope) for slope in slopes[1:]], 2)
        z = sorted_(self.Y if index == len(self.X) else self.Z[index])
        elementwise = phi if isinstance(phi, Phi) and index < len(self.X) else None
        return Expansion(
            V, J, sorted_(slopes[0]), z, elementwise, Y, distance if exact else None, self.inactive
        )

    # derivatives of linear functions of the outputs in a layer's states, or in its pre-activations
    # where φ is not elementwise
    def _slopes(self, index: int, vectors: list[Tensor]) -> list[Tensor]:
        if index == len(self.X):
            return vectors
        with torch.enable_grad():
            if isinstance(self.layers[index].phi, Phi):
                start = self.X[index].detach().requires_grad_()
                Y = self._follow(index, start, [])
            else:
                start = self.Z[index].detach().requires_grad_()
                Y = self._follow(index, self.layers[index].phi(start), [])
            if not Y.requires_grad:
                return [torch.zeros_like(start) for _ in vectors]
            last = len(vectors) - 1
            return [
                torch.autograd.grad((v * Y).sum(), start, retain_graph=k < last)[0]
                for k, v in enumerate(vectors)
            ]

    # outputs when a layer has other states; what changes on the way is written down
    def _follow(self, index: int, x: Tensor, states: list[tuple[int, Tensor, Tensor]]) -> Tensor:
        change, Y = {index: x - self.X[index]}, self.Y
        for j, equation in enumerate(self.layers[index + 1 :], index + 1):
            parts = []
            for term in equation.terms:
                if term.source in change:
                    s = change[term.source]
                    parts.append(term.map(s if term.fixed is None else term.fixed(s)))
            parts += [g.map(change[g.source]) for g in equation.fixed if g.source in change]
            if not parts:
                continue
            dz = sum(parts[1:], parts[0])
            if j == len(self.X):
                Y = self.Y + dz
                break
            z = self.Z[j] + dz
            states.append((j, z, equation.phi(z)))
            change[j] = states[-1][2] - self.X[j]
        return Y

    @torch.no_grad()
    def move(self, index: int, dz: Float[Tensor, "m rows"]) -> Move:
        """Follow a change of a layer's pre-activations to the outputs; nothing is changed yet.

        Args:
            index: The layer.
            dz: The change.

        Returns:
            The states and outputs that come of it.
        """
        if index == len(self.X):
            return Move([], self.Y + dz, self.distance(self.Y + dz))
        z = self.Z[index] + dz
        states = [(index, z, self.layers[index].phi(z))]
        Y = self._follow(index, states[0][2], states)
        return Move(states, Y, self.distance(Y))

    def accept(self, move: Move) -> None:
        """Take over a move.

        Args:
            move: What `move` gave, of the layer that the model has now.
        """
        for index, z, x in move.states:
            self.Z[index], self.X[index] = z, x
        self.Y = move.Y


class Expansion:
    """The distance to second order in the pre-activations of some channels, on some samples.

    Within these channels the outputs are linear in the states: what one channel does to them is
    known to the next.

    Args:
        V: Features, (d, m) or (m, P, d).
        J: Derivatives of the outputs, or of random combinations of them, (K, m, r, P).
        down: Downward slope of the distance in the states, (K, m, P).
        z: Pre-activations, (K, m, P).
        phi: φ, where it is elementwise; J and `down` are then in the states, else in z.
        Y: Outputs (m, q).
        distance: The distance, or None where J has its curvature in it already.
        inactive: Weight of a sample where φ is flat.
    """

    def __init__(
        self,
        V: Tensor,
        J: Float[Tensor, "K m r P"],
        down: Float[Tensor, "K m P"],
        z: Float[Tensor, "K m P"],
        phi: Phi | None,
        Y: Float[Tensor, "m q"],
        distance: Distance | None,
        inactive: float,
    ) -> None:
        self.V, self.J, self.phi = V, J, phi
        self.down, self.z = down.contiguous(), z.contiguous()
        self.Y, self.distance, self.inactive = Y, distance, inactive
        self.dY = J.new_zeros(J.shape[1:3])

    def expand(self, k: int) -> tuple[Float[Tensor, "m r P"], Float[Tensor, "m P"]]:
        """Expand in the pre-activations of one channel.

        Args:
            k: The channel.

        Returns:
            Derivatives r in the pre-activations, r'Fr the curvature, and the downward slope g.
        """
        J = self.J[k]
        pull = self.dY if self.distance is None else self.distance.curved(self.Y, self.dY)
        g = self.down[k] - (J * pull[..., None]).sum(1)
        if self.phi is not None:
            slope = self.phi.derivative(self.z[k])
            g = g * slope
            J = J * slope.square().clamp_min(self.inactive).sqrt()[:, None]
        return J, g

    def moments(
        self, k: int, S: Int[Tensor, " s"]
    ) -> tuple[Float[Tensor, "s s"], Float[Tensor, " s"]]:
        """Sum a channel's weighted Gram and its gradient over the samples.

        Args:
            k: The channel.
            S: The features it uses.

        Returns:
            Σ v J'FJ v' and Σ g v, float64.
        """
        J, g = self.expand(k)
        if J.shape[2] == 1:
            V, h = self.V[S], self._root(J[..., 0]).square().sum(1)
            return ((V * h) @ V.T).double(), (V @ g[:, 0]).double()
        V = self.V[..., S]
        R = self._root(J @ V).flatten(0, 1)
        return (R.T @ R).double(), torch.einsum("mpd,mp->d", V, g).double()

    def gains(self, k: int) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Sum, of every feature by itself, what a weight on it would do.

        Args:
            k: The channel.

        Returns:
            Its slope Σ g v and its curvature Σ v J'FJ v.
        """
        J, g = self.expand(k)
        if J.shape[2] == 1:
            h = self._root(J[..., 0]).square().sum(1)
            return self.V @ g[:, 0], self.V.square() @ h
        R = self._root(J @ self.V)
        return torch.einsum("mpd,mp->d", self.V, g), R.square().sum((0, 1))

    def change(self, k: int, S: Int[Tensor, " s"], w: Float[Tensor, " s"]) -> None:
        """Change a channel's weights.

        Args:
            k: The channel.
            S: The features it uses.
            w: What is added to its weights on them.
        """
        one = self.V.ndim == 2
        dz = (w @ self.V[S])[:, None] if one else self.V[..., S] @ w
        z = self.z[k]
        dx = dz if self.phi is None else self.phi(z + dz) - self.phi(z)
        self.dY += (self.J[k] * dx[:, None]).sum(2)

    def shift(self, change: Float[Tensor, "K d"]) -> Float[Tensor, "m P K"]:
        """Compute what changes of the channels' weights do to their pre-activations.

        Args:
            change: What is added to the weights.

        Returns:
            The change of every pre-activation.
        """
        if self.V.ndim == 2:
            return (change @ self.V).T[:, None]
        return self.V @ change.T

    def _root(self, D: Tensor) -> Tensor:
        return D if self.distance is None else self.distance.root(self.Y, D)
