"""Boxes layer by layer: interval propagation through z = Σ W (F s + c) + Σ G s + b, x = φ(z).

With |E| the layer with the absolute values of W, F and G and without c and b, a box of the sources
with centres m and radii r gives z within |E|(r) of the layer at m. Rounding of either is relative
to |E|(|m|) + |W||c| + |b|: every entry is a sum of products, in whatever order, see `intervals`.
That holds for convolutions and their transposes in float64, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.bounds.intervals import Box, Boxes, image, rounded_outward, slack
from simplicit.equations.compose import as_sparse
from simplicit.equations.equation import Equation, Summand, Term
from simplicit.equations.network import StateEquations
from simplicit.equations.weighted_maps import Gather, transposed
from simplicit.model.certificate import absolute


@dataclass(frozen=True, eq=False)
class Layer:
    """An equation with what its bounds need for every box.

    Args:
        equation: The equation, float64.
        absolute: |E|.
        own: Index of the term by which it reads its own state; None without feedback.
    """

    equation: Equation
    absolute: Equation
    own: int | None = None

    @property
    def parts(self) -> tuple[Term | Summand, ...]:
        """Its summands."""
        return (*self.equation.terms, *self.equation.fixed)

    @cached_property
    def shift(self) -> Float[Tensor, " rows"]:
        """Σ W c + b."""
        return self._constant(lambda t: t, self.equation)

    @cached_property
    def shift_size(self) -> Float[Tensor, " rows"]:
        """Σ |W||c| + |b|."""
        return self._constant(torch.abs, self.absolute)

    def _constant(self, change: Callable[[Tensor], Tensor], maps: Equation) -> Tensor:
        e = self.equation
        total = torch.zeros(e.size, dtype=torch.float64)
        for term, along in zip(e.terms, maps.terms, strict=True):
            if term.offset is not None:
                total = total + along.map(change(term.offset)[None])[0]
        return total if e.full_bias is None else total + change(e.full_bias)

    @cached_property
    def products(self) -> int:
        """Most products and sums behind one entry of z, or of what `pull` returns."""
        count = 0
        for part in self.parts:
            if isinstance(part, Term):
                linear = part.map
                # a row or a column meets a weight at most once
                count += min(linear.weight.numel(), max(linear.rows, linear.columns))
            for fixed in (part.fixed,) if isinstance(part, Term) else (part.map,):
                if fixed is not None:
                    entries = as_sparse(fixed, self.shift)
                    places = (entries.row, entries.column)
                    count += max(int(torch.bincount(p, minlength=1).max()) for p in places)
        return count + 2 * len(self.parts)

    @cached_property
    def rest(self) -> "Layer":
        """The layer without the term that reads its own state."""
        keep = [t for t in range(len(self.equation.terms)) if t != self.own]
        equation, size = (
            replace(e, terms=tuple(e.terms[t] for t in keep))
            for e in (self.equation, self.absolute)
        )
        return Layer(equation, size)

    @property
    def feedback(self) -> Float[Tensor, "n n"]:
        """A, by which it reads its own state."""
        assert self.own is not None
        return self.equation.terms[self.own].weight

    def size(self, sources: Sequence[Float[Tensor, "m _"]]) -> Float[Tensor, "m rows"]:
        """Bound the sum of the sizes of all products in z, but for rounding.

        Args:
            sources: Largest absolute values of the states of earlier layers, then of the input.

        Returns:
            |E| of them + Σ |W||c| + |b|.
        """
        return self.absolute.preactivation(sources) + self.shift_size

    def box(self, sources: Sequence[Box]) -> Box:
        """Bound z.

        Args:
            sources: Boxes of the states of earlier layers, then of the input.

        Returns:
            The tightest box but for rounding, where no entry of a source is read twice.
        """
        (part, *more) = self.parts
        if isinstance(part.map, Gather) and not more and self.equation.bias is None:
            moved = sources[part.source]  # without rounding
            return Box(part.map(moved.low), part.map(moved.high))
        k, read = slack(self.products), {s % len(sources) for s in self.equation.sources}
        middle = [s.centre if i in read else s.low for i, s in enumerate(sources)]
        reach = [
            s.radius + k * s.centre.abs() if i in read else s.low for i, s in enumerate(sources)
        ]
        radius = self.absolute.preactivation(reach) + k * self.shift_size
        return rounded_outward(self.equation.preactivation(middle), radius * (1 + k))


def prepared(equations: StateEquations) -> tuple[Layer, ...]:
    """Prepare the layers of a network for bounds.

    Args:
        equations: The network, float64, its tensors without gradients.

    Returns:
        Hidden layers in forward order, that of the outputs last.
    """
    every = zip(equations.layers, absolute(equations).layers, strict=True)
    return tuple(
        Layer(e, size, next((t for t, term in enumerate(e.terms) if term.source == k), None))
        for k, (e, size) in enumerate(every)
    )


def boxes(layers: Sequence[Layer], u: Box) -> tuple[Boxes, ...]:
    """Pass boxes of inputs through a network without feedback.

    Args:
        layers: Its layers.
        u: Boxes of inputs.

    Returns:
        Boxes of every hidden layer's pre-activations and states.
    """
    found: list[Boxes] = []
    for layer in layers[:-1]:
        z = layer.box([*(b.x for b in found), u])
        found.append(Boxes(z, image(layer.equation.phi, z)))
    return tuple(found)


def pull(equation: Equation, mu: Float[Tensor, "s k rows"]) -> Mapping[int, Float[Tensor, "s k _"]]:
    """Write μ z, but for constants, as a function of what the layer reads.

    Args:
        equation: The layer.
        mu: Coefficients, k functions for each of s samples.

    Returns:
        The coefficients of each source's states: Σ Fᵀ Wᵀ μ + Σ Gᵀ μ.
    """
    flat, found = mu.flatten(0, 1), {}
    for part in (*equation.terms, *equation.fixed):
        c = transposed(part.map, flat)
        if isinstance(part, Term) and part.fixed is not None:
            c = transposed(part.fixed, c)
        found[part.source] = found[part.source] + c if part.source in found else c
    return {source: c.unflatten(0, mu.shape[:2]) for source, c in found.items()}
