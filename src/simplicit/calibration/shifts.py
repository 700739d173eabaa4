"""Features of a convolution with a long kernel: shifts of its image, which are never written out.

Along one axis a kernel of k entries reads every value k times. The patches are not written out
there. With x_s the values at place s of the axis and T places of the kernel, the Gram of what
entries i and i + δ read is

    Σ_{s=i}^{i+T−1} x_s x'_{s+δ},

so that a product x_s x'_{s+δ} serves all k entries. The axis is cut where a sum of T terms begins:
each sum is the end of one part and the start of the next. Nothing is subtracted: what comes in and
goes out at the ends may be far larger than what stays.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.calibration.features import Listed
from simplicit.calibration.rows import Rows
from simplicit.convex.products import times
from simplicit.equations.equation import Equation
from simplicit.equations.weighted_maps import WindowedMap, patches

STILL = 1e-10
"""Variance, relative to the mean square, up to which a feature is a constant: what its shifts leave
of it is rounding."""

WIDE = 32
"""Rows that a product of matrices has at least: of few channels, those of places side by side."""

WORTH = 0.5
"""Part of the multiplications of written patches that those of shifts must stay below."""


@dataclass(frozen=True, eq=False)
class Shifts:
    """How the patches of a convolution are shifts of its input along one axis.

    Features are in the order (entry of the kernel along the axis, column). Columns are the input
    channels times the entries along the other axes. All products are taken in float64, as they are
    not centred.

    Args:
        conv: The convolution.
        axis: Which of its axes, from 0.
    """

    conv: WindowedMap
    axis: int

    @classmethod
    def of(cls, rows: Rows, equation: Equation, drawn: int) -> "Shifts | None":
        """Find the axis along which shifts of all positions are worth it.

        Args:
            rows: The rows.
            equation: Their equation.
            drawn: Positions of a sample whose patches would be written out.

        Returns:
            The shifts; None where patches are as well written out.
        """
        terms = [equation.terms[t] for t in rows.terms]
        conv = terms[0].map
        if len(terms) > 1 or not isinstance(conv, WindowedMap) or conv.groups > 1:
            return None
        axes = [cls(conv, a) for a in range(len(conv.stride)) if conv.stride[a] == 1]
        best = min(axes, key=lambda shifts: shifts.cost, default=None)
        worth = WORTH * drawn / conv.positions
        return best if best is not None and best.cost < worth else None

    @property
    def entries(self) -> int:
        """Entries of the kernel along the axis: k."""
        return self.conv.weight.shape[2 + self.axis]

    @property
    def step(self) -> int:
        """Places between two of them."""
        return self.conv.dilation[self.axis]

    @property
    def places(self) -> int:
        """Places of the kernel along the axis: T."""
        return self.conv.output_shape[1 + self.axis]

    @property
    def length(self) -> int:
        """Places of the input along the axis, with what is around it: L."""
        return self.places + (self.entries - 1) * self.step

    @property
    def cost(self) -> float:
        """Multiplications for the Gram, relative to those of one triangle of patches."""
        parts = [_parts(T, self.entries) for T in self.by_residue]
        products = sum(len(end) + len(start) for each in parts for end, start in each)
        return 2 * products / (self.places * self.entries)

    @property
    def by_residue(self) -> list[int]:
        """Places of the kernel that are `step` apart: what they read has no holes."""
        return [len(range(r, self.places, self.step)) for r in range(self.step)]

    @property
    def others(self) -> int:
        """Places of the kernel along the other axes, of one along this one."""
        return self.conv.positions // self.places

    @property
    def size(self) -> int:
        """Values of a sample's image."""
        columns = self.conv.weight[0].numel() // self.entries
        return self.length * self.others * columns

    def read(self, x: Float[Tensor, "m columns"]) -> "Shifted":
        """Prepare an image.

        Args:
            x: What the convolution reads.

        Returns:
            The features.
        """
        conv, along = self.conv, self.axis
        image = conv.padded(x.double().reshape(len(x), *conv.input_shape))
        kernel = [*conv.weight.shape[2:]]
        kernel[along] = 1  # a place of the axis is a position, and its shifts are the entries
        columns = patches(image, tuple(kernel), conv.stride, conv.dilation)[:, :, 0]
        places = [*conv.output_shape[1:]]
        places[along] = self.length
        return Shifted(self._along(columns.flatten(0, 1), len(x), places), self, len(x))

    def along(self, t: Float[Tensor, "1 samples K"], m: int) -> Float[Tensor, "n T K"]:
        """Sort targets like the image.

        Args:
            t: A row per sample and position.
            m: Samples.

        Returns:
            A row per sample and place along the other axes, and place along this one.
        """
        return self._along(t[0], m, self.conv.output_shape[1:])

    def _along(self, rows: Tensor, m: int, places: Sequence[int]) -> Tensor:
        each = rows.unflatten(0, (m, *places)).movedim(1 + self.axis, -2)
        return each.flatten(0, -3).contiguous()

    def by_sample(self, t: Float[Tensor, "n T K"], m: int) -> Float[Tensor, "1 samples K"]:
        """Undo `along`.

        Args:
            t: Sorted like the image.
            m: Samples.

        Returns:
            A row per sample and position.
        """
        others = [s for a, s in enumerate(self.conv.output_shape[1:]) if a != self.axis]
        each = t.unflatten(0, (m, *others)).movedim(-2, 1 + self.axis)
        return each.flatten(0, -2)[None]

    def sorted(self, W: Float[Tensor, "1 K d"]) -> Float[Tensor, "1 K d"]:
        """Sort weights like the features.

        Args:
            W: A row per channel of the result, in the order of the convolution's weight.

        Returns:
            The weights.
        """
        return W[:, :, self._order]

    # place in the weight's order of each feature
    @property
    def _order(self) -> Int[Tensor, " d"]:
        weight = self.conv.weight[0]
        index = torch.arange(weight.numel(), device=weight.device).view(weight.shape)
        return index.movedim(1 + self.axis, 0).flatten()

    def original(self, sums: Float[Tensor, "*some d"]) -> Float[Tensor, "*some d"]:
        """Give sums of features, or of these times targets, in the weight's order.

        Args:
            sums: The sums.

        Returns:
            The sums.
        """
        return sums[..., self._order.argsort()]

    def square(
        self, G: Float[Tensor, "1 d d"], s: Float[Tensor, "1 d"], n: Float[Tensor, "1 1"]
    ) -> Float[Tensor, "1 d d"]:
        """Give a Gram in the weight's order. A feature that hardly moves is one that does not.

        Args:
            G: Features times features; below the diagonal it is not read, and not kept.
            s: Sums of the features, in their order.
            n: Weight of all rows.

        Returns:
            The Gram.
        """
        upper, place = G[0].triu_(), self._order.argsort()
        upper += upper.triu(1).mT
        squares = upper.diagonal()
        still = squares - s[0].square() / n[0] <= STILL * squares
        constant = s[0, still][:, None] * s[0] / n
        upper[still], upper[:, still] = constant, constant.mT
        return upper[place][:, place][None]


