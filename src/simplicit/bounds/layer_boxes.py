"""Boxes of networks with convolutions, shortcuts and pooling: interval propagation, map by map.

Rounding is bounded as in `intervals`: every entry of a map's result is a sum of products, in
whatever order, which holds for convolutions in float64 too.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.bounds.intervals import Box, affine, image, rounded_outward, slack
from simplicit.equations.network import Equation, StateEquations
from simplicit.equations.weighted_maps import Gather, LinearMap


def through(linear: LinearMap, box: Box) -> Box:
    """Bound a linear map over a box.

    Args:
        linear: The map, float64.
        box: Of what it reads.

    Returns:
        The tightest box but for rounding.
    """
    if isinstance(linear, Gather):
        return Box(linear(box.low), linear(box.high))
    k = slack(linear.products)
    centre = linear(box.centre)
    radius = linear.absolute()(box.radius + k * box.centre.abs()) * (1 + k)
    return rounded_outward(centre, radius)


def preactivation(equation: Equation, sources: Sequence[Box]) -> Box:
    """Bound an equation's z.

    Args:
        equation: The equation, float64.
        sources: Boxes of the states of all earlier equations, then of the inputs.

    Returns:
        Boxes of z.
    """
    reads = []
    for term in equation.terms:
        box = sources[term.source]
        box = box if term.fixed is None else through(term.fixed, box)
        box = box if term.offset is None else box + _point(term.offset)
        reads.append(through(term.map, box))
    reads += [through(summand.map, sources[summand.source]) for summand in equation.fixed]
    z = sum(reads[1:], reads[0])
    return z if equation.full_bias is None else z + _point(equation.full_bias)


def margins(equations: StateEquations, u: Box, label: Int[Tensor, " s"]) -> Float[Tensor, "s q"]:
    """Bound how far a class stays ahead of every other.

    Args:
        equations: The network, float64, its tensors without gradients.
        u: Boxes of inputs.
        label: The class of each.

    Returns:
        Lower bounds of y_label − y_k; infinite for the label itself. With the difference of the
        rows where the outputs are one matrix on flattened states, otherwise of the outputs' boxes.
    """
    boxes: list[Box] = []
    for equation in equations.hidden:
        boxes.append(image(equation.phi, preactivation(equation, [*boxes, u])))
    boxes.append(u)
    output = equations.output
    one = len(output.terms) == 1 and not output.fixed and output.terms[0].is_matrix
    if not one:
        y = preactivation(output, boxes)
        ahead = y.low.gather(1, label[:, None]) - y.high
        ahead = ahead.nextafter(torch.full_like(ahead, -torch.inf))
        return ahead.scatter(1, label[:, None], torch.inf)
    term = output.terms[0]
    x = boxes[term.source] if term.fixed is None else through(term.fixed, boxes[term.source])
    x = x if term.offset is None else x + _point(term.offset)
    W = term.weight
    d = W.new_zeros(len(W)) if output.full_bias is None else output.full_bias
    bound = W.new_empty(len(label), len(W))
    for k in label.unique().tolist():
        mine = (label == k).nonzero()[:, 0]
        bound[mine] = affine(W[k] - W, x.rows(mine), d[k] - d).low
        bound[mine, k] = torch.inf
    return bound


def _point(x: Float[Tensor, " n"]) -> Box:
    return Box(x[None], x[None])
