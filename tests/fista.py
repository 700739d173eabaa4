"""Accelerated proximal gradient with a restart per row: the simple twin of `methods.admm`.

FISTA (Beck & Teboulle 2009) with the gradient test of O'Donoghue & Candès (2015), row by row:

    W⁺ = prox(Y + (R − Y G)/L, 1/L),   Y⁺ = W⁺ + (τ − 1)/τ⁺ · (W⁺ − W),   L = λ_max(G),

and τ starts again where ⟨Y − W⁺, W⁺ − W⟩ > 0. It factorises nothing. The rooted loss is the least
over σ of q/(2σ) + σ/2 (Sun & Zhang 2012): the squared step with the penalty times σ, σ = √q.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.duality import mean_square
from simplicit.convex.products import product
from simplicit.convex.scaled import SMALLEST, ScaledRows


@dataclass(frozen=True)
class FistaState:
    """Iterates of a tile of rows.

    Attributes:
        W: Weights, exactly sparse and inside the ball, (K, n).
        Y: Where the next gradient is taken, (K, n).
        tau: Momentum, 1 after a restart, (K, 1).
        mu: The ball's multiplier, (K, 1).
        sigma: Root mean square residual for the rooted loss, 1 for the squared one, (K, 1).
        L: Largest eigenvalue of G, ().
    """

    W: Float[Tensor, "K n"]
    Y: Float[Tensor, "K n"]
    tau: Float[Tensor, "K 1"]
    mu: Float[Tensor, "K 1"]
    sigma: Float[Tensor, "K 1"]
    L: Float[Tensor, ""]


@dataclass(frozen=True)
class Fista:
    """Settings of the method.

    Args:
        dtype: Precision of the iterations; the certificate is float64 whatever it is.
    """

    dtype: torch.dtype = torch.float64

    def init(self, problem: ScaledRows, V: Float[Tensor, "K n"]) -> FistaState:
        """Start from weights V.

        Args:
            problem: The rows.
            V: ScaledRows weights inside the ball, (K, n).

        Returns:
            The first state.
        """
        W = V.to(self.dtype)
        G = problem.shared.G
        L = torch.linalg.eigvalsh(G)[-1] if len(G) else G.new_ones(())
        one = W.new_ones(len(W), 1)
        return FistaState(W, W, one, 0 * one, one, L.to(W))

    def step(self, problem: ScaledRows, state: FistaState) -> FistaState:
        """Iterate once.

        Args:
            problem: The rows, in the precision of `dtype`.
            state: The current state.

        Returns:
            The next state.
        """
        Y, L = state.Y, state.L
        moments = problem.R - product(Y, problem.shared.G.to(Y))
        terms, sigma = problem.terms, state.sigma
        if problem.loss == "root":
            q = mean_square(problem.gram, Y, moments)
            sigma = torch.sqrt(q)[:, None].clamp_min(SMALLEST)
            terms = terms.times(sigma)
        W, mu = terms.prox(Y + moments / L, (1 / L).expand(Y.shape[1]), state.mu)
        turned = ((Y - W) * (W - state.W)).sum(1, keepdim=True) > 0
        tau = torch.where(turned, 1.0, 0.5 + torch.sqrt(0.25 + state.tau**2))
        momentum = torch.where(turned, 0.0, (state.tau - 1) / tau)
        return FistaState(W, W + momentum * (W - state.W), tau, mu, sigma, L)
