"""The three structures of A, written into the equations: which entries may be used."""

from dataclasses import replace
from typing import Literal

from simplicit.equations.equation import Term
from simplicit.equations.matrices import from_matrices
from simplicit.equations.network import StateEquations
from simplicit.equations.stacked import Block
from simplicit.equations.weighted_maps import Dense
from simplicit.errors import InputError

Structure = Literal["full", "triangular", "layered"]


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
        full = from_matrices(
            *equations.dense(equations.like.dtype),
            blocks=blocks,
            structure="full",
            input_shape=equations.input_shape,
            nonzeros=equations.nonzeros,
        )
        return replace(full, interface=equations.interface)
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
