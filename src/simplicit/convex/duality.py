"""Objective and duality gap of rows from their Gram statistics; no sample is needed.

The gap is Fenchel's at a multiple of the residual, which needs one product with G (Fercoq, Gramfort
& Salmon 2015 for the lasso; the solver page of the docs has the rest).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from simplicit.convex.gram import Gram, pseudo_inverse
from simplicit.convex.products import product
from simplicit.convex.prox import Separable

Loss = Literal["squared", "root"]

LOOSE = 1e-12
"""Relative gap above which the rooted loss looks for a better multiple of the residual."""

MATCHED = 1e-6
"""Mean square residual, relative to the target's, below which it looks everywhere for it."""


def mean_square(gram: Gram, W: Tensor, moments: Tensor) -> Tensor:
    """Mean squared residual ‖t − V w‖²/m from the moments; (K,).

    Args:
        gram: Statistics of the rows.
        W: Weights, (K, N).
        moments: c = R − W G, (K, N).

    Returns:
        q = t2 − R'w − c'w, never negative.
    """
    return (gram.t2 - ((gram.R + moments) * W).sum(1)).clamp_min(0)


def objective(gram: Gram, terms: Separable, loss: Loss, W: Tensor, moments: Tensor) -> Tensor:
    """Loss plus penalty of each row; (K,).

    Args:
        gram: Statistics of the rows.
        terms: Penalty of every row and feature.
        loss: `squared` or `root`.
        W: Weights, (K, N).
        moments: c = R − W G, (K, N).

    Returns:
        The objective.
    """
    q = mean_square(gram, W, moments)
    return (torch.sqrt(q) if loss == "root" else 0.5 * q) + terms.value(W)


