"""A feed-forward network as state equations z = Σ W s + b, x = φ(z), and as A, B, C, D.

The embedding of a network into x = φ(Ax + Bu + b), y = Cx + Du + d is that of El Ghaoui, Gu,
Travacca, Askari, Tsai, "Implicit Deep Learning" (arXiv 1908.06315), section 3.
"""

from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._types import Outputs, States
from .phi import Phi

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
class Term:
    """One summand W s of an equation.

    Args:
        source: Where s comes from: −1 is the network's input, flattened; otherwise the index of
            an earlier hidden equation, whose state s is.
        weight: W, a row per unit of the equation, a column per unit of the source.
    """

    source: int
    weight: Float[Tensor, "rows columns"]


@dataclass(frozen=True, eq=False)
class Equation:
    """One layer, z = Σ W s + b and x = φ(z).

    Args:
        name: Module path of the affine map, e.g. `0` or `encoder.fc1`; a module used again has
            `@1`, `@2`, … behind it.
        terms: The sum, one term per source.
        bias: b, or None.
        phi: φ; the identity for the output and between linear layers with nothing in between.
    """

    name: str
    terms: tuple[Term, ...]
    bias: Float[Tensor, "rows"] | None
    phi: Phi

    @property
    def size(self) -> int:
        """Number of units."""
        return self.terms[0].weight.shape[0]

    def preactivation(self, sources: list[Float[Tensor, "m _"]]) -> Float[Tensor, "m rows"]:
        """Compute z for a batch.

        Args:
            sources: The states of all earlier equations, then the flattened input (so that
                index −1 is the input).

        Returns:
            z, a row per sample.
        """
        z = torch.stack([F.linear(sources[t.source], t.weight) for t in self.terms]).sum(0)
        return z if self.bias is None else z + self.bias


@dataclass(frozen=True, eq=False)
class StateEquations:
    """Which layer feeds which, with which weights and which φ.

    Args:
        hidden: Equations of the hidden layers in forward order, the first layer first.
        output: Equation of the outputs (logits).
        input_shape: Shape of one sample, without the batch.
        nonzeros: N0, the network's non-zero weights; biases and batch norm are not counted, a
            shared weight counts once.
    """

    hidden: tuple[Equation, ...]
    output: Equation
    input_shape: tuple[int, ...]
    nonzeros: int

    @property
    def p(self) -> int:
        """Number of inputs."""
        return prod(self.input_shape)

    @property
    def n(self) -> int:
        """Number of states, the units of all hidden layers."""
        return sum(equation.size for equation in self.hidden)

    @property
    def q(self) -> int:
        """Number of outputs."""
        return self.output.size

    def replay(self, u: Float[Tensor, "m *shape"]) -> tuple[list[Float[Tensor, "m _"]], Outputs]:
        """Run the network, keeping every pre-activation.

        Args:
            u: Inputs (m, *input_shape); moved to the weights' dtype and device.

        Returns:
            The hidden z (m, n_l) in forward order, and y (m, q).
        """
        u = u.to(self.output.terms[0].weight).flatten(1)
        pre: list[Tensor] = []
        states: list[Tensor] = []
        for equation in self.hidden:
            pre.append(equation.preactivation([*states, u]))
            states.append(equation.phi(pre[-1]))
        return pre, self.output.preactivation([*states, u])

    def activate(self, Z: States) -> States:
        """Apply each layer's φ to its own columns.

        Args:
            Z: Pre-activations, last hidden layer first.

        Returns:
            X = φ(Z), in the same order.
        """
        layers = zip(reversed(self.hidden), reversed(self.slices), strict=True)
        return torch.cat([equation.phi(Z[:, columns]) for equation, columns in layers], dim=1)

    @property
    def slices(self) -> list[slice]:
        """Where each hidden equation's states are in x, whose order is last hidden layer first."""
        starts = [self.n - through for through in accumulate(e.size for e in self.hidden)]
        return [slice(i, i + e.size) for i, e in zip(starts, self.hidden, strict=True)]

    def dense(self, dtype: torch.dtype = torch.float64) -> Matrices:
        """Write the network as an implicit model, in the papers' order: last hidden layer first.

        Args:
            dtype: Of the matrices.

        Returns:
            A (n, n), strictly block upper triangular, B (n, p), C (q, n), D (q, p), and the
            biases b (n,), d (q,), zero where the network has none.
        """
        weight = self.output.terms[0].weight
        # the columns of one row block are all states, then the input
        states = weight.new_zeros(self.n, self.n + self.p, dtype=dtype)
        outputs = weight.new_zeros(self.q, self.n + self.p, dtype=dtype)
        b, d = states.new_zeros(self.n), states.new_zeros(self.q)
        columns = [*self.slices, slice(self.n, self.n + self.p)]
        blocks = [(states[i], b[i]) for i in self.slices] + [(outputs, d)]
        for equation, (matrix, bias) in zip((*self.hidden, self.output), blocks, strict=True):
            for term in equation.terms:
                matrix[:, columns[term.source]] = term.weight.to(dtype)
            if equation.bias is not None:
                bias.copy_(equation.bias)
        (A, B), (C, D) = (M.split([self.n, self.p], dim=1) for M in (states, outputs))
        return A.contiguous(), B.contiguous(), C.contiguous(), D.contiguous(), b, d
