"""A, B, C, D of a network with convolutions: grids of linear maps, and passes through its layers.

The states x are the layers' φ(z), last hidden layer first, as in the dense case; a row block of
[A B] is one equation, a column block one source. Nothing is written out unless it is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ._types import Inputs, Outputs, States
from .blockwise import Kept
from .certificate import KAPPA, Certificate
from .equations import Equation, StateEquations, Summand, Term
from .equilibrium import Equilibrium, judged
from .errors import InputError

Letter = Literal["A", "B", "C", "D"]

BYTES = 2.0**28
"""Memory that the states of a batch may take while a model predicts; larger batches are split."""


@dataclass(frozen=True, eq=False)
class BlockOperator:
    """One of A, B, C, D as a grid of linear maps over layers.

    Args:
        equations: The layers.
        letter: Which of the four it is.
    """

    equations: StateEquations
    letter: Letter

    @property
    def row_blocks(self) -> tuple[Equation, ...]:
        """The equations of its rows, last hidden layer first."""
        e = self.equations
        return e.hidden[::-1] if self.letter in "AB" else (e.output,)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; A has a row per entry of z and a column per state."""
        columns = self.equations.n if self.letter in "AC" else self.equations.p
        return sum(equation.size for equation in self.row_blocks), columns

    def _columns(self) -> dict[int, slice]:
        e = self.equations
        return dict(enumerate(e.slices)) if self.letter in "AC" else {-1: slice(0, e.p)}

    def blocks(self) -> Iterator[tuple[slice, slice, Term | Summand]]:
        """List what is in the grid.

        Yields:
            Rows, columns, and a summand of the block there: W F or G.
        """
        columns, stop = self._columns(), 0
        for equation in self.row_blocks:
            start, stop = stop, stop + equation.size
            for part in (*equation.terms, *equation.fixed):
                if part.source in columns:
                    yield slice(start, stop), columns[part.source], part

    def __call__(self, x: Float[Tensor, "m columns"]) -> Float[Tensor, "m rows"]:
        """Apply the operator.

        Returns:
            The products, a row per sample.
        """
        y = x.new_zeros(len(x), self.shape[0])
        for rows, columns, part in self.blocks():
            s = x[:, columns]
            if isinstance(part, Term):
                s = s if part.fixed is None else part.fixed(s)
            y = y.index_add(1, torch.arange(rows.start, rows.stop, device=x.device), part.map(s))
        return y

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Write it out: rows × columns numbers.

        Returns:
            The matrix.
        """
        matrix = self.equations.like.new_zeros(self.shape)
        with torch.no_grad():
            for rows, columns, part in self.blocks():
                block = part.map.to_dense().to(matrix)
                if isinstance(part, Term) and part.fixed is not None:
                    block = block @ part.fixed.to_dense().to(matrix)
                matrix[rows, columns] += block
        return matrix

    @property
    def nnz(self) -> int:
        """Non-zero weights; one that several places share counts once, fixed maps have none."""
        return _nonzeros(part for _, _, part in self.blocks() if isinstance(part, Term))

    def absolute(self) -> "BlockOperator":
        """Take absolute values of weights and fixed maps.

        Returns:
            An operator that bounds this one entry by entry.
        """
        return BlockOperator(absolute(self.equations), self.letter)


def _nonzeros(terms: Iterator[Term]) -> int:
    distinct = {id(term.weight): term for term in terms}
    return sum(term.map.nnz for term in distinct.values())


def nonzeros(equations: StateEquations) -> int:
    """Count the non-zero weights of a network, shared ones once.

    Args:
        equations: The network.

    Returns:
        Their number, with those inside operations that are kept as they are.
    """
    kept = sum(e.phi.nnz for e in equations.hidden if isinstance(e.phi, Kept))
    return kept + _nonzeros(term for e in equations.layers for term in e.terms)


def absolute(equations: StateEquations) -> StateEquations:
    """Take absolute values of all weights and fixed maps, and leave out constants.

    Args:
        equations: The network.

    Returns:
        The same layers with |W|, |F|, |G| and no biases.
    """

    def positive(equation: Equation) -> Equation:
        terms = tuple(
            replace(t, map=t.map.absolute(), fixed=t.fixed and t.fixed.absolute(), offset=None)
            for t in equation.terms
        )
        fixed = tuple(replace(s, map=s.map.absolute()) for s in equation.fixed)
        return replace(equation, terms=terms, fixed=fixed, bias=None)

    hidden = tuple(positive(equation) for equation in equations.hidden)
    return replace(equations, hidden=hidden, output=positive(equations.output))


def constants(equations: StateEquations) -> tuple[Float[Tensor, "rows"], Float[Tensor, "q"]]:
    """Write b and d out: the biases, and what weights make of the constants they read.

    Args:
        equations: The network.

    Returns:
        b, a number per entry of z, last hidden layer first, and d.
    """

    def constant(equation: Equation) -> Tensor:
        total = equations.like.new_zeros(equation.size)
        for term in equation.terms:
            if term.offset is not None:
                total = total + term.map(term.offset[None])[0]
        return total if equation.full_bias is None else total + equation.full_bias

    b = [constant(equation) for equation in equations.hidden[::-1]]
    return torch.cat(b), constant(equations.output)


def all_states(equations: StateEquations, u: Inputs) -> States:
    """Compute every state, layer by layer.

    Args:
        equations: The network.
        u: Inputs, flattened.

    Returns:
        x, last hidden layer first.
    """
    states: list[Tensor] = []
    for equation in equations.hidden:
        states.append(equation.phi(equation.preactivation([*states, u])))
    return torch.cat(states[::-1], 1)


def exact(equations: StateEquations, u: Inputs) -> Equilibrium:
    """Solve the equation in one pass, and look at it once more as x = φ(Ax + Bu + b).

    Args:
        equations: The network.
        u: Inputs, flattened.

    Returns:
        The equilibria; steps is the number of layers.
    """
    x = all_states(equations, u)
    with torch.no_grad():
        A, B = BlockOperator(equations, "A"), BlockOperator(equations, "B")
        again = equations.activate(A(x) + B(u) + constants(equations)[0])
    return judged(x, again, u.isfinite().all(1), len(equations.hidden))


def predict(equations: StateEquations, u: Inputs) -> Outputs:
    """Compute the outputs; a state is given up after its last reader, a large batch is split.

    Args:
        equations: The network.
        u: Inputs, flattened.

    Returns:
        y.
    """
    size = max(equation.size + equation.states for equation in equations.hidden)
    last: dict[int, int] = {}
    for index, equation in enumerate(equations.layers):
        last |= dict.fromkeys(equation.sources, index)
    alive = [0] * (len(last) + len(equations.layers))
    for source, end in last.items():
        if source >= 0:
            for index in range(source, end + 1):
                alive[index] += equations.hidden[source].states
    each = (max(alive) + size) * u.element_size()
    samples = max(1, int(BYTES // max(each, 1)))
    return torch.cat([_outputs(equations, part, last) for part in u.split(samples)])


def _outputs(equations: StateEquations, u: Tensor, last: dict[int, int]) -> Tensor:
    states: list[Tensor] = []
    nothing = u.new_empty(len(u), 0)
    for index, equation in enumerate(equations.hidden):
        states.append(equation.phi(equation.preactivation([*states, u])))
        for source, end in last.items():
            if end == index and source >= 0:
                states[source] = nothing
    return equations.output.preactivation([*states, u])


def nilpotence(equations: StateEquations, kappa: float = KAPPA) -> Certificate:
    """Certify a network's equation: every layer reads earlier ones, so A is nilpotent.

    ω = 1 + φ₊(|A| ω) / κ, layer by layer, with φ₊ the factor L of an elementwise φ and the largest
    entry of a window for max-pooling; so ‖A‖∞,ω < κ. An operation that is kept has no known L:
    the equation is well-posed all the same, but the norm is NaN.

    Args:
        equations: The network.
        kappa: Norm to aim at.

    Returns:
        The certificate.
    """
    bound = absolute(equations.changed(_in_double))
    omega: list[Tensor] = []
    worst = torch.zeros((), dtype=torch.float64)
    u = torch.zeros(1, equations.p, dtype=torch.float64)  # inputs are no states
    for equation in bound.hidden:
        if isinstance(equation.phi, Kept):
            whole = torch.ones(equations.n, dtype=torch.float64)
            return Certificate(True, float("nan"), "nilpotent", whole)
        sums = equation.preactivation([*omega, u])
        steep = equation.phi.lipschitz * (
            equation.phi(sums) if equation.phi.name == "max_pool" else sums
        )
        omega.append(1 + steep / kappa)
        worst = torch.maximum(worst, (steep / omega[-1]).max())
    # products and sums of non-negative numbers, rounded outward; a very deep net's ω overflows
    norm = float(worst) * (1 + (equations.n + 8) * torch.finfo(torch.float64).eps)
    weights = torch.cat(omega[::-1], 1)[0]
    return Certificate(True, norm if weights.isfinite().all() else kappa, "nilpotent", weights)


def _in_double(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def with_weights(
    equations: StateEquations,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Tensor | None],
) -> StateEquations:
    """Put other weights and biases into a network.

    Args:
        equations: The network.
        weights: For each of `equations.layers`, one tensor per term, shaped as that term's weight.
            Terms that are given the same tensor share it.
        biases: For each of them, one number per channel or per entry of z, or None for the bias
            that is there.

    Returns:
        The network with them.

    Raises:
        InputError: On a weight or bias of another shape.
    """
    layers = []
    for e, new, bias in zip(equations.layers, weights, biases, strict=True):
        for term, weight in zip(e.terms, new, strict=True):
            if weight.shape != term.weight.shape:
                raise InputError(
                    f"a weight of {e.name} has shape {tuple(weight.shape)}: accepted is "
                    f"{tuple(term.weight.shape)}"
                )
        terms = tuple(
            replace(term, map=replace(term.map, weight=weight))
            for term, weight in zip(e.terms, new, strict=True)
        )
        if bias is not None and len(bias) not in (e.size, len(e.terms[0].weight) if terms else 0):
            raise InputError(
                f"the bias of {e.name} has {len(bias)} numbers: accepted is one per channel, or "
                f"{e.size}"
            )
        layers.append(replace(e, terms=terms, bias=e.bias if bias is None else bias))
    return replace(equations, hidden=tuple(layers[:-1]), output=layers[-1])
