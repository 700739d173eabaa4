"""States that do nothing: constants fold into the biases, what nothing reads is dropped.

All is read off the equations, entry by entry: a state moves if a weight, or a fixed map, reads
something that moves. A weight folds into a bias if it reads the same constant wherever it is
applied; where a kernel also reads zero padding, only the constant 0 does.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from simplicit.equations.layer_phi import Kept, MaxPool
from simplicit.equations.matrices import from_matrices
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.equations.operators import nonzeros
from simplicit.model.certificate import absolute
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
    plain = not (equations.structured or _shared(equations))
    plain &= not any(e.fixed for e in equations.layers)
    if own and plain and not any(t.fixed for t in terms):
        return _shrunk(model, fewer)
    return ImplicitModel.from_equations(
        fewer, model.reference_nonzeros, model.structure, model.omega
    )


def folded(equations: StateEquations, left: Iterable[Tensor] = ()) -> StateEquations:
    """Fold constant states into biases and drop the weights of what nothing reads.

    Args:
        equations: Those of any model; they are not changed.
        left: Weights of it that stay as they are.

    Returns:
        The same function of the inputs, with all of the states and no more non-zero weights.
    """
    fixed = _shared(equations) | {id(weight) for weight in left}
    while True:
        fewer = _without_unread(_folded(equations, fixed), fixed)
        if nonzeros(fewer) == nonzeros(equations):
            return fewer
        equations = fewer


# 1 for every weight and entry of a fixed map that is not 0, no constants
def _pattern(equations: StateEquations) -> StateEquations:
    marked = equations.changed(lambda t: (t != 0).to(t) if t.is_floating_point() else t)
    return absolute(marked)


def _folded(equations: StateEquations, fixed: set[int]) -> StateEquations:
    pattern, like = _pattern(equations), equations.like
    sizes = [*(e.states for e in equations.hidden), equations.p]
    # which states and inputs move, and the values of those that do not
    moves = [like.new_ones(1, size) for size in sizes]
    values = [like.new_zeros(1, size) for size in sizes]
    for k, (e, marks) in enumerate(zip(equations.hidden, pattern.hidden, strict=True)):
        if not isinstance(e.phi, Kept):
            z = (marks.preactivation(moves) > 0).to(like)
            moves[k] = e.phi(z) if isinstance(e.phi, MaxPool) else z
            values[k] = e.phi(e.preactivation(values)).masked_fill(moves[k] > 0, 0.0)

    def fold(e: Equation, marks: Equation, k: int) -> Equation:
        term = e.terms[k]
        # (positions, groups, reads): whether the input of a weight moves, and its value if not
        moved = term.map.patches(marks.terms[k].reads(moves[term.source]))[0]
        value = term.map.patches(term.reads(values[term.source]))[0]
        constant = (moved == 0).all(0) & (value == value[:1]).all(0)
        if e.bias is None:
            constant &= value[0] == 0
        W = term.weight.flatten(1)
        channels = len(W) // len(constant)
        constant, value = (t.repeat_interleave(channels, 0) for t in (constant, value[0]))
        if not (constant & (W != 0)).any():
            return e
        new = _with_weight(e, k, W.masked_fill(constant, 0.0).view_as(term.weight))
        if e.full_bias is None:
            return new
        shift = term.map.spread((W * value.masked_fill(~constant, 0.0)).sum(1))
        new = replace(new, bias=e.full_bias + shift)
        # a bias by channel stays one
        return new if new.channel_bias is not None or e.channel_bias is None else e

    layers = []
    for e, marks in zip(equations.layers, pattern.layers, strict=True):
        for k, term in enumerate(e.terms):
            e = e if id(term.weight) in fixed else fold(e, marks, k)
        layers.append(e)
    return replace(equations, hidden=tuple(layers[:-1]), output=layers[-1])


def _without_unread(equations: StateEquations, fixed: set[int]) -> StateEquations:
    hidden = []
    for e, read in zip(equations.hidden, _reads(equations), strict=True):
        read = _preactivations_read(e, read)
        for k, term in enumerate(e.terms):
            if id(term.weight) not in fixed:
                zero = ~(term.map.by_channel(read)[0] > 0).any(0)
                zero = zero.view(-1, *[1] * (term.weight.ndim - 1))
                e = _with_weight(e, k, term.weight.masked_fill(zero, 0.0))
        hidden.append(e)
    return replace(equations, hidden=tuple(hidden))


# for each hidden equation, which of its states the outputs read, on whatever way: those above 0
def _reads(equations: StateEquations) -> list[Tensor]:
    like, pattern = equations.like, _pattern(equations)
    sources = [like.new_ones(1, e.states) for e in equations.hidden]
    reads = [torch.zeros_like(state) for state in sources]
    sources.append(like.new_ones(1, equations.p))
    for k in reversed(range(len(pattern.layers))):
        e = pattern.layers[k]
        own = k < len(reads) and max(e.sources) < k  # with feedback a state may read itself
        z = _preactivations_read(e, reads[k]) if own else like.new_ones(1, e.size)
        with torch.enable_grad():
            states = [state.detach().requires_grad_() for state in sources]
            total = (e.preactivation(states) * (z > 0)).sum()
            found = torch.autograd.grad(total, states[:-1], materialize_grads=True)
        reads = [before + more for before, more in zip(reads, found, strict=True)]
    return reads


def _preactivations_read(e: Equation, reads: Tensor) -> Tensor:
    if isinstance(e.phi, Kept):
        return reads.new_ones(1, e.size)
    if isinstance(e.phi, MaxPool):  # a pooled entry reads its channel
        channels = reads.view(e.phi.shape[0], -1).amax(1)
        return channels.repeat_interleave(e.size // len(channels))[None]
    return reads


def _with_weight(e: Equation, k: int, weight: Tensor) -> Equation:
    def changed(term: Term) -> Term:
        return replace(term, map=replace(term.map, weight=weight))

    return replace(e, terms=tuple(changed(t) if i == k else t for i, t in enumerate(e.terms)))


def _shared(equations: StateEquations) -> set[int]:
    uses = Counter(id(term.weight) for e in equations.layers for term in e.terms)
    return {key for key, count in uses.items() if count > 1}


def _shrunk(model: ImplicitModel, equations: StateEquations) -> ImplicitModel:
    alive = torch.cat(_reads(equations)[::-1], 1)[0] > 0
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
    named = replace(fewer, output=replace(fewer.output, name=equations.output.name))
    omega = None if model.omega is None else model.omega[alive.cpu()]
    return ImplicitModel.from_equations(named, model.reference_nonzeros, model.structure, omega)
