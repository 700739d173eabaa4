"""Affine maps of states: what a value inside a network is, between two activations."""

from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from simplicit.equations.compose import Fixed, compose, identity, plus, scale
from simplicit.equations.network import Summand, Term


@dataclass(frozen=True, eq=False)
class Affine:
    """The value Σ W (F s + c) + Σ G s + b of one sample, flattened.

    Args:
        shape: What the network sees of it, in a batch of one sample, whichever dimension that is.
        like: A tensor of the network's dtype and device.
        terms: W, F and c; after the first, only elementwise operations keep the value as it is.
        fixed: Source -> G. Sources are those of `Term`.
        bias: b, or None.
        name: Module path of the linear map in it, empty if there is none.
        adjust: The parameter that moves the bias: its name, and how far, a number per channel.
        dtype: What the network has, if not that of `like`: comparisons, whole numbers.
    """

    shape: tuple[int, ...]
    like: Tensor
    terms: tuple[Term, ...] = ()
    fixed: dict[int, Fixed] = field(default_factory=dict)
    bias: Tensor | None = None
    name: str = ""
    adjust: tuple[str, Tensor] | None = None
    dtype: torch.dtype | None = None

    @classmethod
    def of_source(
        cls, source: int, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None
    ) -> "Affine":
        """Make the value of a source itself.

        Args:
            source: −1 for the input, otherwise the index of a hidden equation.
            shape: Of the value, in a batch of one sample.
            like: A tensor of the network's dtype and device.
            dtype: What the network has, if not that of `like`.

        Returns:
            The value, with the identity as its map.
        """
        like = like.new_empty(0)
        return cls(shape, like, fixed={source: identity(prod(shape), like.device)}, dtype=dtype)

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def bare(self) -> int | None:
        """The source, if the value is the state of one and nothing else."""
        if self.terms or self.bias is not None or len(self.fixed) != 1:
            return None
        ((source, moved),) = self.fixed.items()
        return source if getattr(moved, "is_identity", False) else None

    @property
    def summands(self) -> tuple[Summand, ...]:
        """Its fixed part, by source."""
        return tuple(Summand(source, G) for source, G in sorted(self.fixed.items()))

    def reshaped(self, shape: tuple[int, ...]) -> "Affine":
        """Give it another shape, with its entries in the same order.

        Args:
            shape: In a batch of one sample.

        Returns:
            The value.
        """
        return replace(self, shape=shape)

    def mapped(self, linear: Fixed, shape: tuple[int, ...]) -> "Affine":
        """Apply a fixed map, if there are no terms.

        Args:
            linear: The map.
            shape: Of the result, in a batch of one sample.

        Returns:
            The value.
        """
        assert not self.terms
        fixed = {source: compose(linear, G, self.like) for source, G in self.fixed.items()}
        bias = None if self.bias is None else linear(self.bias[None])[0]
        return replace(self, shape=shape, fixed=fixed, bias=bias, adjust=None)

    def by_channel(self, factor: Tensor) -> list[Tensor] | None:
        """Write a factor as one number per channel of each term.

        Args:
            factor: One number per entry.

        Returns:
            A vector per term, or None if some channel has more than one.
        """
        found = []
        for term in self.terms:
            channel = term.map.by_channel(factor[None])[0, 0]
            if not torch.equal(term.map.spread(channel), factor):
                return None
            found.append(channel)
        return found

    def scaled(self, factor: Tensor) -> "Affine":
        """Multiply entry by entry.

        Args:
            factor: One number per entry; one per channel where there are terms.

        Returns:
            The product.
        """
        channels = self.by_channel(factor)
        assert channels is not None
        terms = []
        for term, channel in zip(self.terms, channels, strict=True):
            rows = channel.reshape(-1, *[1] * (term.weight.ndim - 1))
            linear = replace(term.map, weight=term.weight * rows)
            gain = channel if term.gain is None else term.gain * channel
            terms.append(replace(term, map=linear, gain=gain))
        diagonal = scale(factor)
        fixed = {source: compose(diagonal, G, self.like) for source, G in self.fixed.items()}
        bias = None if self.bias is None else self.bias * factor
        adjust = self.adjust and (self.adjust[0], self.adjust[1] * channels[0])
        return replace(self, terms=tuple(terms), fixed=fixed, bias=bias, adjust=adjust)

    def shifted(self, constant: Tensor) -> "Affine":
        """Add a constant.

        Args:
            constant: One number per entry.

        Returns:
            The sum.
        """
        return replace(self, bias=constant if self.bias is None else self.bias + constant)

    def adjusted_by(self, adjust: tuple[str, Tensor] | None) -> "Affine":
        """Say which parameter moves the bias from here on.

        Args:
            adjust: Its name, and how far, a number per channel.

        Returns:
            The value.
        """
        return replace(self, adjust=adjust)

    def plus(self, other: "Affine") -> "Affine":
        """Add a value of the same size.

        Args:
            other: The other summand.

        Returns:
            The sum, with one fixed map per source.
        """
        fixed = dict(self.fixed)
        for source, G in other.fixed.items():
            fixed[source] = plus(fixed[source], G, self.like) if source in fixed else G
        total = replace(
            self,
            terms=self.terms + other.terms,
            fixed=fixed,
            name=self.name or other.name,
            adjust=self.adjust or other.adjust,
        )
        return total if other.bias is None else total.shifted(other.bias)
