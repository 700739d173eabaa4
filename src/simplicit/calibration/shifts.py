"""Features of a convolution with a long kernel: shifts of its image, which are never written out.

Along one axis a kernel of k entries reads every value k times. The patches are not written out
there. With x_s the values at place s of the axis, s = 0 … L − 1, and T places of the kernel, the
Gram of what entries i and i + δ read is

    Σ_{s=i}^{i+T−1} x_s x'_{s+δ} = D_δ − Σ_{s<i} x_s x'_{s+δ} − Σ_{s≥i+T} x_s x'_{s+δ},

with D_δ the sum over all s: k products of the image with itself in place of k², and what comes in
and goes out at the ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.calibration.features import Listed
from simplicit.calibration.rows import Rows
from simplicit.convex.products import times
from simplicit.equations.equation import Equation
from simplicit.equations.weighted_maps import WindowedMap, patches

STILL = 1e-10
"""Variance, relative to the mean square, up to which a feature is a constant: what its shifts leave
of it is rounding."""

WORTH = 0.5
"""Part of the multiplications of written patches that those of shifts must stay below."""


@dataclass(frozen=True, eq=False)
class Shifts:
    """How the patches of a convolution are shifts of its input along one axis.

    Features are in the order (entry of the kernel along the axis, column). Columns are the input
    channels times the entries along the other axes. All products are taken in float64: what comes
    in and goes out at the ends may be far larger than what stays.

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
        ends = (self.entries - 1) * self.step
        return 2 * (self.length + ends) / (self.places * self.entries)

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

    def by_place(self, t: Float[Tensor, "groups samples K"], m: int) -> Float[Tensor, "T n K"]:
        """Sort targets like the image.

        Args:
            t: A row per sample and position.
            m: Samples.

        Returns:
            A row per place along the axis, sample, and place along the others.
        """
        return self._along(t[0], m, self.conv.output_shape[1:])

    def _along(self, rows: Tensor, m: int, places: Sequence[int]) -> Tensor:
        each = rows.unflatten(0, (m, *places))
        return each.movedim(1 + self.axis, 0).flatten(1, -2).contiguous()

    def by_sample(self, t: Float[Tensor, "T n K"], m: int) -> Float[Tensor, "groups samples K"]:
        """Undo `by_place`.

        Args:
            t: Sorted like the image.
            m: Samples.

        Returns:
            A row per sample and position.
        """
        others = [s for a, s in enumerate(self.conv.output_shape[1:]) if a != self.axis]
        each = t.unflatten(1, (m, *others)).movedim(0, 1 + self.axis)
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
        X: Values by place along the axis, sample and other place, column.
        shifts: How the features are shifts of it.
        m: Samples.
    """

    X: Float[Tensor, "L n columns"]
    shifts: Shifts
    m: int

    @property
    def samples(self) -> int:
        """Rows of the data."""
        return self.shifts.places * self.X.shape[1]

    def _window(self, i: int) -> Tensor:
        return self.X[slice(*self._windows[i])].flatten(0, 1)

    def gram(self) -> Float[Tensor, "1 features features"]:
        """Multiply features.

        Returns:
            V'V; below the diagonal are zeros.
        """
        shifts, X = self.shifts, self.X
        k, e, T = shifts.entries, shifts.step, shifts.places
        L, n, Q = X.shape
        flat = X.flatten(0, 1)
        inside = X.new_empty(Q, k, Q)
        for d in range(k):
            inside[:, d] = times(flat[: (L - d * e) * n].T, flat[d * e * n :])
        for s in range(T, L):
            self._end(s, inside, -1)
        whole = X.new_zeros(k, Q, k, Q)
        for i in range(k):
            whole[i, :, i:] = inside[:, : k - i]
            for s in range(i * e, (i + 1) * e if i + 1 < k else 0):
                self._end(s, inside, -1)
                self._end(s + T, inside, 1)
        G = whole.view(1, k * Q, k * Q)
        never = self._never
        G[:, never], G[:, :, never] = 0.0, 0.0
        return G

    # features that are zero at all places, of which shifts leave rounding
    @property
    def _never(self) -> Bool[Tensor, " d"]:
        counts = (self.X != 0).sum(1)
        before = torch.cat([torch.zeros_like(counts[:1]), counts]).cumsum(0)
        return torch.stack([before[b] == before[a] for a, b in self._windows]).flatten()

    @property
    def _windows(self) -> list[tuple[int, int]]:
        starts = range(0, self.shifts.entries * self.shifts.step, self.shifts.step)
        return [(start, start + self.shifts.places) for start in starts]

    # with this order of the axes, values of places that follow each other lie side by side
    @cached_property
    def _by_sample(self) -> Float[Tensor, "n L columns"]:
        return self.X.movedim(0, 1).contiguous()

    # add or take away what place s gives to each distance
    def _end(self, s: int, inside: Tensor, sign: int) -> None:
        X, e = self.X, self.shifts.step
        if not bool(X[s].any()):  # around the input
            return
        behind = self._by_sample[:, s::e][:, : inside.shape[1]].flatten(1)
        inside.flatten(1)[:, : behind.shape[1]].addmm_(X[s].T, behind, alpha=sign)

    @cached_property
    def _sums(self) -> Float[Tensor, "k n columns"]:
        before = torch.cat([torch.zeros_like(self.X[:1]), self.X]).cumsum(0)
        return torch.stack([before[b] - before[a] for a, b in self._windows])

    def sum(self) -> Float[Tensor, "1 features"]:
        """Add up the rows of the data.

        Returns:
            The sums, in float64.
        """
        return self._sums.sum(1).flatten()[None]

    def against(self, t: Float[Tensor, "1 samples K"]) -> Float[Tensor, "1 K features"]:
        """Multiply targets and features.

        Args:
            t: Targets.

        Returns:
            t'V.
        """
        by_place = self.shifts.by_place(t.double(), self.m).flatten(0, 1)
        parts = [times(by_place.T, self._window(i)) for i in range(self.shifts.entries)]
        return torch.cat(parts, 1)[None]

    def given(self, W: Float[Tensor, "1 K features"]) -> Float[Tensor, "1 samples K"]:
        """Predict.

        Args:
            W: Weights, in the order of the features.

        Returns:
            V W'.
        """
        parts = W[0].double().unflatten(1, (self.shifts.entries, -1)).unbind(1)
        total = times(self._window(0), parts[0].T)
        for i, part in enumerate(parts[1:], 1):
            total += times(self._window(i), part.T)
        return self.shifts.by_sample(total.unflatten(0, (self.shifts.places, -1)), self.m)

    def means(self, samples: int) -> Listed:
        """Average over the positions of each sample.

        Args:
            samples: How many there are.

        Returns:
            Features with a row per sample.
        """
        each = self._sums.unflatten(1, (samples, -1)).mean(2) / self.shifts.places
        return Listed(each.movedim(1, 0).flatten(1)[None])
