"""A feed-forward network as state equations z = Σ W (F s + c) + Σ G s + b, x = φ(z).

The embedding of a network into x = φ(Ax + Bu + b), y = Cx + Du + d is that of El Ghaoui, Gu,
Travacca, Askari, Tsai, "Implicit Deep Learning" (arXiv 1908.06315), section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit._types import Outputs
from simplicit.equations.equation import BiasParameter, Equation, Summand, Term
from simplicit.equations.interface import Input, Interface, Output
from simplicit.equations.layer_phi import Kept
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Block, Stacked

__all__ = ["BiasParameter", "Equation", "StateEquations", "Summand", "Term"]

Matrices = tuple[
    Float[Tensor, "n n"],
    Float[Tensor, "n p"],
    Float[Tensor, "q n"],
    Float[Tensor, "q p"],
    Float[Tensor, "n"],
    Float[Tensor, "q"],
]
"""A, B, C, D, b, d."""


@dataclass(frozen=True, eq=False)
class StateEquations:
    """Which layer feeds which, with which weights and which φ.

    Args:
        hidden: Equations of the hidden layers in forward order, the first layer first.
        output: Equation of the outputs (logits).
        input_shape: Shape of one sample, without the batch.
        nonzeros: N0, the network's non-zero weights; biases and batch norm are not counted, a
            shared weight counts once.
        interface: How the network is called and what it returns; None if it takes one tensor of
            `input_shape` and returns y itself.
    """

    hidden: tuple[Equation, ...]
    output: Equation
    input_shape: tuple[int, ...]
    nonzeros: int
    interface: Interface | None = None

    @property
    def p(self) -> int:
        """Number of inputs."""
        return prod(self.input_shape)

    @property
    def n(self) -> int:
        """Number of states of all hidden layers."""
        return sum(equation.states for equation in self.hidden)

    @property
    def q(self) -> int:
        """Number of outputs."""
        return self.output.size

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What stands in u."""
        return (Input("", self.input_shape),) if self.interface is None else self.interface.inputs

    @property
    def returned(self) -> tuple[Output, ...]:
        """What stands in y; empty if that is one row of numbers."""
        return () if self.interface is None else self.interface.outputs

    @property
    def like(self) -> Tensor:
        """A tensor of the network's dtype and device."""
        every = (term for equation in (*self.hidden, self.output) for term in equation.terms)
        return next(every).weight

    @property
    def layers(self) -> tuple[Equation, ...]:
        """All equations in forward order, that of the outputs last."""
        return (*self.hidden, self.output)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Hidden layers in the order of x; in a `full` model one equation has them side by side."""
        return tuple(
            block
            for e in reversed(self.hidden)
            for block in (
                e.phi.blocks if isinstance(e.phi, Stacked) else [Block(e.name, e.states, e.phi)]
            )
        )

    @property
    def feedback(self) -> bool:
        """Whether an equation reads its own state: then the states are an equilibrium."""
        return any(max(e.sources) >= k for k, e in enumerate(self.hidden))

    def changed(self, change: Callable[[Tensor], Tensor]) -> "StateEquations":
        """Change every tensor in it, see `Equation.changed`.

        Args:
            change: What becomes of a tensor.

        Returns:
            The equations with the new tensors.
        """
        known: dict[int, tuple[Tensor, Tensor]] = {}

        def once(tensor: Tensor) -> Tensor:  # what is shared stays shared
            if id(tensor) not in known:
                known[id(tensor)] = (tensor, change(tensor))
            return known[id(tensor)][1]

        hidden = tuple(equation.changed(once) for equation in self.hidden)
        return replace(self, hidden=hidden, output=self.output.changed(once))

    @property
    def kept(self) -> tuple[str, ...]:
        """Operations that are kept as they are: module path and name."""
        kept = ((e.name, e.phi) for e in self.hidden)
        return tuple(
            f"{name.split('@')[0]}: {phi.name}" for name, phi in kept if isinstance(phi, Kept)
        )

    @property
    def kept_weights(self) -> dict[str, int]:
        """Operations that are kept as they are and have weights: how many of them are not zero.

        Names are those of `kept`. A weight of several operations counts at the first one.
        """
        found: dict[str, int] = {}
        seen: set[int] = set()
        for equation in self.hidden:
            if not isinstance(equation.phi, Kept) or not equation.phi.weights:
                continue
            name = f"{equation.name.split('@')[0]}: {equation.phi.name}"
            weights = [equation.phi.constants[k] for k in equation.phi.weights]
            new = {id(weight): weight for weight in weights if id(weight) not in seen}
            seen |= set(new)
            count = sum(int(weight.count_nonzero()) for weight in new.values())
            found[name] = found.get(name, 0) + count
        return found

    @property
    def elementwise(self) -> list[Phi]:
        """φ of the hidden layers whose φ is elementwise: of all of them, if not `structured`."""
        return [equation.phi for equation in self.hidden if isinstance(equation.phi, Phi)]

    @property
    def structured(self) -> bool:
        """Whether there is anything but matrices on flattened samples and elementwise φ."""
        every = (*self.hidden, self.output)
        dense = all(term.is_matrix for equation in every for term in equation.terms)
        return not (dense and all(isinstance(equation.phi, Phi | Stacked) for equation in every))

    def replay(self, u: Float[Tensor, "m *shape"]) -> tuple[list[Float[Tensor, "m _"]], Outputs]:
        """Run the network, keeping every pre-activation.

        Args:
            u: Inputs (m, *input_shape); moved to the weights' dtype and device.

        Returns:
            The hidden z (m, n_l) in forward order, and y (m, q).
        """
        u = u.to(self.like).flatten(1)
        pre: list[Tensor] = []
        states: list[Tensor] = []
        for equation in self.hidden:
            pre.append(equation.preactivation([*states, u]))
            states.append(equation.phi(pre[-1]))
        return pre, self.output.preactivation([*states, u])

    def activate(self, Z: Float[Tensor, "m rows"]) -> Float[Tensor, "m states"]:
        """Apply each layer's φ to its own columns.

        Args:
            Z: Pre-activations, last hidden layer first.

        Returns:
            X = φ(Z), in the same order.
        """
        parts = Z.split([equation.size for equation in reversed(self.hidden)], dim=1)
        layers = zip(reversed(self.hidden), parts, strict=True)
        return torch.cat([equation.phi(part) for equation, part in layers], dim=1)

    @property
    def slices(self) -> list[slice]:
        """Where each hidden equation's states are in x, whose order is last hidden layer first."""
        starts = [self.n - through for through in accumulate(e.states for e in self.hidden)]
        return [slice(i, i + e.states) for i, e in zip(starts, self.hidden, strict=True)]

    def dense(self, dtype: torch.dtype = torch.float64) -> Matrices:
        """Write the network as an implicit model, in the papers' order: last hidden layer first.

        Only where every φ is elementwise; memory grows with the square of the states.

        Args:
            dtype: Of the matrices.

        Returns:
            A (n, n), strictly block upper triangular, B (n, p), C (q, n), D (q, p), and the
            biases b (n,), d (q,), zero where the network has none.
        """
        # the columns of one row block are all states, then the input
        states = self.like.new_zeros(self.n, self.n + self.p, dtype=dtype)
        outputs = self.like.new_zeros(self.q, self.n + self.p, dtype=dtype)
        b, d = states.new_zeros(self.n), states.new_zeros(self.q)
        columns = [*self.slices, slice(self.n, self.n + self.p)]
        blocks = [(states[i], b[i]) for i in self.slices] + [(outputs, d)]
        for equation, (matrix, bias) in zip((*self.hidden, self.output), blocks, strict=True):
            for term in equation.terms:
                W = term.map.to_dense().to(dtype)
                matrix[:, columns[term.source]] += (
                    W if term.fixed is None else W @ term.fixed.to_dense().to(dtype)
                )
                if term.offset is not None:
                    bias += W @ term.offset.to(dtype)
            for summand in equation.fixed:
                matrix[:, columns[summand.source]] += summand.map.to_dense().to(dtype)
            if equation.full_bias is not None:
                bias += equation.full_bias.to(dtype)
        (A, B), (C, D) = (M.split([self.n, self.p], dim=1) for M in (states, outputs))
        return A.contiguous(), B.contiguous(), C.contiguous(), D.contiguous(), b, d
