"""A perceptron on a box, written in the states whose signs are open.

A ReLU that is surely on or off is linear there, so it is multiplied out: what is left are few
states, each of which reads inputs and all that is left of earlier layers. Lines hold the same
functions, with a fraction of the products. This is float32, for the search; nothing is proved of
it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from simplicit.bounds.intervals import Box, Boxes
from simplicit.bounds.layer_boxes import Layer
from simplicit.bounds.linear_bounds import Substitution
from simplicit.bounds.relaxation import Lines, lines
from simplicit.equations.compose import Fixed
from simplicit.equations.equation import Equation, Term
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Dense, Gather

Columns = tuple[Int[Tensor, " kept"], ...]
"""States of each layer that are left."""


def reduced(at: Substitution) -> tuple[Substitution, Columns]:
    """Write a network in float32, with fewer states where that is possible.

    Args:
        at: The network up to a layer, one sample.

    Returns:
        The same without rounding; and which of the states of each layer it has.
    """
    count = len(at.boxes)
    every = [layer.equation for layer in at.layers[: count + 1]]
    if all(_is_plain(e) for e in every) and all(e.phi == Phi("relu") for e in every[:-1]):
        return _multiplied_out(at, every)
    around = tuple(Lines(*map(_cast, one[:4]), entry=one.entry) for one in at.around)
    boxes = tuple(Boxes(_single(z), _single(x)) for z, x in at.boxes)
    layers = [_layer(layer.equation.changed(_cast)) for layer in at.layers[: count + 1]]
    columns = tuple(torch.arange(z.low.shape[1]) for z, _ in at.boxes)
    return Substitution(layers, _single(at.u), boxes, around, rounded=False), columns


# what each state is: a matrix for each source that is left, and a constant
def _multiplied_out(at: Substitution, every: Sequence[Equation]) -> tuple[Substitution, Columns]:
    states: list[tuple[dict[int, Tensor], Tensor]] = []
    layers, boxes, columns = [], [], []
    p = at.u.low.shape[1]
    for k, e in enumerate(every):
        parts: dict[int, Tensor] = {}
        constant = torch.zeros(e.size) if e.full_bias is None else e.full_bias.float()
        for term in e.terms:
            weight = term.weight.float()
            read, added = ({-1: None}, None) if term.source < 0 else states[term.source]
            for source, matrix in read.items():
                product = weight if matrix is None else weight @ matrix
                parts[source] = parts[source] + product if source in parts else product
            if added is not None:
                constant = constant + weight @ added
        last = k == len(at.boxes)
        if not last:
            z, x = at.boxes[k]
            on, open_ = z.low[0] >= 0, (z.low[0] < 0) & (z.high[0] > 0)
            left = open_.nonzero()[:, 0]
            columns.append(left)
            boxes.append(
                Boxes(*(Box(b.low[:, left].float(), b.high[:, left].float()) for b in (z, x)))
            )
            own = torch.zeros(e.size, len(left)).index_put(
                (left, torch.arange(len(left))), torch.ones(len(left))
            )
            known = {s: m * on[:, None] for s, m in parts.items()}
            states.append(({**known, k: own}, constant * on))
            parts, constant = {s: m[left] for s, m in parts.items()}, constant[left]
        wide = {s: p if s < 0 else len(columns[s]) for s in parts}
        terms = tuple(Term(s, Dense(m.contiguous())) for s, m in parts.items() if wide[s] or s < 0)
        layers.append(_layer(Equation(e.name, terms, constant, e.phi)))
    phi = Phi("relu")
    around = tuple(lines(phi, z) for z, _ in boxes)
    return (
        Substitution(layers, _single(at.u), tuple(boxes), around, rounded=False),
        tuple(columns),
    )


def _is_plain(e: Equation) -> bool:
    def same(fixed: Fixed | None) -> bool:
        return fixed is None or (isinstance(fixed, Gather) and fixed.is_identity)

    return not e.fixed and all(
        term.is_matrix and same(term.fixed) and term.offset is None for term in e.terms
    )


def _cast(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _layer(equation: Equation) -> Layer:
    return Layer(equation, equation)  # whose sizes are not counted


def _single(box: Box) -> Box:
    return Box(box.low.float(), box.high.float())
