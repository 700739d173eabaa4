"""Bounds on linear functions of the outputs by substituting backward: CROWN, also for feedback.

Every state lies between two lines in its pre-activation (`relaxation`). For any multipliers λ, with
μ = λ · (slope of the line that λ's sign calls for) and β its offset,

    λ x ≥ μ z + λ β,    and μ z is a linear function of what the layer reads.

From the last layer to the first the coefficients of a layer's states, added up over all layers that
read them, are such a λ: CROWN (Zhang et al., NeurIPS 2018) or DeepPoly (Singh et al., POPL 2019).
With feedback, z = A x + …, that leaves

    c x ≥ (c + μ A − λ) x + μ (z − A x) + λ β.

The best λ makes the bracket zero: a fixed point, for which the substitution is repeated. What is
left of the bracket is bounded on the box of x, so the bound is sound whatever the last λ is.

Every product and sum is bounded by `Function.size`, so rounding is, too; see `intervals`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.bounds.intervals import TINY, Box, Boxes, image, slack
from simplicit.bounds.layer_boxes import Layer, pull
from simplicit.bounds.relaxation import Lines, lines, unsettled
from simplicit.equations.equation import Summand, Term

PASSES = 40
"""Substitutions with feedback: each leaves at most κ of the bracket before it."""

NUMBERS = 1 << 22
"""Most coefficients of one layer side by side: 32 MB."""

WORK = 1e10
"""Most multiplications that the smaller boxes of one sample may take, some two seconds; what is
beyond keeps the boxes of interval propagation."""


@dataclass
class Function:
    """Lower bounds Σ c_s · (states of s) + constant of some functions, while they are made.

    Args:
        coefficients: c_s by source, (s, k, states) for k functions of each of s samples.
        constant: The constants (s, k).
        size: Sum of the sizes of all products that were made (s, k): rounding is relative to it.
            None where it is not counted: then nothing is rounded outward.
    """

    coefficients: dict[int, Tensor]
    constant: Float[Tensor, "s k"]
    size: Float[Tensor, "s k"] | None

    def sized(self, c: Float[Tensor, "s k n"], v: Float[Tensor, "#s n"]) -> None:
        """Count products.

        Args:
            c: Their coefficients.
            v: Largest sizes of what they are multiplied with.
        """
        if self.size is not None:
            self.size = self.size + _dot(c.abs(), v)

    def read(self, layer: Layer, mu: Float[Tensor, "s k rows"], sizes: Tensor | None) -> None:
        """Add μ z of a layer, in what the layer reads.

        Args:
            layer: The layer.
            mu: Coefficients of z.
            sizes: `Layer.size` at every sample; None if sizes are not counted.
        """
        self.constant = self.constant + mu @ layer.shift.to(mu)
        if sizes is not None:
            self.sized(mu, sizes)
        for source, c in pull(layer.equation, mu).items():
            known = self.coefficients.get(source)
            self.coefficients[source] = c if known is None else known + c

    def relax(self, c: Float[Tensor, "s k states"], around: Lines, z: Box) -> Tensor:
        """Replace c x by the lines below it.

        Args:
            c: Coefficients of the states of a layer.
            around: Lines that hold φ.
            z: Boxes of the layer's pre-activations.

        Returns:
            Coefficients of its pre-activations.
        """
        up, down = c.clamp_min(0), c.clamp_max(0)
        self.constant = self.constant + _dot(up, around.below) + _dot(down, around.above)
        if self.size is not None:
            self.sized(c, torch.maximum(around.below.abs(), around.above.abs()))
        mu = _sloped(c, around)
        if around.held is not None:
            mu = mu + around.held[:, None]
        if self.size is not None:
            self.sized(mu, z.size if around.entry is None else z.size.gather(1, around.entry))
        if around.entry is None:
            return mu
        places = around.entry[:, None].expand_as(mu)
        return mu.new_zeros(*mu.shape[:2], z.low.shape[1]).scatter_add(2, places, mu)

    def least(self, c: Float[Tensor, "s k n"], box: Box) -> None:
        """Replace c s by its least value on a box.

        Args:
            c: Coefficients.
            box: Of s.
        """
        self.constant = self.constant + _dot(c, box.centre) - _dot(c.abs(), box.radius)
        if self.size is not None:
            self.sized(c, 2 * box.size)

    def both(self) -> "Function":
        """Put the negative of every function behind them.

        Returns:
            2 k functions a sample.
        """
        return Function(
            {s: torch.cat([c, -c], 1) for s, c in self.coefficients.items()},
            torch.cat([self.constant, -self.constant], 1),
            None if self.size is None else torch.cat([self.size, self.size], 1),
        )


@dataclass(frozen=True, eq=False)
class Substitution:
    """The first layers of a network, with boxes of their states and lines around their φ.

    Args:
        layers: All layers of the network, that of the outputs last.
        u: Boxes of inputs.
        boxes: Of the first hidden layers.
        around: Lines of each of them.
        rounded: Whether bounds are rounded outward: not while slopes are looked for.
    """

    layers: Sequence[Layer]
    u: Box
    boxes: tuple[Boxes, ...] = ()
    around: tuple[Lines, ...] = ()
    rounded: bool = True
    sizes: tuple[Tensor, ...] = field(default=(), repr=False)

    @property
    def sources(self) -> list[Box]:
        """Boxes of the states, then of the inputs."""
        return [*(b.x for b in self.boxes), self.u]

    def beyond(self, z: Box, x: Box | None = None) -> "Substitution":
        """Add the next layer.

        Args:
            z: Boxes of its pre-activations.
            x: Of its states; φ of z by default.

        Returns:
            One layer more.
        """
        layer = self.layers[len(self.boxes)]
        new = Boxes(z, image(layer.equation.phi, z) if x is None else x)
        whole = replace(
            self,
            boxes=(*self.boxes, new),
            around=(*self.around, lines(layer.equation.phi, z)),
        )
        read = whole if layer.own is not None else self
        return replace(whole, sizes=(*self.sizes, layer.size([s.size for s in read.sources])))

    def lowest(self, mu: Float[Tensor, "s rows"]) -> Float[Tensor, " s"]:
        """Bound one linear function of the next layer's pre-activations a row.

        Args:
            mu: Coefficients. Boxes and lines are of as many samples, or of one that is that of all.

        Returns:
            Lower bounds by substitution, differentiable in the lines.
        """
        return self._lowest(self._read(len(self.boxes), mu[:, None]))[:, 0]

    def margins(self, mu: Float[Tensor, "s k q"], deep: bool = True) -> Float[Tensor, "s k"]:
        """Bound linear functions of the outputs from below.

        Args:
            mu: Their coefficients.
            deep: Whether to substitute hidden layers; otherwise their boxes are taken.

        Returns:
            A bound for each sample and function, the larger of the two if `deep`.
        """
        first = self._read(len(self.layers) - 1, mu)
        kept = replace(first, coefficients=dict(first.coefficients))
        boxed = self._lowest(kept, deep=False)
        return torch.maximum(boxed, self._lowest(first)) if deep else boxed

    def tighter(self, at: int, z: Box, work: Float[Tensor, " s"]) -> Box:
        """Bound the pre-activations of a layer by substitution, where that can help.

        Args:
            at: Which layer: the next one, or one that reads itself.
            z: Boxes of its pre-activations.
            work: Multiplications that each sample may still take; what is taken is taken off. The
                widest boxes come first.

        Returns:
            Smaller boxes.
        """
        layer, below = self.layers[at], self.layers[: at + 1]
        (part, *more) = layer.parts
        if part.source == -1 and not more and (isinstance(part, Summand) or part.fixed is None):
            return z  # nothing is read twice
        which = unsettled(layer.equation.phi, z)
        price = 2 * sum(_work(e) for e in below) * (1 if layer.own is None else PASSES)
        count = torch.minimum(which.sum(1), (work / price).floor()).long()
        work -= count * price
        order = torch.where(which, z.high - z.low, -1.0).argsort(1, descending=True)
        order, taken = order[:, : int(count.max())], torch.arange(which.shape[1]) < count[:, None]
        widest = max(max(e.equation.size, e.equation.states) for e in below)
        step = max(1, NUMBERS // (2 * len(which) * max(widest, self.u.low.shape[1])))
        low, high = z.low, z.high
        for rows, mine in zip(order.split(step, 1), taken.split(step, 1), strict=False):
            one = torch.zeros(*rows.shape, which.shape[1], dtype=low.dtype)
            function = self._read(at, one.scatter(2, rows[:, :, None], 1.0))
            least, most = self._lowest(function.both()).chunk(2, 1)
            mine, old = mine[:, : rows.shape[1]], (low.gather(1, rows), high.gather(1, rows))
            low = low.scatter(1, rows, torch.where(mine, torch.maximum(old[0], least), old[0]))
            high = high.scatter(1, rows, torch.where(mine, torch.minimum(old[1], -most), old[1]))
        return Box(low, high)

    # μ z of a layer in what it reads
    def _read(self, at: int, mu: Tensor) -> Function:
        nothing = mu.new_zeros(mu.shape[:2])
        function = Function({}, nothing, nothing if self.rounded else None)
        sizes = self.sizes[at] if at < len(self.sizes) else None
        if sizes is None and self.rounded:
            sizes = self.layers[at].size([s.size for s in self.sources])
        function.read(self.layers[at], mu, sizes)
        return function

    # the least value that is left of a function, rounded down
    def _lowest(self, function: Function, deep: bool = True) -> Float[Tensor, "s k"]:
        left = function.coefficients
        for at in reversed(range(len(self.boxes))):
            if (c := left.pop(at, None)) is None:
                continue
            if not deep:
                function.least(c, self.boxes[at].x)
                continue
            layer, around, (z, x) = self.layers[at], self.around[at], self.boxes[at]
            lam = c if layer.own is None else _fixed(c, layer, around)
            sizes = self.sizes[at] if self.rounded else None
            function.read(layer, function.relax(lam, around, z), sizes)
            if layer.own is not None:
                function.least(left.pop(at) + c - lam, x)
                function.sized(c.abs() + lam.abs(), x.size)
        if -1 in left:
            function.least(left.pop(-1), self.u)
        if function.size is None:
            return function.constant
        return function.constant - 2 * slack(_sums(self.layers)) * function.size - TINY


def refined(layers: Sequence[Layer], u: Box, found: Boxes | None = None) -> Substitution:
    """Walk through the layers with boxes from substitution, each met with what intervals say.

    Args:
        layers: Of the network.
        u: Boxes of inputs.
        found: With feedback, boxes of the layer that reads itself.

    Returns:
        The network with its boxes and lines.
    """
    now = Substitution(layers, u)
    work = torch.full((len(u.low),), WORK, dtype=torch.float64)
    if found is not None:
        z = now.beyond(*found).tighter(0, found.z, work)
        x = found.x.meet(image(layers[0].equation.phi, z))
        return now.beyond(z.meet(layers[0].box([x, u])), x)
    for at, layer in enumerate(layers[:-1]):
        now = now.beyond(now.tighter(at, layer.box(now.sources), work))
    return now


def _dot(c: Float[Tensor, "s k n"], v: Float[Tensor, "#s n"]) -> Float[Tensor, "s k"]:
    if len(v) == 1:
        return c @ v[0]
    if c.shape[1] == 1:  # a product of matrices would take three times as long
        return (c[:, 0] * v).sum(1, keepdim=True)
    return (c @ v[:, :, None])[:, :, 0]


def _sloped(c: Float[Tensor, "s k n"], around: Lines) -> Float[Tensor, "s k n"]:
    return c * torch.where(c >= 0, around.slope_below[:, None], around.slope_above[:, None])


def _fixed(c: Float[Tensor, "s k n"], layer: Layer, around: Lines) -> Float[Tensor, "s k n"]:
    lam = c
    for _ in range(PASSES):
        lam = c + _sloped(lam, around) @ layer.feedback
    return lam


# most roundings behind a lower bound, relative to the sizes of what they round
def _sums(layers: Sequence[Layer]) -> int:
    longest = max(max(layer.equation.size, layer.equation.states) for layer in layers)
    products = max(layer.products for layer in layers)
    inputs = max(part.map.columns for layer in layers for part in layer.parts)
    return max(longest, inputs) + products + sum(len(layer.parts) + 8 for layer in layers)


def _work(layer: Layer) -> int:
    return sum(
        part.map.weight.numel() * part.map.positions if isinstance(part, Term) else part.map.columns
        for part in layer.parts
    )
