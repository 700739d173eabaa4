"""The path norm: a bound on how far inputs move outputs, and what each weight adds to it.

Over all paths from an input to an output, the sum of the products of |weights| is

    S = 1ᵀ (|C| (I − P|A|)⁻¹ P|B| + |D|) 1,

with P = I the sum of the sensitivity matrix (`lipschitz`); path regularisation is due to Neyshabur,
Tomioka, Srebro, "Norm-Based Capacity Control in Neural Networks" (COLT 2015). Here P has the mean
slope of every state's φ, which is what a path passes on average. S is one pass of ones through the
network with |weights|, and it is linear in the sizes of one row's weights: the derivative of S in
|w_ij| is the price of that weight. With all other rows as they are, S is a weighted l1 norm of the
row, and convex.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.equation import Equation
from simplicit.equations.layer_phi import MaxPool, StatePhi
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.model.certificate import absolute

SMALL = 1e-4
"""A weight is small if it makes less than this part of its row's output, by root mean squares."""

ROUNDS = 4
"""Ridges that an l1 norm is replaced by, one after another; each lowers the objective."""

Slopes = Sequence[Float[Tensor, " _"] | None]
"""Mean slope of each hidden layer's states; None where φ is not elementwise."""


def path_norm(equations: StateEquations, slopes: Slopes) -> float:
    """Compute S.

    Args:
        equations: A model without feedback.
        slopes: Mean slopes.

    Returns:
        The sum over all paths; an operation that is kept as it is has no slope and is refused.
    """
    return float(_sum(_absolute(equations), slopes))


def prices(equations: StateEquations, slopes: Slopes) -> tuple[Equation, ...]:
    """Compute what a unit of each weight's size adds to the path norm.

    Args:
        equations: A model without feedback.
        slopes: Mean slopes.

    Returns:
        The layers, with prices in the places of their weights, float64.
    """
    bare = _absolute(equations)
    leaves: dict[int, Tensor] = {}

    def leaf(equation: Equation) -> Equation:
        terms = []
        for term in equation.terms:
            own = leaves.setdefault(id(term.weight), term.weight.clone().requires_grad_())
            terms.append(replace(term, map=replace(term.map, weight=own)))
        return replace(equation, terms=tuple(terms))

    with torch.enable_grad():
        layers = [leaf(equation) for equation in bare.layers]
        with_leaves = replace(bare, hidden=tuple(layers[:-1]), output=layers[-1])
        total = _sum(with_leaves, slopes)
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    price = {
        id(own): torch.zeros_like(own) if value is None else value
        for own, value in zip(leaves.values(), found, strict=True)
    }

    def priced(equation: Equation) -> Equation:
        terms = tuple(
            replace(term, map=replace(term.map, weight=price[id(term.weight)]))
            for term in equation.terms
        )
        return replace(equation, terms=terms)

    return tuple(priced(equation) for equation in layers)


def _absolute(equations: StateEquations) -> StateEquations:
    def in_double(tensor: Tensor) -> Tensor:
        return tensor.detach().double() if tensor.is_floating_point() else tensor

    return absolute(equations.changed(in_double))


def _sum(bare: StateEquations, slopes: Slopes) -> Tensor:
    u = bare.like.new_ones(1, bare.p)
    states: list[Tensor] = []
    for equation, slope in zip(bare.hidden, slopes, strict=True):
        z = equation.preactivation([*states, u])
        states.append(_passed(equation.phi, z) if slope is None else slope.to(z) * z)
    return bare.output.preactivation([*states, u]).sum()


# an entry of a window is the largest one in one sample of as many as the window has entries
def _passed(phi: StatePhi, z: Tensor) -> Tensor:
    if not isinstance(phi, MaxPool):
        raise InputError(f"robustness: no slope is known of {phi.name}, which is kept as it is")
    largest = phi(z)
    image = z.unflatten(1, phi.shape)
    pool = (F.avg_pool1d, F.avg_pool2d)[len(phi.kernel) - 1]
    plain = all(d == 1 for d in phi.dilation)
    mean = pool(image, phi.kernel, phi.stride, phi.padding, phi.ceil) if plain else None
    return largest if mean is None else mean.flatten(1)


def shrink(
    H: Float[Tensor, "s s"],
    moment: Float[Tensor, "s"],
    w: Float[Tensor, "s"],
    price: Float[Tensor, "s"],
) -> Float[Tensor, "s"]:
    """Lower ½ w'Hw − moment'w + Σ price_j |w_j| by majorisation with ridges.

    While weights are sought, |w| counts as w² / (|w| + the size below which it is small).

    Args:
        H: Positive definite.
        moment: Linear part.
        w: Where to begin.
        price: At least 0.

    Returns:
        Weights; those with a price that end up small are zero (see `SMALL`).
    """
    small = SMALL * torch.sqrt((w @ H @ w) / H.diagonal()) + torch.finfo(w.dtype).tiny
    for _ in range(ROUNDS):
        ridge = H.clone()
        ridge.diagonal().add_(price / (w.abs() + small))
        w = torch.linalg.solve(ridge, moment)
    return torch.where((price > 0) & (w.abs() < small), 0.0, w)
