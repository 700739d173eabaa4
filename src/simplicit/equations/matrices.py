"""Equations from A, B, C, D: the three structures of an implicit model, as layers.

`full` is one equation that reads itself. `triangular` and `layered` are one equation a block, first
layer first: a term from every earlier block and the input, or from those that are used.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.equation import Equation, Term
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi
from simplicit.equations.stacked import Block, Stacked
from simplicit.equations.weighted_maps import Dense
from simplicit.errors import InputError

OUTPUT = "output"
"""Name of the equation of the outputs."""


def from_matrices(
    A: Float[Tensor, "n n"],
    B: Float[Tensor, "n p"],
    C: Float[Tensor, "q n"],
    D: Float[Tensor, "q p"],
    b: Float[Tensor, " n"] | None,
    d: Float[Tensor, " q"] | None,
    *,
    blocks: Sequence[Block],
    structure: str,
    input_shape: tuple[int, ...],
    nonzeros: int,
) -> StateEquations:
    """Write matrices as equations.

    Args:
        A: States to states; strictly block upper triangular, unless `structure` is `full`.
        B: Inputs to states.
        C: States to outputs.
        D: Inputs to outputs.
        b: Bias of the states, or None.
        d: Bias of the outputs, or None.
        blocks: Hidden layers in the order of x: last hidden layer first.
        structure: `full`, `triangular` (a term from every earlier block and the input, zeros
            included) or `layered` (terms that are not zero, and always that of the block before).
        input_shape: Shape of one sample.
        nonzeros: N0.

    Returns:
        The equations.

    Raises:
        InputError: If A is not strictly block upper triangular and `structure` is not `full`.
    """
    if structure == "full":
        phi = blocks[0].elementwise if len(blocks) == 1 else Stacked(tuple(blocks))
        terms = (Term(0, Dense(A)), Term(-1, Dense(B)))
        states = Equation(blocks[0].name if len(blocks) == 1 else "states", terms, b, phi)
        output = Equation(OUTPUT, (Term(0, Dense(C)), Term(-1, Dense(D))), d, Phi("identity"))
        return StateEquations((states,), output, input_shape, nonzeros)
    forward = blocks[::-1]
    stops = torch.tensor([block.size for block in blocks]).cumsum(0).tolist()[::-1]
    places = [slice(stop - e.size, stop) for e, stop in zip(forward, stops, strict=True)]
    for block, rows in zip(blocks, reversed(places), strict=True):
        if A[rows, : rows.stop].any():
            raise InputError(
                f"A: block {block.name!r} uses itself or a later layer; accepted is a strictly "
                "block upper triangular A (last hidden layer first), or structure 'full'"
            )

    def terms_of(states: Tensor, inputs: Tensor, earlier: int) -> tuple[Term, ...]:
        parts = [(k, states[:, places[k]]) for k in range(earlier)] + [(-1, inputs)]
        before = earlier - 1
        used = [
            (k, W) for k, W in parts if structure == "triangular" or k == before or bool(W.any())
        ]
        return tuple(Term(k, Dense(W.contiguous())) for k, W in used)

    hidden = tuple(
        Equation(
            block.name, terms_of(A[rows], B[rows], k), None if b is None else b[rows], block.phi
        )
        for k, (block, rows) in enumerate(zip(forward, places, strict=True))
    )
    output = Equation(OUTPUT, terms_of(C, D, len(forward)), d, Phi("identity"))
    return StateEquations(hidden, output, input_shape, nonzeros)
