"""The distance to second order in the pre-activations of some channels of a layer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.convex.products import square, times
from simplicit.equations.phi import Phi
from simplicit.outputs.distance import Curvature


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
        curvature: Of the distance in the outputs, or None where J has it in it already.
        inactive: Weight of a sample where φ is flat.
        own: Where the channels are in the layer's pre-activations, one after another.
    """

    def __init__(
        self,
        V: Tensor,
        J: Float[Tensor, "K m r P"],
        down: Float[Tensor, "K m P"],
        z: Float[Tensor, "K m P"],
        phi: Phi | None,
        curvature: Curvature | None,
        inactive: float,
        own: Int[Tensor, " places"],
    ) -> None:
        self.own = own
        self.V, self.J, self.phi, self.curvature = V, J, phi, curvature
        self.down, self.z, self.inactive = down, z, inactive
        self.dY = J.new_zeros(J.shape[1:3])
        self.dz = torch.zeros_like(z)
        self._read: tuple[Tensor, Tensor] | None = None

    def slope(self, k: int) -> Float[Tensor, "m P"]:
        """Compute the downward slope in the pre-activations of one channel.

        Args:
            k: The channel.

        Returns:
            The slope, in view of what the channels before have changed.
        """
        pull = self.dY if self.curvature is None else self.curvature.times(self.dY)
        g = self.down[k] - (self.J[k] * pull[..., None]).sum(1)
        return g if self.phi is None else g * self.phi.derivative(self.z[k])

    def gradient(self, k: int, S: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Sum a channel's gradient over the samples.

        Args:
            k: The channel.
            S: The features it uses.

        Returns:
            Σ g v, float64.
        """
        g, V = self.slope(k), self._features(S)
        found = V @ g[:, 0] if V.ndim == 2 else torch.einsum("mpd,mp->d", V, g)
        return found.double()

    def gradients(self) -> Float[Tensor, "K d"]:
        """Sum the gradients of all channels over the samples.

        Returns:
            Σ g v of every feature, float64.
        """
        g = torch.stack([self.slope(k) for k in range(len(self.J))])
        if self.V.ndim == 2:
            return times(g[..., 0], self.V.T).double()
        return torch.einsum("mpd,kmp->kd", self.V, g).double()

    def curvatures(self, k: int) -> Float[Tensor, "m P"]:
        """Compute the curvature in each pre-activation of one channel.

        Args:
            k: The channel.

        Returns:
            J'FJ of every sample and position by itself.
        """
        return self._root(k).square().sum(1)

    def gram(self, k: int, S: Int[Tensor, " s"], h: Float[Tensor, "m P"]) -> Float[Tensor, "s s"]:
        """Sum a channel's weighted Gram over the samples.

        Args:
            k: The channel.
            S: The features it uses.
            h: Its `curvatures`.

        Returns:
            Σ v J'FJ v', float64.
        """
        if self.V.ndim == 2:
            return square(self.V[S].mul_(h[:, 0].sqrt())).double()
        rows = (self._root(k) @ self.V[..., S]).flatten(0, 1)
        return square(rows.T).double()

    def gains(self) -> tuple[Float[Tensor, "K d"], Float[Tensor, "K d"]]:
        """Sum, of every feature of every channel by itself, what a weight on it would do.

        Returns:
            Its slope Σ g v and its curvature Σ v J'FJ v.
        """
        channels = range(len(self.J))
        if self.V.ndim == 2:
            h = torch.stack([self.curvatures(k)[:, 0] for k in channels])
            return self.gradients(), h @ self.V.square().T
        found = [(self._root(k) @ self.V).square().sum((0, 1)) for k in channels]
        return self.gradients(), torch.stack(found)

    def change(self, k: int, S: Int[Tensor, " s"], w: Float[Tensor, " s"]) -> None:
        """Change a channel's weights, once or several times.

        Args:
            k: The channel.
            S: The features it uses.
            w: What is added to its weights on them.
        """
        V, z = self._features(S), self.z[k]
        dz = (w @ V)[:, None] if V.ndim == 2 else V @ w
        before, after = self.dz[k].clone(), self.dz[k] + dz
        self.dz[k] = after
        dx = dz if self.phi is None else self.phi(z + after) - self.phi(z + before)
        self.dY += (self.J[k] * dx[:, None]).sum(2)

    def shift(self, change: Float[Tensor, "K d"]) -> Float[Tensor, "K m P"]:
        """Compute what changes of the channels' weights do to their pre-activations.

        Args:
            change: What is added to the weights.

        Returns:
            The change of every pre-activation.
        """
        S = change.any(0).nonzero()[:, 0]
        V, change = self._features(S), change[:, S]
        return (change @ V)[..., None] if V.ndim == 2 else (V @ change.T).permute(2, 0, 1)

    # those of the row at hand are asked for twice: for its moments, and for its change
    def _features(self, S: Tensor) -> Tensor:
        if self._read is None or self._read[0] is not S:
            self._read = S, self.V[S] if self.V.ndim == 2 else self.V[..., S]
        return self._read[1]

    # R'J in a channel's pre-activations: its square is the curvature
    def _root(self, k: int) -> Tensor:
        J = self.J[k]
        if self.phi is not None:
            slope = self.phi.derivative(self.z[k])
            J = J * slope.square().clamp_min(self.inactive).sqrt()[:, None]
        return J if self.curvature is None else self.curvature.root(J)
