"""How far outputs are from the teacher's: half squared error, half divergence of the classes.

    ℓ(y) = ‖y − t‖² / (4 σ²) + KL(softmax t/τ ‖ softmax y/τ) / 2,    σ² the variance of all t

The curvature in y is F = I/(2σ²) + (diag p − pp')/(2τ²), p = softmax y/τ: positive definite, so
that errors of the outputs are measured in one unit by a root of it. The temperature τ is 1,
unless outputs are so far apart that every p is one class, and says nothing of what is near.
"""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from simplicit._types import Outputs

SPREAD = 50.0
"""Root of the outputs' variance, summed over them, from which on the temperature is above 1: more
than trained networks usually have."""


def temperature(variance: float) -> float:
    """Choose τ.

    Args:
        variance: Of the teacher's outputs, summed over them.

    Returns:
        What outputs are divided by in front of a softmax.
    """
    return max(1.0, variance**0.5 / SPREAD)


class Distance:
    """The distance to given outputs.

    Args:
        T: The teacher's outputs (m, q) on all calibration inputs; they set σ².
    """

    def __init__(self, T: Outputs) -> None:
        self.variance = float(T.var(0, correction=0).sum()) or 1.0
        self.temperature = temperature(self.variance)

    def __call__(self, Y: Outputs, T: Outputs) -> Float[Tensor, " m"]:
        """Measure.

        Args:
            Y: Outputs (m, q).
            T: The teacher's for the same inputs.

        Returns:
            The distance of every sample, 0 where both are the same.
        """
        log_p = (T / self.temperature).log_softmax(1)
        divergence = (log_p.exp() * (log_p - (Y / self.temperature).log_softmax(1))).sum(1)
        return (Y - T).square().sum(1) / (4 * self.variance) + divergence / 2

    def slope(self, Y: Outputs, T: Outputs) -> Outputs:
        """Compute −∇ℓ.

        Args:
            Y: Outputs (m, q).
            T: The teacher's.

        Returns:
            The direction in which the distance falls, (m, q).
        """
        p, q = ((y / self.temperature).softmax(1) for y in (T, Y))
        return (T - Y) / (2 * self.variance) + (p - q) / (2 * self.temperature)

    def curvature(self, Y: Outputs) -> "Curvature":
        """Find the curvature at some outputs.

        Args:
            Y: Outputs (m, q).

        Returns:
            F of every sample.
        """
        return Curvature((Y / self.temperature).softmax(1), self.variance, self.temperature)

    def random(
        self, Y: Outputs, count: int, generator: torch.Generator
    ) -> Float[Tensor, "m q count"]:
        """Draw vectors f with E ff' = F.

        Args:
            Y: Outputs (m, q).
            count: How many for each sample.
            generator: Of random numbers.

        Returns:
            The vectors.
        """
        m, q = Y.shape
        return self.directions(Y, signs(m, q, count, generator))

    def directions(
        self, Y: Outputs, drawn: Int8[Tensor, "m r count"]
    ) -> Float[Tensor, "m q count"]:
        """Turn random signs into vectors f with E ff' = F.

        Args:
            Y: Outputs (m, q).
            drawn: Signs of every sample, see `signs`.

        Returns:
            The vectors.
        """
        return self.curvature(Y).adjoint(drawn.to(Y))


def signs(m: int, q: int, count: int, generator: torch.Generator) -> Int8[Tensor, "m r count"]:
    """Draw signs, the same whether samples are asked for together or one after the other.

    Args:
        m: Samples.
        q: Outputs.
        count: How many vectors for each sample.
        generator: Of random numbers.

    Returns:
        1 or −1, r = 2q.
    """
    return 2 * torch.randint(2, (m, 2 * q, count), generator=generator, dtype=torch.int8) - 1


class Curvature:
    """F of every sample; what it needs of the outputs is computed once.

    Args:
        p: Probabilities softmax y/τ, (m, q).
        variance: σ² of the distance.
        temperature: τ of it.
    """

    def __init__(self, p: Outputs, variance: float, temperature: float) -> None:
        self.p, self.variance, self.temperature = p, variance, temperature

    def times(self, D: Float[Tensor, "m q *k"]) -> Float[Tensor, "m q *k"]:
        """Multiply by the curvature.

        Args:
            D: Changes of the outputs.

        Returns:
            F D of every sample.
        """
        p, centred = self._centred(D)
        return D / (2 * self.variance) + p * centred / (2 * self.temperature**2)

    def root(self, D: Float[Tensor, "m q *k"]) -> Float[Tensor, "m r *k"]:
        """Multiply by a root of the curvature, so that D'FD is the square of what is returned.

        diag p − pp' = AA' with A = diag √p − p √p'. A difference of squares would do as well, but
        may be negative where p is nearly one class.

        Args:
            D: Changes of the outputs.

        Returns:
            R'D of every sample, F = RR', r = 2q.
        """
        p, centred = self._centred(D)
        parts = [D / (2 * self.variance) ** 0.5, p.sqrt() * centred / (2**0.5 * self.temperature)]
        return torch.cat(parts, 1)

    def adjoint(self, E: Float[Tensor, "m r *k"]) -> Float[Tensor, "m q *k"]:
        """Multiply by the adjoint of `root`: vectors with E εε' = I become some with E ff' = F.

        Args:
            E: Vectors, r = 2q.

        Returns:
            R E of every sample.
        """
        a, b = E.chunk(2, 1)
        p = self.p.reshape(*self.p.shape, *[1] * (E.ndim - 2))
        b = p.sqrt() * b
        apart = b - p * b.sum(1, keepdim=True)
        return a / (2 * self.variance) ** 0.5 + apart / (2**0.5 * self.temperature)

    def _centred(self, D: Tensor) -> tuple[Tensor, Tensor]:
        p = self.p.reshape(*self.p.shape, *[1] * (D.ndim - 2))
        return p, D - (p * D).sum(1, keepdim=True)
