"""The path norm: a bound on how far inputs move outputs, and what each weight adds to it.

Over all paths from an input to an output, the sum of the products of |weights| is

    S = 1ᵀ (|C| (I − P|A|)⁻¹ P|B| + |D|) 1,

with P = I the sum of the sensitivity matrix (`lipschitz`); path regularisation is due to Neyshabur,
Tomioka, Srebro, "Norm-Based Capacity Control in Neural Networks" (COLT 2015). Here P has the mean
slope of every state's φ: what a path passes on average. S is linear in the sizes of one row's
weights: that of w_ij counts down_i · up_j, where `up` is how far inputs move the feature j and
`down` how far the pre-activation i moves outputs. With all other rows as they are, S is a weighted
l1 norm of the row, and convex.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SMALL = 1e-4
"""A weight is small if it makes less than this part of its row's output, by root mean squares."""

ROUNDS = 4
"""Ridges that an l1 norm is replaced by, one after another; each lowers the objective."""


def prices(
    W: Float[Tensor, "r N"], slopes: Float[Tensor, "n"], free: Bool[Tensor, "N"]
) -> tuple[Float[Tensor, "r"], Float[Tensor, "N"]]:
    """Compute what weights add to the path norm.

    Args:
        W: [A B b; C D d], A strictly triangular.
        slopes: Mean slope of each state's φ.
        free: Features that do not depend on inputs: the bias.

    Returns:
        `down` of every row and `up` of every feature, float64.
    """
    n, sizes = len(slopes), W.abs().double() * (~free)
    one = torch.eye(n, dtype=sizes.dtype, device=W.device)
    slopes = slopes.to(sizes)
    gain = torch.linalg.inv(one - slopes[:, None] * sizes[:n, :n])
    down = sizes[n:, :n].sum(0) @ gain * slopes
    up = gain @ (slopes * sizes[:n, n:].sum(1))
    return (
        torch.cat([down, down.new_ones(len(W) - n)]),
        torch.cat([up, (~free[n:]).to(up)]),
    )


def path_norm(
    W: Float[Tensor, "r N"], slopes: Float[Tensor, "n"], free: Bool[Tensor, "N"]
) -> float:
    """Compute S.

    Args:
        W: [A B b; C D d], A strictly triangular.
        slopes: Mean slope of each state's φ.
        free: Features that do not depend on inputs.

    Returns:
        The sum over all paths.
    """
    _, up = prices(W, slopes, free)
    return float((W[len(slopes) :].abs().double() @ up).sum())


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
