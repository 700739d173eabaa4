"""A finished model without the states that do nothing."""

from dataclasses import replace

import torch

from simplicit.equations.matrices import from_matrices
from simplicit.equations.network import StateEquations
from simplicit.model.dead_states import folded, reads, shared
from simplicit.model.implicit import ImplicitModel


def without_dead_states(model: ImplicitModel) -> ImplicitModel:
    """Write the same function of the inputs with fewer weights and states.

    A state that nothing moves is a constant. Its readers take it into their biases, where
    they have one or the constant is 0. The weights of a state, or channel, that nothing reads
    become 0. Both may make others so. Weights that are shared stay as they are.

    Args:
        model: Any model; it is not changed.

    Returns:
        A model with no more non-zero weights. If it is made of matrices and has weights that are no
        parameters of the network, so that `load_into` is out of the question, it has only the
        states that are left, at least one. Its norms are at most those of the model: rows and
        columns are only removed.
    """
    equations = model.equations.changed(lambda t: t.detach().clone())
    fewer = folded(equations)
    terms = [term for e in equations.layers for term in e.terms]
    # skip connections, which the network has none of, cannot be loaded into it: nothing is lost
    own = any(not t.parameter and bool(t.weight.any()) for t in terms)
    own |= not any(t.parameter for t in terms)
    plain = not (equations.structured or shared(equations))
    plain &= not any(e.fixed for e in equations.layers)
    if own and plain and not any(t.fixed for t in terms):
        return _shrunk(model, fewer)
    return ImplicitModel.from_equations(
        fewer, model.reference_nonzeros, model.structure, model.omega
    )


def _shrunk(model: ImplicitModel, equations: StateEquations) -> ImplicitModel:
    alive = torch.cat(reads(equations)[::-1], 1)[0] > 0
    alive[0] |= not alive.any()
    A, B, C, D, b, d = equations.dense(equations.like.dtype)
    blocks = zip(model.blocks, alive.split([block.size for block in model.blocks]), strict=True)
    sizes = [(block, int(part.sum())) for block, part in blocks]
    fewer = from_matrices(
        A[alive][:, alive],
        B[alive],
        C[:, alive],
        D,
        None if model.b is None else b[alive],
        None if model.d is None else d,
        blocks=[replace(block, size=size) for block, size in sizes if size],
        structure=model.structure,
        input_shape=model.input_shape,
        nonzeros=model.reference_nonzeros,
    )
    output = replace(fewer.output, name=equations.output.name)
    named = replace(fewer, output=output, interface=equations.interface)
    omega = None if model.omega is None else model.omega[alive.cpu()]
    return ImplicitModel.from_equations(named, model.reference_nonzeros, model.structure, omega)