@dataclass(frozen=True, eq=False)
class Shifted:
    """Features of a convolution along one axis, as its image.

    Args:
        X: Values by sample and place along the other axes, place along this one, column.
        shifts: How the features are shifts of it.
        m: Samples.
    """

    X: Float[Tensor, "n L columns"]
    shifts: Shifts
    m: int

    @property
    def samples(self) -> int:
        """Rows of the data."""
        return self.X.shape[0] * self.shifts.places

    # what places that are `step` apart read, and how many of the kernel's
    @cached_property
    def _by_residue(self) -> list[tuple[Tensor, int]]:
        step = self.shifts.step
        every = enumerate(self.shifts.by_residue)
        return [(self.X[:, r::step].contiguous(), T) for r, T in every]

    def gram(self) -> Float[Tensor, "1 features features"]:
        """Multiply features.

        Returns:
            V'V; below the diagonal are zeros.
        """
        k, Q = self.shifts.entries, self.X.shape[2]
        whole = self.X.new_zeros(k, Q, k * Q)
        for X, T in self._by_residue:
            for end, start in _parts(T, k):
                total = X.new_zeros(Q, k * Q)
                for s, part in _products(X, X, end, k):
                    total[:, : part.shape[1]] += part
                    if s < k:
                        whole[s, :, s * Q :] += total[:, : (k - s) * Q]
                total.zero_()
                for s, part in _products(X, X, start, k):
                    total[:, : part.shape[1]] += part
                    i = s - T + 1
                    whole[i, :, i * Q :] += total[:, : (k - i) * Q]
        return whole.view(1, k * Q, k * Q)

    @cached_property
    def _sums(self) -> Float[Tensor, "n k columns"]:
        shifts = self.shifts
        before = torch.cat([torch.zeros_like(self.X[:, :1]), self.X], 1).cumsum(1)
        last = (shifts.entries - 1) * shifts.step + 1
        behind, ahead = before[:, :last], before[:, shifts.places :]
        return (ahead - behind)[:, :: shifts.step]

    def sum(self) -> Float[Tensor, "1 features"]:
        """Add up the rows of the data.

        Returns:
            The sums, in float64.
        """
        return self._sums.sum(0).flatten()[None]

    def against(self, t: Float[Tensor, "1 samples K"]) -> Float[Tensor, "1 K features"]:
        """Multiply targets and features.

        Args:
            t: Targets.

        Returns:
            t'V.
        """
        k, step = self.shifts.entries, self.shifts.step
        sorted_like = self.shifts.along(t.double(), self.m)
        total = self.X.new_zeros(t.shape[2], k * self.X.shape[2])
        for r, (X, T) in enumerate(self._by_residue):
            for _, part in _products(sorted_like[:, r::step].contiguous(), X, range(T), k):
                total += part
        return total[None]

    def given(self, W: Float[Tensor, "1 K features"]) -> Float[Tensor, "1 samples K"]:
        """Predict.

        Args:
            W: Weights, in the order of the features.

        Returns:
            V W'.
        """
        k, Q, K = self.shifts.entries, self.X.shape[2], W.shape[1]
        side = _side(K, k)
        band = self.X.new_zeros((side + k - 1) * Q, side * K)
        for a in range(side):
            band[a * Q : (a + k) * Q, a * K : (a + 1) * K] = W[0].T
        found = self.X.new_empty(len(self.X), self.shifts.places, K)
        for r, (X, T) in enumerate(self._by_residue):
            own = found[:, r :: self.shifts.step]
            for s in range(0, T, side):
                n = min(side, T - s)
                read = X[:, s : s + n + k - 1].flatten(1)
                own[:, s : s + n] = times(read, band[: read.shape[1], : n * K]).unflatten(1, (n, K))
        return self.shifts.by_sample(found, self.m)

    def means(self, samples: int) -> Listed:
        """Average over the positions of each sample.

        Args:
            samples: How many there are.

        Returns:
            Features with a row per sample.
        """
        each = self._sums.unflatten(0, (samples, -1)).mean(1) / self.shifts.places
        return Listed(each.flatten(1)[None])


# Where sums of T terms that start at 0 … k − 1 begin and end: of each part of the axis the places
# from its last to its first, and those behind it.
def _parts(T: int, k: int) -> list[tuple[range, range]]:
    found = []
    for first in range(0, k if T else 0, T or 1):
        behind = first + T
        found.append((range(behind - 1, first - 1, -1), range(behind, min(behind, k) + T - 1)))
    return found


# places whose products are taken at once
def _side(rows: int, k: int) -> int:
    return min(-(-WIDE // rows), k)


# of the values at each place with those at it and at the k − 1 behind it that there are
def _products(
    A: Float[Tensor, "n _ rows"], X: Float[Tensor, "n L Q"], places: range, k: int
) -> Iterator[tuple[int, Float[Tensor, "rows _"]]]:
    rows, Q = A.shape[2], X.shape[2]
    side = _side(rows, k)
    for some in (places[i : i + side] for i in range(0, len(places), side)):
        first, last = min(some), max(some)
        own, read = A[:, first : last + 1].flatten(1), X[:, first : last + k].flatten(1)
        every = times(own.T, read)
        for s in some:
            a = s - first
            yield s, every[a * rows : (a + 1) * rows, a * Q : (a + k) * Q]
