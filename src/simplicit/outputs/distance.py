"""How far outputs are from the teacher's: half squared error, half divergence of the classes.

    ℓ(y) = ‖y − t‖² / (4 σ²) + KL(softmax t/τ ‖ softmax y/τ) / 2,    σ² the variance of all t

The curvature in y is F = I/(2σ²) + (diag p − pp')/(2τ²), p = softmax y/τ: positive definite, so
that errors of the outputs are measured in one unit by a root of it. The temperature τ is 1,
unless outputs are so far apart that every p is one class, and says nothing of what is near.

A network with several outputs has the sum of their distances, each with its own σ² and τ. Where an
output has classes at many places, the divergence is the mean over the places; behind a sigmoid it
is that of the single events. A few numbers whose standard deviations differ by more than a factor
`UNITS` (`head`) are quantities in units of their own: then ℓ(y) = Σ_j (y_j − t_j)² / (4 q σ_j²),
and no divergence.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from simplicit._types import Outputs
from simplicit.equations.interface import Output
from simplicit.outputs.head import Head, HeadCurvature


class Distance:
    """The distance to given outputs.

    Args:
        T: The teacher's outputs (m, q) on all calibration inputs; they set σ².
        outputs: What stands in them; one row of numbers by default.
    """

    def __init__(self, T: Outputs, outputs: Sequence[Output] = ()) -> None:
        outputs = outputs or (Output("", (T.shape[1],), axis=0),)
        self.sizes = [output.size for output in outputs]
        parts = T.split(self.sizes, 1)
        self.heads = [Head(t, output) for t, output in zip(parts, outputs, strict=True)]

    def __call__(self, Y: Outputs, T: Outputs) -> Float[Tensor, " m"]:
        """Measure.

        Args:
            Y: Outputs (m, q).
            T: The teacher's for the same inputs.

        Returns:
            The distance of every sample, 0 where both are the same.
        """
        found = [head(y, t) for head, y, t in self._each(Y, T)]
        return sum(found[1:], found[0])

    def slope(self, Y: Outputs, T: Outputs) -> Outputs:
        """Compute −∇ℓ.

        Args:
            Y: Outputs (m, q).
            T: The teacher's.

        Returns:
            The direction in which the distance falls, (m, q).
        """
        return _together([head.slope(y, t) for head, y, t in self._each(Y, T)])

    def curvature(self, Y: Outputs) -> "Curvature":
        """Find the curvature at some outputs.

        Args:
            Y: Outputs (m, q).

        Returns:
            F of every sample.
        """
        return Curvature([HeadCurvature(head, y) for head, y, _ in self._each(Y, Y)])

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

    def _each(self, Y: Outputs, T: Outputs) -> Iterator[tuple[Head, Tensor, Tensor]]:
        return zip(self.heads, Y.split(self.sizes, 1), T.split(self.sizes, 1), strict=True)


def _together(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


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
        heads: Of each output, one after another.
    """

    def __init__(self, heads: list[HeadCurvature]) -> None:
        self.heads, self.sizes = heads, [head.size for head in heads]

    def times(self, D: Float[Tensor, "m q *k"]) -> Float[Tensor, "m q *k"]:
        """Multiply by the curvature.

        Args:
            D: Changes of the outputs.

        Returns:
            F D of every sample.
        """
        parts = zip(self.heads, D.split(self.sizes, 1), strict=True)
        return _together([head.times(part) for head, part in parts])

    def root(self, D: Float[Tensor, "m q *k"]) -> Float[Tensor, "m r *k"]:
        """Multiply by a root of the curvature, so that D'FD is the square of what is returned.

        diag p − pp' = AA' with A = diag √p − p √p'. A difference of squares would do as well, but
        may be negative where p is nearly one class.

        Args:
            D: Changes of the outputs.

        Returns:
            R'D of every sample, F = RR', r = 2q.
        """
        parts = zip(self.heads, D.split(self.sizes, 1), strict=True)
        return _together([head.root(part) for head, part in parts])

    def adjoint(self, E: Float[Tensor, "m r *k"]) -> Float[Tensor, "m q *k"]:
        """Multiply by the adjoint of `root`: vectors with E εε' = I become some with E ff' = F.

        Args:
            E: Vectors, r = 2q.

        Returns:
            R E of every sample.
        """
        parts = zip(self.heads, E.split([2 * size for size in self.sizes], 1), strict=True)
        return _together([head.adjoint(part) for head, part in parts])
