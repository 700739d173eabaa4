"""The distance of one output of a network, and its curvature; see `distance`."""

from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
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
        if self.axis is None or len(self.shape) == 1:
            return y
        shaped = y.unflatten(1, self.shape).movedim(1 + self.axis, 1)
        return shaped.flatten(2, len(self.shape))

    def flat(self, sorted_: Float[Tensor, "m classes *places_k"]) -> Float[Tensor, "m q *k"]:
        """Undo `by_class`.

        Args:
            sorted_: Outputs by class and place.

        Returns:
            Outputs in their own order.
        """
        if self.axis is None or len(self.shape) == 1:
            return sorted_
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