def gap(
    gram: Gram,
    terms: Separable,
    loss: Loss,
    W: Tensor,
    moments: Tensor,
    free: Tensor,
    mu: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Fenchel's gap at a multiple of the residual; (K,).

    Free features must be orthogonal to a dual point, so the residual is first projected: what that
    costs is added. With θ = s r, s ≤ 1 the largest that keeps the flat part of the penalty dual
    feasible, P − D(θ) = ½(1 − s)² q + pen(w) + g*(s c) − s c'w.

    Args:
        gram: Statistics.
        terms: Penalty and ball.
        loss: `squared` or `root`.
        W: Weights, (K, N), inside the ball.
        moments: c = R − W G, (K, N).
        free: Features that are unpenalised, (N,).
        mu: Guess of the ball's multiplier, (K, 1); the best one when omitted.
        residual: The solver's own σ, (K, 1), for the rooted loss: where it exceeds ‖r‖/√m it is a
            better divisor than a norm near rounding. The best one is looked for when omitted.

    Returns:
        The gap, never negative.
    """
    q = mean_square(gram, W, moments)
    c, lost = moments, torch.zeros_like(q)
    if bool(free.any()):
        f = free.nonzero()[:, 0]
        correction = product(moments[:, f], pseudo_inverse(gram.G[f][:, f]))
        lost = (correction * moments[:, f]).sum(1).clamp_min(0)
        c = (moments - product(correction, gram.G[f])).masked_fill(free, 0.0)
    reduced = (q - lost).clamp_min(0)
    if loss == "root":
        # what rounding may have added to q, or taken: with it ‖θ‖ ≤ 1 for sure, and σ > 0;
        # without it a target that is matched would lift the bound
        rounding = torch.finfo(q.dtype).eps * (gram.t2 + (gram.R * W).abs().sum(1))
        sigma = torch.sqrt(reduced + rounding + torch.finfo(q.dtype).tiny)
        if residual is not None:
            sigma = torch.maximum(sigma, residual[:, 0])
        c, primal = c / sigma[:, None], torch.sqrt(q)
        inner = (reduced - rounding).clamp_min(0) / sigma
    else:
        primal, inner = 0.5 * q, reduced
    flat = (terms.omega == 0) | ~torch.isfinite(terms.radius)
    if terms.has_curve:
        flat = flat & (terms.l2 * terms.rho**2 == 0)
    limit = ((terms.l1 * terms.rho) / c.abs()).nan_to_num_(torch.inf, torch.inf)
    if not bool(flat.all()):
        limit = torch.where(flat, limit, 1.0)
    s = (limit.amin(1) if W.shape[1] else torch.ones_like(q)).clamp_max(1.0)
    # rounding of s·c may leave it a last bit outside: step just inside
    s = torch.where(s < 1, s * (1 - 1e-15), s)
    at = _Ray(terms, loss, W, c, primal, inner, mu)
    found = at(s)
    if loss == "root" and residual is None:
        loose = found > LOOSE * torch.sqrt(gram.t2)
        if bool(loose.any()):
            found = torch.minimum(found, at((s * _explained(terms, W, c)).clamp_max(s)))
        some = (loose & (reduced <= MATCHED * gram.t2)).nonzero()[:, 0]
        if len(some):
            earned = inner[some] + (c[some] * W[some]).sum(1)
            s[some] = _best_multiple(terms.rows(some), c[some], s[some], earned)
            found = torch.minimum(found, at(s))
    # the dual point 0 always proves that the objective is not negative
    return torch.minimum(found, primal + terms.value(W)).clamp_min(0)


@dataclass(frozen=True)
class _Ray:
    """The gap at the dual points s r/σ, as a function of s."""

    terms: Separable
    loss: Loss
    W: Tensor
    c: Tensor
    primal: Tensor
    inner: Tensor
    mu: Tensor | None

    def __call__(self, s: Tensor) -> Tensor:
        # the dual value of the loss at θ = s r/σ is ⟨θ, t⟩ (root) or ⟨θ, t⟩ − ½‖θ‖² (squared)
        terms, moments = self.terms, self.c * s[:, None]
        earned = (s if self.loss == "root" else s - 0.5 * s * s) * self.inner
        mu = terms.dual_multiplier(moments) if self.mu is None else self.mu
        if self.mu is not None and terms.has_ball:
            mu = torch.maximum(mu, terms.smallest_multiplier(moments))
        penalised = self.primal - earned + terms.value(self.W)
        return penalised + terms.conjugate(moments, mu) - (moments * self.W).sum(1)


def _explained(terms: Separable, W: Tensor, c: Tensor) -> Tensor:
    # Where W is optimal for another σ than ‖r‖, the moments on its support are that σ times the
    # penalty's slopes, and μ ω: the multiple that makes θ its dual point, by least squares.
    on, size = W != 0, W.abs() * terms.rho
    slope = torch.where(terms.quadratic(W), (terms.l1 + terms.l2 * size) * terms.rho, terms.slope())
    slope, moment, omega = on * slope, c * W.sign(), on * terms.omega
    tight = terms.ball_norm(W) >= terms.radius[:, 0] * (1 - 1e-9)
    omega = torch.where(tight[:, None], omega, 0.0)
    a, b, d = (slope * slope).sum(1), (slope * omega).sum(1), (omega * omega).sum(1)
    e, f = (slope * moment).sum(1), (omega * moment).sum(1)
    plain = d * a - b * b <= 1e-12 * d * a
    sigma = torch.where(plain, e / a, (d * e - b * f) / (d * a - b * b))
    return torch.where(torch.isfinite(sigma) & (sigma > 1), 1 / sigma, 1.0)


def _best_multiple(terms: Separable, c: Tensor, most: Tensor, earned: Tensor) -> Tensor:
    # A residual near rounding points nowhere: along it the dual value s·earned − g*(s c) is concave
    # in s, so the best multiple up to `most` is found by golden section on log s.
    golden = (5**0.5 - 1) / 2
    low, high = torch.log(most) - 30.0, torch.log(most)

    def value(logarithm: Tensor) -> Tensor:
        s = torch.exp(logarithm)
        moments = c * s[:, None]
        return s * earned - terms.conjugate(moments, terms.dual_multiplier(moments))

    for _ in range(45):
        left, right = high - golden * (high - low), low + golden * (high - low)
        better = value(left) > value(right)
        high, low = torch.where(better, right, high), torch.where(better, low, left)
    inside = 0.5 * (low + high)
    best = torch.where(value(inside) > value(torch.log(most)), inside, torch.log(most))
    return torch.exp(best)
