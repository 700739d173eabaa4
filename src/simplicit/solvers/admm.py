"""Alternating direction method of multipliers with one factorisation for all rows.

Splitting loss and penalty (Boyd et al. 2011), with over-relaxation (OSQP, Stellato et al. 2020):

    X = (R + ρ (W − U)) (G + ρ I)⁻¹,   W = prox(X̂ + U),   U = X̂ + U − W,   X̂ = α X + (1 − α) W.

An iteration is one product of a tile of rows with the inverse, and the prox, ball included. A few
of them find the support nearly; `newton` finishes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .scaled import Scaled


@dataclass(frozen=True)
class AdmmState:
    """Iterates of a tile of rows.

    Attributes:
        W: Weights, exactly sparse and inside the ball, (K, n).
        U: Scaled dual variable, (K, n).
        mu: The ball's multiplier, (K, 1).
        sigma: Root mean square residual for the rooted loss, 1 for the squared one, (K, 1).
    """

    W: Float[Tensor, "K n"]
    U: Float[Tensor, "K n"]
    mu: Float[Tensor, "K 1"]
    sigma: Float[Tensor, "K 1"]


@dataclass(frozen=True)
class Admm:
    """Settings of the method.

    Args:
        rho: Penalty on the split, in units of the mean eigenvalue (1 after scaling).
        relaxation: Over-relaxation α in (0, 2).
        dtype: Precision of the iterations; the certificate is float64 whatever it is.
    """

    rho: float = 3.0
    relaxation: float = 1.6
    dtype: torch.dtype = torch.float32

    def init(self, problem: Scaled, V: Float[Tensor, "K n"]) -> AdmmState:
        """Start from weights V.

        Args:
            problem: The rows.
            V: Scaled weights inside the ball, (K, n).

        Returns:
            The first state.
        """
        W = V.to(self.dtype)
        # the dual variable that belongs to V if V is optimal is c/ρ
        U = torch.where((V != 0).any(1, keepdim=True), problem.moments(V) / self.rho, 0.0)
        sigma = problem.root_mean_square(V).to(W)
        return AdmmState(W, U.to(W), torch.zeros_like(sigma), sigma)

    def step(self, problem: Scaled, state: AdmmState) -> AdmmState:
        """Iterate once.

        Args:
            problem: The rows, in the precision of `dtype`.
            state: The current state.

        Returns:
            The next state.
        """
        inverse = problem.design.inverse(self.rho, self.dtype)
        X = (problem.R + self.rho * (state.W - state.U)) @ inverse
        terms, sigma = problem.terms, state.sigma
        if problem.loss == "root":
            # G X = R + ρ(W − U) − ρ X needs no product, so the residual at X is free
            moments = self.rho * (X - state.W + state.U)
            q = (problem.t2 - ((problem.R + moments) * X).sum(1)).clamp_min(1e-12)
            sigma = torch.sqrt(q)[:, None]
            terms = terms.times(sigma)
        X = self.relaxation * X + (1 - self.relaxation) * state.W
        step = X.new_full((X.shape[1],), 1 / self.rho)
        W, mu = terms.prox(X + state.U, step, state.mu)
        return AdmmState(W, X + state.U - W, mu, sigma)
