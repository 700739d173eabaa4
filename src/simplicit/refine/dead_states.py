"""States that do nothing: constants fold into the biases, what nothing reads is dropped."""

from dataclasses import replace

import torch

from simplicit.model.implicit import ImplicitModel


def without_dead_states(model: ImplicitModel) -> ImplicitModel:
    """Write the same function of the inputs with fewer states.

    A state whose row of [A B] is empty is the constant φ(b). Its readers take it into their biases,
    where the model has biases or the constant is 0. A state whose column of [A; C] is empty is
    read by nothing. Both may make others so.

    Args:
        model: Any model; it is not changed.

    Returns:
        A model with the states that are left, at least one, and no more non-zero weights. Its
        norms are at most those of the model: rows and columns are only removed.
    """
    A, B, C, D = (t.detach().clone() for t in (model.A, model.B, model.C, model.D))
    b, d = (None if t is None else t.detach().clone() for t in (model.b, model.d))
    alive = torch.ones(model.n, dtype=torch.bool, device=A.device)
    while True:
        value = A.new_zeros(model.n) if b is None else b
        value = torch.cat(
            [
                block.phi(part)
                for block, part in zip(
                    model.blocks, value.split([block.size for block in model.blocks]), strict=True
                )
            ]
        )
        constant = alive & (A == 0).all(1) & (B == 0).all(1)
        if b is None or d is None:
            constant &= value == 0
        else:
            b += A[:, constant] @ value[constant]
            d += C[:, constant] @ value[constant]
        A[:, constant], C[:, constant] = 0.0, 0.0
        dead = alive & (A == 0).all(0) & (C == 0).all(0)
        if not dead.any():
            break
        A[dead], B[dead] = 0.0, 0.0
        alive &= ~dead
    alive[0] |= not alive.any()
    sizes = [int(part.sum()) for part in alive.split([block.size for block in model.blocks])]
    blocks = [replace(c, size=size) for c, size in zip(model.blocks, sizes, strict=True) if size]
    return ImplicitModel(
        A[alive][:, alive],
        B[alive],
        C[:, alive],
        D,
        None if b is None else b[alive],
        d,
        blocks=blocks,
        structure=model.structure,
        input_shape=model.input_shape,
        reference_nonzeros=model.reference_nonzeros,
        weights=None if model.weights is None else model.weights[alive.cpu()],
    )
