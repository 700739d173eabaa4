"""States that do nothing: constants fold into the biases, weights of what nothing reads go.

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
from simplicit.equations.network import Equation, StateEquations, Term
from simplicit.equations.operators import nonzeros
from simplicit.model.certificate import absolute


def folded(
    equations: StateEquations, bias: bool | None = None, left: Iterable[Tensor] = ()
) -> StateEquations:
    """Fold constant states into biases and drop the weights of what nothing reads.

    Args:
        equations: Those of any model; they are not changed.
        bias: Whether biases may take up constants: all of them, none, or, by default, those that
            are there.
        left: Weights that stay as they are, like those that equations share.

    Returns:
        The same function of the inputs, with all of the states and no more non-zero weights.
    """
    fixed = shared(equations) | {id(weight) for weight in left}
    while True:
        fewer = _without_unread(_folded(equations, bias, fixed), fixed)
        if nonzeros(fewer) == nonzeros(equations):
            return fewer
        equations = fewer


def pattern(equations: StateEquations) -> StateEquations:
    """Mark what is read.

    Args:
        equations: Those of any model.

    Returns:
        1 for every weight, and entry of a fixed map, that is not 0; no constants.
    """
    marked = equations.changed(lambda t: (t != 0).to(t) if t.is_floating_point() else t)
    return absolute(marked)


def moving(equations: StateEquations) -> tuple[list[Tensor], list[Tensor]]:
    """Say which states and inputs move, and the values of those that do not.

    Args:
        equations: Those of any model.

    Returns:
        For each hidden equation, and for the inputs, a 1 or 0 a state, (1, states); and values,
        0 for what moves.
    """
    marked, like = pattern(equations), equations.like
    sizes = [*(e.states for e in equations.hidden), equations.p]
    moves = [like.new_ones(1, size) for size in sizes]
    values = [like.new_zeros(1, size) for size in sizes]
    for k, (e, marks) in enumerate(zip(equations.hidden, marked.hidden, strict=True)):
        if not isinstance(e.phi, Kept):
            z = (marks.preactivation(moves) > 0).to(like)
            moves[k] = e.phi(z) if isinstance(e.phi, MaxPool) else z
            values[k] = e.phi(e.preactivation(values)).masked_fill(moves[k] > 0, 0.0)
    return moves, values


def _folded(equations: StateEquations, bias: bool | None, fixed: set[int]) -> StateEquations:
    marked, (moves, values) = pattern(equations), moving(equations)

    def fold(e: Equation, marks: Equation, k: int) -> Equation:
        term = e.terms[k]
        # (positions, groups, reads): whether the input of a weight moves, and its value if not
        moved = term.map.patches(marks.terms[k].reads(moves[term.source]))[0]
        value = term.map.patches(term.reads(values[term.source]))[0]
        constant = (moved == 0).all(0) & (value == value[:1]).all(0)
        if not (e.bias is not None if bias is None else bias):
            constant &= value[0] == 0
        W = term.weight.flatten(1)
        channels = len(W) // len(constant)
        constant, value = (t.repeat_interleave(channels, 0) for t in (constant, value[0]))
        if not (constant & (W != 0)).any():
            return e
        new = _with_weight(e, k, W.masked_fill(constant, 0.0).view_as(term.weight))
        shift = (W * value.masked_fill(~constant, 0.0)).sum(1)
        if not shift.any():
            return new
        shift = term.map.spread(shift)
        new = replace(new, bias=shift if e.full_bias is None else e.full_bias + shift)
        # a bias by channel stays one
        return new if new.channel_bias is not None or e.channel_bias is None else e

    layers = []
    for e, marks in zip(equations.layers, marked.layers, strict=True):
        for k, term in enumerate(e.terms):
            e = e if id(term.weight) in fixed else fold(e, marks, k)
        layers.append(e)
    return replace(equations, hidden=tuple(layers[:-1]), output=layers[-1])


def _without_unread(equations: StateEquations, fixed: set[int]) -> StateEquations:
    hidden = []
    for e, read in zip(equations.hidden, reads(equations), strict=True):
        read = _preactivations_read(e, read)
        for k, term in enumerate(e.terms):
            if id(term.weight) not in fixed:
                zero = ~(term.map.by_channel(read)[0] > 0).any(0)
                zero = zero.view(-1, *[1] * (term.weight.ndim - 1))
                e = _with_weight(e, k, term.weight.masked_fill(zero, 0.0))
        hidden.append(e)
    return replace(equations, hidden=tuple(hidden))


def reads(equations: StateEquations) -> list[Tensor]:
    """Say which states the outputs read, on whatever way.

    Args:
        equations: Those of any model.

    Returns:
        For each hidden equation a number a state, (1, states), above 0 where it is read.
    """
    like, marked = equations.like, pattern(equations)
    sources = [like.new_ones(1, e.states) for e in equations.hidden]
    found = [torch.zeros_like(state) for state in sources]
    sources.append(like.new_ones(1, equations.p))
    for k in reversed(range(len(marked.layers))):
        e = marked.layers[k]
        own = k < len(found) and max(e.sources) < k  # with feedback a state may read itself
        z = _preactivations_read(e, found[k]) if own else like.new_ones(1, e.size)
        with torch.enable_grad():
            states = [state.detach().requires_grad_() for state in sources]
            total = (e.preactivation(states) * (z > 0)).sum()
            more = torch.autograd.grad(total, states[:-1], materialize_grads=True)
        found = [before + own for before, own in zip(found, more, strict=True)]
    return found


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


def shared(equations: StateEquations) -> set[int]:
    """List the weights that are used more than once.

    Args:
        equations: Those of any model.

    Returns:
        Their `id`.
    """
    terms = [term for e in equations.layers for term in e.terms]
    # one parameter of the network may be two tensors here, as where batch norms scale it
    names = Counter(t.parameter for t in terms if t.parameter)
    uses = Counter(id(term.weight) for term in terms)
    return {id(t.weight) for t in terms if names[t.parameter] > 1 or uses[id(t.weight)] > 1}
