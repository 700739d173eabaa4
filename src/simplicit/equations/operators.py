"""A, B, C, D of a network: grids of linear maps.

The states x are the layers' φ(z), last hidden layer first; a row block of [A B] is one equation, a
column block one source. Nothing is written out unless it is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.network import Equation, StateEquations, Summand, Term
from simplicit.errors import InputError

Letter = Literal["A", "B", "C", "D"]


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
        """Write it out: rows × columns numbers, differentiable in the weights.

        Returns:
            The matrix, a new tensor.
        """
        matrix = self.equations.like.new_zeros(self.shape)
        for rows, columns, part in self.blocks():
            block = part.map.to_dense().to(matrix)
            if isinstance(part, Term) and part.fixed is not None:
                block = block @ part.fixed.to_dense().to(matrix)
            matrix[rows, columns] += block
        return matrix

    @property
    def nnz(self) -> int:
        """Non-zero weights of the maps in the grid; a shared weight counts once."""
        terms = [part for _, _, part in self.blocks() if isinstance(part, Term)]
        return _count(terms)


def nonzeros(equations: StateEquations) -> int:
    """Count the non-zero weights of a network, shared ones once.

    Args:
        equations: The network.

    Returns:
        Their number, with those inside operations that are kept as they are.
    """
    kept = sum(equations.kept_weights.values())
    return kept + _count([term for e in equations.layers for term in e.terms])


def _count(terms: Sequence[Term]) -> int:
    distinct = {id(term.weight): term.weight for term in terms}
    return sum(int(weight.count_nonzero()) for weight in distinct.values())


def constants(
    equations: StateEquations,
) -> tuple[Float[Tensor, "rows"] | None, Float[Tensor, "q"] | None]:
    """Write b and d out: the biases, and what weights make of the constants they read.

    Args:
        equations: The network.

    Returns:
        b, a number per entry of z, last hidden layer first, and d; None if no equation has
        constants.
    """

    def has_one(equation: Equation) -> bool:
        return equation.bias is not None or any(t.offset is not None for t in equation.terms)

    def constant(equation: Equation) -> Tensor:
        total = equations.like.new_zeros(equation.size)
        for term in equation.terms:
            if term.offset is not None:
                total = total + term.map(term.offset[None])[0]
        return total if equation.full_bias is None else total + equation.full_bias

    if not any(map(has_one, equations.layers)):
        return None, None
    b = [constant(equation) for equation in equations.hidden[::-1]]
    return torch.cat(b), constant(equations.output)


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
