"""How far outputs are from the teacher's: half squared error, half divergence of the classes.

    ℓ(y) = ‖y − t‖² / (4 σ²) + KL(softmax t/τ ‖ softmax y/τ) / 2,    σ² the variance of all t

The curvature in y is F = I/(2σ²) + (diag p − pp')/(2τ²), p = softmax y/τ: positive definite, so
that errors of the outputs are measured in one unit by a root of it. The temperature τ is 1,
unless outputs are so far apart that every p is one class, and says nothing of what is near.

A network with several outputs has the sum of their distances, each with its own σ² and τ. Where an
output has classes at many places, the divergence is the mean over the places; behind a sigmoid it
is that of the single events. A few numbers whose standard deviations differ by more than `UNITS`
are quantities in units of their own: then ℓ(y) = Σ_j (y_j − t_j)² / (4 q σ_j²), and no divergence.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor

from simplicit._types import Outputs
from simplicit.equations.interface import Output

SPREAD = 50.0
"""Root of the outputs' variance, summed over them, from which on the temperature is above 1: more
than trained networks usually have."""


UNITS = 10.0
"""Ratio of standard deviations from which on numbers are quantities in units of their own."""

FEW = 32
"""Most outputs, or channels of one, that may be such quantities: pixels and words are none."""

CONSTANT = 1e-5
"""A number whose standard deviation is this part of its size does not depend on the inputs."""


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

    def _each(self, Y: Outputs, T: Outputs) -> Iterator[tuple["Head", Tensor, Tensor]]:
        return zip(self.heads, Y.split(self.sizes, 1), T.split(self.sizes, 1), strict=True)


class Head:
    """The distance of one output.

    Args:
        T: The teacher's on all calibration inputs, (m, q).
        output: Its shape and its classes.

    Attributes:
        variance: σ², one number, or for quantities in different units q σ_j² (q,).
        temperature: τ.
        places: Places at which there are classes.
    """

    def __init__(self, T: Outputs, output: Output) -> None:
        self.shape, self.axis, self.events = output.shape, output.axis, output.end == "sigmoid"
        self.places = 1 if self.axis is None else prod(self.shape) // self.shape[self.axis]
        whole = float(T.var(0, correction=0).sum()) or 1.0
        apart = None if output.end else self._in_units(T)
        self.variance = whole if apart is None else apart
        self.temperature = temperature(whole / self.places)
        self.diverges = self.events or (self.axis is not None and apart is None)

    # q σ_j² of quantities in units of their own
    def _in_units(self, T: Outputs) -> Float[Tensor, " q"] | None:
        if self.axis is None or not 1 < self.shape[self.axis] <= FEW:
            return None
        kinds = self.by_class(T).transpose(0, 1).flatten(1)
        sizes, variances = kinds.abs().amax(1), kinds.var(1, correction=0)
        moving = variances > (CONSTANT * sizes).square()
        some = variances[moving]
        if len(some) < 2 or float(some.max()) <= UNITS**2 * float(some.min()):
            return None
        each = torch.where(moving, variances, some.mean()) * T.shape[1]
        if len(self.shape) == 1:
            return each
        return self.flat(each[None, :, None].expand(1, -1, self.places))[0]

    def by_class(self, y: Float[Tensor, "m q *k"]) -> Float[Tensor, "m classes *places_k"]:
        """Sort outputs by class and place.

        Args:
            y: Outputs.

        Returns:
            The same; without an axis of places if there is one place.
        """
        if len(self.shape) <= 1:
            return y
        if self.axis is None:
            return y[:, :, None]
        shaped = y.unflatten(1, self.shape).movedim(1 + self.axis, 1)
        return shaped.flatten(2, len(self.shape))

    def flat(self, sorted_: Float[Tensor, "m classes *places_k"]) -> Float[Tensor, "m q *k"]:
        """Undo `by_class`.

        Args:
            sorted_: Outputs by class and place.

        Returns:
            Outputs in their own order.
        """
        if len(self.shape) <= 1:
            return sorted_
        if self.axis is None:
            return sorted_[:, :, 0]
        others = [size for k, size in enumerate(self.shape) if k != self.axis]
        shaped = sorted_.unflatten(2, others).movedim(1, 1 + self.axis)
        return shaped.flatten(1, len(self.shape))

    def probabilities(self, y: Outputs) -> Float[Tensor, "m classes *places"]:
        """Compute p.

        Args:
            y: Outputs (m, q).

        Returns:
            Those of classes at each place, or of each event.
        """
        z = self.by_class(y) / self.temperature
        return z.sigmoid() if self.events else z.softmax(1)

    def __call__(self, y: Outputs, t: Outputs) -> Float[Tensor, " m"]:
        """Measure, see `Distance`.

        Args:
            y: Outputs (m, q).
            t: The teacher's.

        Returns:
            The distance of every sample.
        """
        squares = (y - t).square()
        if isinstance(self.variance, Tensor):
            squares = (squares / (4 * self.variance)).sum(1)
        else:
            squares = squares.sum(1) / (4 * self.variance)
        if not self.diverges:
            return squares
        a, b = (self.by_class(x) / self.temperature for x in (t, y))
        if self.events:
            divergence = (a.sigmoid() * (a - b) - F.softplus(a) + F.softplus(b)).sum(1)
        else:
            log_p = a.log_softmax(1)
            divergence = (log_p.exp() * (log_p - b.log_softmax(1))).sum(1)
        return squares + (divergence if divergence.ndim == 1 else divergence.mean(1)) / 2

    def slope(self, y: Outputs, t: Outputs) -> Outputs:
        """Compute −∇ℓ, see `Distance`.

        Args:
            y: Outputs (m, q).
            t: The teacher's.

        Returns:
            The direction in which the distance falls, (m, q).
        """
        squares = (t - y) / (2 * self.variance)
        if not self.diverges:
            return squares
        p, q = (self.probabilities(x) for x in (t, y))
        return squares + self.flat(p - q) / (2 * self.temperature * self.places)


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

    def __init__(self, heads: "list[HeadCurvature]") -> None:
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


class HeadCurvature:
    """F of one output.

    Args:
        head: Its distance.
        y: Outputs (m, q).

    Attributes:
        p: Probabilities, see `Head.probabilities`.
        size: q.
    """

    def __init__(self, head: Head, y: Outputs) -> None:
        self.head, self.size = head, y.shape[1]
        self.p = head.probabilities(y) if head.diverges else y

    def times(self, D: Float[Tensor, "m q *k"]) -> Float[Tensor, "m q *k"]:
        """Multiply by F.

        Args:
            D: Changes of the outputs.

        Returns:
            F D.
        """
        head, squares = self.head, D / (2 * self._variance(D))
        if not head.diverges:
            return squares
        p, centred = self._centred(head.by_class(D))
        scaled = p * (1 - p) * centred if head.events else p * centred
        return squares + head.flat(scaled) / (2 * head.temperature**2 * head.places)

    def root(self, D: Float[Tensor, "m q *k"]) -> Float[Tensor, "m r *k"]:
        """Multiply by R', see `Curvature.root`.

        Args:
            D: Changes of the outputs.

        Returns:
            R'D.
        """
        head, squares = self.head, D / (2 * self._variance(D)) ** 0.5
        if not head.diverges:
            return torch.cat([squares, torch.zeros_like(squares)], 1)
        p, centred = self._centred(head.by_class(D))
        part = (p * (1 - p)).sqrt() * centred if head.events else p.sqrt() * centred
        return torch.cat([squares, head.flat(part) / self._scale], 1)

    def adjoint(self, E: Float[Tensor, "m r *k"]) -> Float[Tensor, "m q *k"]:
        """Multiply by R, see `Curvature.adjoint`.

        Args:
            E: Vectors, r = 2q.

        Returns:
            R E.
        """
        head, (a, b) = self.head, E.chunk(2, 1)
        squares = a / (2 * self._variance(a)) ** 0.5
        if not head.diverges:
            return squares
        b = head.by_class(b)
        p = self._p(b)
        if head.events:
            apart = (p * (1 - p)).sqrt() * b
        else:
            b = p.sqrt() * b
            apart = b - p * b.sum(1, keepdim=True)
        return squares + head.flat(apart) / self._scale

    @property
    def _scale(self) -> float:
        return 2**0.5 * self.head.temperature * self.head.places**0.5

    def _variance(self, D: Tensor) -> float | Tensor:
        variance = self.head.variance
        if isinstance(variance, Tensor):
            return variance.reshape(-1, *[1] * (D.ndim - 2))
        return variance

    def _p(self, D: Tensor) -> Tensor:
        return self.p.reshape(*self.p.shape, *[1] * (D.ndim - self.p.ndim))

    def _centred(self, D: Tensor) -> tuple[Tensor, Tensor]:
        p = self._p(D)
        return p, D if self.head.events else D - (p * D).sum(1, keepdim=True)
