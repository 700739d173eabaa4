"""One layer, z = Σ W (F s + c) + Σ G s + b and x = φ(z), and what it is made of."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.compose import Fixed
from simplicit.equations.layer_phi import Kept, StatePhi, states_of
from simplicit.equations.maps.matrix import swapped
from simplicit.equations.weighted_maps import Dense, WeightedMap

Sources = Sequence[Float[Tensor, "m _"]]
"""The states of all earlier equations, then the flattened input, so that index −1 is the input."""


@dataclass(frozen=True, eq=False)
class Term:
    """One summand W (F s + c) of an equation.

    Args:
        source: Where s comes from: −1 is the network's input, flattened; otherwise the index of
            a hidden equation, whose state s is: an earlier one, or itself (feedback).
        map: W, see `WEIGHTED_MAPS`; batch norm that follows it is folded into it.
        fixed: F, how the entries of s come before W; None if they do as they are.
        offset: c, which zero padding keeps from being a part of the bias, or None.
        parameter: Name of W in the network's state dict; terms with the same one share it. Empty
            if W is computed from other parameters.
        transposed: Whether W is the transpose of that parameter: rows and columns are exchanged
            within each group.
        gain: W = gain · parameter, a factor per row (channel) of W; None if that is 1.
    """

    source: int
    map: WeightedMap
    fixed: Fixed | None = None
    offset: Float[Tensor, "columns"] | None = None
    parameter: str = ""
    transposed: bool = False
    gain: Float[Tensor, "channels"] | None = None

    @property
    def weight(self) -> Tensor:
        """The entries of W: (channels, reads, …); matrices have no more axes."""
        return self.map.weight

    @property
    def is_matrix(self) -> bool:
        """Whether W is one matrix on flattened samples, `weight` itself."""
        return isinstance(self.map, Dense) and self.map.positions == 1

    def stored(self, weight: Tensor) -> Tensor:
        """Turn a weight of W's shape into one of the parameter's, or back.

        Args:
            weight: With a row per channel of W, or as the network stores it.

        Returns:
            The other.
        """
        return swapped(weight, self.map.groups) if self.transposed else weight

    def reads(self, s: Float[Tensor, "m _"]) -> Float[Tensor, "m columns"]:
        """Compute what W reads; `map.patches` of it are the features of W's rows.

        Args:
            s: The source's states.

        Returns:
            F s + c.
        """
        x = s if self.fixed is None else self.fixed(s)
        return x if self.offset is None else x + self.offset


@dataclass(frozen=True, eq=False)
class Summand:
    """One fixed summand G s of an equation: a shortcut, a pooled or a moved state.

    Args:
        source: Where s comes from, as in `Term`.
        map: G.
    """

    source: int
    map: Fixed


@dataclass(frozen=True, eq=False)
class BiasParameter:
    """The parameter that moves an equation's bias: b = factor · parameter + rest.

    Args:
        name: Its name in the network's state dict: the batch norm's or the layer's own bias. Empty
            if the network has none there.
        factor: How far b moves with it, by channel.
        rest: What else is in b: a number per channel, or per entry where positions differ.
    """

    name: str
    factor: Float[Tensor, "channels"]
    rest: Float[Tensor, "_"]


@dataclass(frozen=True, eq=False)
class Equation:
    """One layer, z = Σ W (F s + c) + Σ G s + b and x = φ(z).

    Args:
        name: Module path of the affine map, e.g. `0` or `encoder.fc1`; a module used again has
            `@1`, `@2`, … behind it.
        terms: What can be learned; none for a layer that only adds, pools or moves states.
        bias: b, one number per entry of z or per channel of the first term; or None.
        phi: φ; the identity for the output and between linear layers with nothing in between.
        fixed: What cannot.
        adjust: The parameter that moves the bias; None if nothing is learned.
    """

    name: str
    terms: tuple[Term, ...]
    bias: Float[Tensor, "_"] | None
    phi: StatePhi
    fixed: tuple[Summand, ...] = ()
    adjust: BiasParameter | None = None

    @property
    def size(self) -> int:
        """Entries of z."""
        return (*self.terms, *self.fixed)[0].map.rows

    @property
    def states(self) -> int:
        """Entries of x; fewer than of z if φ pools."""
        return states_of(self.phi, self.size)

    @property
    def products(self) -> int:
        """Multiply-adds of its weights for one sample."""
        return sum(term.map.positions * term.weight.numel() for term in self.terms)

    @property
    def sources(self) -> tuple[int, ...]:
        """Where its summands come from, each once, in rising order."""
        return tuple(sorted({part.source for part in (*self.terms, *self.fixed)}))

    @property
    def channel_bias(self) -> Float[Tensor, "channels"] | None:
        """One bias per row of W: per unit, per channel; None if b differs between positions."""
        first = self.terms[0].map
        if self.full_bias is None:
            return first.weight.new_zeros(len(first.weight))
        channel = first.by_channel(self.full_bias[None])[0, 0]
        return channel if torch.equal(first.spread(channel), self.full_bias) else None

    @property
    def full_bias(self) -> Float[Tensor, "rows"] | None:
        """One bias per entry of z."""
        if self.bias is None or len(self.bias) == self.size:
            return self.bias
        return self.terms[0].map.spread(self.bias)

    @property
    def bias_change(self) -> Float[Tensor, "channels"] | None:
        """How far the channels' biases are from what `adjust` leaves: factor · parameter.

        None if positions of a channel have moved by different amounts.
        """
        assert self.adjust is not None
        first, rest = self.terms[0].map, self.adjust.rest
        by_channel = len(rest) == len(self.adjust.factor)
        if by_channel and self.channel_bias is not None:
            return self.channel_bias.detach() - rest
        bias = first.weight.new_zeros(self.size) if self.full_bias is None else self.full_bias
        moved = bias.detach() - (first.spread(rest) if by_channel else rest)
        change = first.by_channel(moved[None])[0].mean(0)
        close = torch.allclose(first.spread(change), moved, rtol=1e-4, atol=1e-5)
        return change if close else None

    def with_bias_change(self, change: Float[Tensor, "channels"]) -> "Equation":
        """Move the channels' biases to where they are so far from what `adjust` leaves.

        Args:
            change: factor · parameter.

        Returns:
            The equation with these biases.
        """
        assert self.adjust is not None
        first, rest = self.terms[0].map, self.adjust.rest
        spread = first.spread(rest) if len(rest) == len(self.adjust.factor) else rest
        return replace(self, bias=first.spread(change) + spread)

    @property
    def unbiased(self) -> "Equation":
        """The equation without its bias."""
        return replace(self, bias=None, adjust=None)

    def preactivation(
        self, sources: Sources, without: Collection[int] = ()
    ) -> Float[Tensor, "m rows"]:
        """Compute z for a batch.

        Args:
            sources: The states of all earlier equations, then the flattened input.
            without: Terms to leave out.

        Returns:
            z, a row per sample.
        """
        terms = [term for t, term in enumerate(self.terms) if t not in without]
        parts = [term.map(term.reads(sources[term.source])) for term in terms]
        parts += [summand.map(sources[summand.source]) for summand in self.fixed]
        if not parts:
            parts = [sources[-1].new_zeros(len(sources[-1]), self.size)]
        z, bias = sum(parts[1:], parts[0]), self.full_bias
        return z if bias is None else z + bias

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Equation":
        """Change every tensor in it: dtype, device, or sign.

        Args:
            change: What becomes of a tensor.

        Returns:
            The equation with the new tensors.
        """
        terms = tuple(
            replace(
                term,
                map=replace(term.map, weight=change(term.map.weight)),
                fixed=term.fixed and term.fixed.changed(change),
                offset=None if term.offset is None else change(term.offset),
                gain=None if term.gain is None else change(term.gain),
            )
            for term in self.terms
        )
        return replace(
            self,
            terms=terms,
            bias=None if self.bias is None else change(self.bias),
            phi=self.phi.changed(change) if isinstance(self.phi, Kept) else self.phi,
            fixed=tuple(replace(s, map=s.map.changed(change)) for s in self.fixed),
            adjust=self.adjust
            and replace(
                self.adjust, factor=change(self.adjust.factor), rest=change(self.adjust.rest)
            ),
        )
