"""Which features each row may use: the three structures of A, as blocks of rows solved together.

All rows draw their features from the columns of V = [X U 1]: the states in the papers' order (last
hidden layer first), the inputs, and a one for the bias.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.convex.gram import Gram
from simplicit.equations.equation import Term
from simplicit.equations.matrices import from_matrices
from simplicit.equations.network import StateEquations
from simplicit.equations.stacked import Block
from simplicit.equations.weighted_maps import Dense
from simplicit.errors import InputError

Structure = Literal["full", "triangular", "layered"]


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Rows of [A B b; C D d] that share their features.

    Attributes:
        name: The layer's module path, `states` for all rows of a full A, or `output`.
        rows: Which rows, as columns of the targets [Z Y].
        columns: Which columns of V = [X U 1] they may use, in rising order.
    """

    name: str
    rows: slice
    columns: Int[Tensor, " N"]


def row_blocks(equations: StateEquations, structure: Structure, bias: bool) -> list[RowBlock]:
    """List the blocks in the order in which they can be matched, first layer first.

    Args:
        equations: The teacher.
        structure: `full`: a state may use every state; `triangular`: those of earlier layers;
            `layered`: the teacher's own connections. All may use the inputs, but in `layered`
            only where the teacher does.
        bias: Whether rows have a bias.

    Returns:
        One block per layer and one for the outputs (`full`: one for all states).

    Raises:
        InputError: On an unknown structure.
    """
    n, p, q = equations.n, equations.p, equations.q
    inputs = torch.arange(n, n + p + (1 if bias else 0))
    every = torch.arange(n + p + (1 if bias else 0))
    output = RowBlock("output", slice(n, n + q), every)
    if structure == "full":
        return [RowBlock("states", slice(0, n), every), output]
    slices = equations.slices
    if structure == "triangular":
        # earlier layers stand behind a layer in the papers' order
        blocks = [
            RowBlock(e.name, rows, every[rows.stop :])
            for e, rows in zip(equations.hidden, slices, strict=True)
        ]
        return [*blocks, output]
    if structure != "layered":
        raise InputError(
            f"structure {structure!r}: accepted are full, triangular, layered and auto"
        )
    places = [*(torch.arange(s.start, s.stop) for s in slices), torch.arange(n, n + p)]
    blocks = []
    layers = (*equations.hidden, equations.output)
    for equation, rows in zip(layers, (*slices, output.rows), strict=True):
        columns = torch.cat([places[source] for source in equation.sources])
        columns = torch.cat([columns, inputs[p:]]).unique()
        name = "output" if equation is equations.output else equation.name
        blocks.append(RowBlock(name, rows, columns))
    return blocks


def structured(equations: StateEquations, structure: Structure) -> StateEquations:
    """Rewrite a network's equations so that they have every entry that the structure may use.

    After that nothing has to know the structure: what may be used is a term, zero where the network
    has nothing.

    Args:
        equations: The network, as captured.
        structure: `layered`: as it is. `triangular`: every layer also reads all earlier layers and
            the input, with zero weights. `full`: one equation that reads itself and the input.

    Returns:
        Equations of the same outputs.

    Raises:
        InputError: If the network is not all matrices and the structure is not `layered`.
    """
    if structure == "layered":
        return equations
    if equations.structured:
        raise InputError(
            f"structure {structure!r}: for a network with convolutions, tokens or kept operations, "
            "accepted are layered and auto"
        )
    if structure == "full":
        blocks = [Block(e.name, e.size, e.phi) for e in reversed(equations.hidden)]
        return from_matrices(
            *equations.dense(equations.like.dtype),
            blocks=blocks,
            structure="full",
            input_shape=equations.input_shape,
            nonzeros=equations.nonzeros,
        )
    sizes = [*(e.states for e in equations.hidden), equations.p]
    layers = []
    for k, e in enumerate(equations.layers):
        known = {term.source for term in e.terms}
        added = [
            Term(source, Dense(equations.like.new_zeros(e.size, sizes[source])))
            for source in [*range(k), -1]
            if source not in known
        ]
        layers.append(replace(e, terms=(*e.terms, *added)))
    return replace(equations, hidden=tuple(layers[:-1]), output=layers[-1])


def penalty_scales(equations: StateEquations, gram: Gram) -> Float[Tensor, " columns"]:
    """Compute ρ of every column of V: the root mean square of its group, 0 for the bias.

    Pixels share one scale, and so do the states of a layer. Without it small states lose to raw
    pixels.

    Args:
        equations: The teacher.
        gram: Statistics of V = [X U 1] or [X U].

    Returns:
        ρ, one per column of V.
    """
    mean_square = gram.G.diagonal()
    rho = torch.zeros_like(mean_square)
    n = equations.n
    for group in (*equations.slices, slice(n, n + equations.p)):
        rho[group] = mean_square[group].mean().sqrt()
    # a group that is always zero is dropped by the solver; its scale only has to be positive
    rho[: n + equations.p][rho[: n + equations.p] == 0] = 1.0
    return rho
