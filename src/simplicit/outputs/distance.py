"""How far outputs are from the teacher's: half squared error, half divergence of the classes.

    ℓ(y) = ‖y − t‖² / (4 σ²) + KL(softmax t/τ ‖ softmax y/τ) / 2,    σ² the variance of all t

The curvature in y is F = I/(2σ²) + (diag p − pp')/(2τ²), p = softmax y/τ: positive definite, so
that errors of the outputs are measured in one unit by a root of it. The temperature τ is 1,
unless outputs are so far apart that every p is one class, and says nothing of what is near.
"""

import torch
from jaxtyping import Float
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

    def curved(self, Y: Outputs, D: Float[Tensor, "m q *k"]) -> Float[Tensor, "m q *k"]:
        """Multiply by the curvature.

        Args:
            Y: Outputs (m, q).
            D: Changes of the outputs.

        Returns:
            F D of every sample.
        """
        p, centred = self._centred(Y, D)
        return D / (2 * self.variance) + p * centred / (2 * self.temperature**2)

    def root(self, Y: Outputs, D: Float[Tensor, "m q *k"]) -> Float[Tensor, "m r *k"]:
        """Multiply by a root of the curvature, so that D'FD is the square of what is returned.

        diag p − pp' = AA' with A = diag √p − p √p', so no eigenvectors are needed. A difference of
        squares would do as well, but may be negative where p is nearly one class.

        Args:
            Y: Outputs (m, q).
            D: Changes of the outputs.

        Returns:
            R'D of every sample, F = RR', r = 2q.
        """
        p, centred = self._centred(Y, D)
        alike, sure = self._scales
        return torch.cat([alike * D, sure * p.sqrt() * centred], 1)

    def adjoint(self, Y: Outputs, E: Float[Tensor, "m r *k"]) -> Float[Tensor, "m q *k"]:
        """Multiply by the adjoint of `root`: vectors with E εε' = I become some with E ff' = F.

        Args:
            Y: Outputs (m, q).
            E: Vectors, r = 2q.

        Returns:
            R E of every sample.
        """
        a, b = E.chunk(2, 1)
        alike, sure = self._scales
        p = self._probabilities(Y, b)
        b = p.sqrt() * b
        return alike * a + sure * (b - p * b.sum(1, keepdim=True))

    def random(
        self, Y: Outputs, count: int, generator: torch.Generator
    ) -> Float[Tensor, "m q count"]:
        """Draw vectors f with E ff' = F, from random signs (Hutchinson, 1990).

        Args:
            Y: Outputs (m, q).
            count: How many for each sample.
            generator: Of random numbers, on the CPU. Samples draw one after the other, so that
                theirs do not depend on the batches.

        Returns:
            The vectors.
        """
        m, q = Y.shape
        signs = torch.randint(2, (m, 2 * q, count), generator=generator, dtype=torch.int8)
        return self.adjoint(Y, 2 * signs.to(Y) - 1)

    @property
    def _scales(self) -> tuple[float, float]:
        return (2 * self.variance) ** -0.5, 2**-0.5 / self.temperature

    def _probabilities(self, Y: Tensor, D: Tensor) -> Tensor:
        return (Y / self.temperature).softmax(1).reshape(*Y.shape, *[1] * (D.ndim - 2))

    def _centred(self, Y: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        p = self._probabilities(Y, D)
        return p, D - (p * D).sum(1, keepdim=True)
