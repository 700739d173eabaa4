"""Alternating direction method of multipliers with one factorisation for all rows.

Splitting loss and penalty (Boyd et al. 2011), with over-relaxation (OSQP, Stellato et al. 2020):

    X = (R + ρ (W − U)) (G + ρ I)⁻¹,   Z = X̂ + U,   W = prox(Z),   U = Z − W,   X̂ = α X + (1 − α) W.

The state is W and Z; with U put in, X = A + ρ (2 W − Z) (G + ρ I)⁻¹, where A = R (G + ρ I)⁻¹
stays, and Z += α (X − W), which is Douglas & Rachford's splitting. An iteration is one product of
rows with the inverse, and the prox, ball included. A few of them find the support nearly; `newton`
finishes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.scaled import ScaledRows


@dataclass(frozen=True)
class AdmmState:
    """Iterates of some rows.

    Attributes:
        W: Weights, exactly sparse and inside the ball, (K, n).
        Z: What W is the prox of, (K, n).
        mu: The ball's multiplier, (K, 1).
        sigma: Root mean square residual for the rooted loss, 1 for the squared one, (K, 1).
        rho: Penalty ρ on the split, (K, 1).
        A: R (G + ρ I)⁻¹, the part of X that stays the same, (K, n).
    """

    W: Float[Tensor, "K n"]
    Z: Float[Tensor, "K n"]
    mu: Float[Tensor, "K 1"]
    sigma: Float[Tensor, "K 1"]
    rho: Float[Tensor, "K 1"]
    A: Float[Tensor, "K n"]


@dataclass(frozen=True)
class Admm:
    """Settings of the method.

    Args:
        rhos: Choices of ρ, in units of the mean eigenvalue (1 after scaling), ascending.
        relaxation: Over-relaxation α in (0, 2).
        dtype: Precision of the iterations; the certificate is float64 whatever it is.
    """

    rhos: tuple[float, ...] = (1.0, 4.0, 16.0)
    relaxation: float = 1.8
    dtype: torch.dtype = torch.float32

    def init(self, problem: ScaledRows, V: Float[Tensor, "K n"]) -> AdmmState:
        """Start from weights V.

        Args:
            problem: The rows.
            V: ScaledRows weights inside the ball, (K, n).

        Returns:
            The first state.
        """
        W, rho = V.to(self.dtype), self.rho(problem).to(self.dtype)
        # the dual variable that belongs to V if V is optimal is c/ρ
        U = problem.moments(V) * ((V != 0).any(1, keepdim=True) / rho)
        sigma = problem.root_mean_square(V).to(W)
        A = self._product(problem, problem.R.to(W), rho)
        return AdmmState(W, W + U.to(W), torch.zeros_like(sigma), sigma, rho, A)

    def rho(self, problem: ScaledRows) -> Float[Tensor, "K 1"]:
        """Choose each row's ρ, the larger the sparser it will be.

        Measured on Fashion-MNIST: 20 √level is best, where the level is the slope of the penalty
        at zero by that at which all weights are zero. The ball's multiplier, which adds to the
        slope, is guessed as if G were the identity.

        Args:
            problem: The rows, (K, n).

        Returns:
            One of `rhos` for each row, the nearest on a logarithmic scale.
        """
        R, terms = problem.R, problem.terms
        _, mu = terms.prox(R, R.new_ones(R.shape[1]))
        slope = terms.slope() + mu * terms.omega
        share = (R.abs() / slope).nan_to_num_(0.0, 0.0)
        top = share.amax(1) if R.shape[1] else problem.t2
        best = 20 / torch.sqrt(top.clamp_min(1.0))
        choices = R.new_tensor(self.rhos)
        nearest = torch.searchsorted(torch.sqrt(choices[1:] * choices[:-1]), best)
        return choices[nearest][:, None]

    def step(self, problem: ScaledRows, state: AdmmState) -> AdmmState:
        """Iterate once; uses the current state up.

        Args:
            problem: The rows, in the precision of `dtype`.
            state: The current state.

        Returns:
            The next state.
        """
        mirrored = torch.add(state.W, state.W).sub_(state.Z)
        rho = state.rho
        X = self._product(problem, mirrored, rho, state.A)
        terms, sigma = problem.terms, state.sigma
        if problem.loss == "root":
            # R − G X = ρ (X − (2 W − Z)) needs no product, so the residual at X is free
            moments = rho * (X - mirrored)
            q = (problem.t2 - ((problem.R + moments) * X).sum(1)).clamp_min(1e-12)
            sigma = torch.sqrt(q)[:, None]
            terms = terms.times(sigma)
        # the old state is not used again: fresh memory costs as much as the arithmetic
        Z = state.Z.add_(X.sub_(state.W), alpha=self.relaxation)
        W, mu = terms.prox(Z, (1 / rho).expand(Z.shape), state.mu)
        return AdmmState(W, Z, mu, sigma, rho, state.A)

    def _product(
        self, problem: ScaledRows, B: Tensor, rho: Tensor, A: Tensor | None = None
    ) -> Tensor:
        # B (G + ρ I)⁻¹, or A + ρ B (G + ρ I)⁻¹; rows of one ρ together
        def of(B: Tensor, A: Tensor | None, value: float) -> Tensor:
            return problem.shared.solved(B, value, A, 1.0 if A is None else value)

        if bool((rho == rho[0]).all()):
            return of(B, A, float(rho[0]))
        X = torch.empty_like(B)
        for value in rho.unique().tolist():
            rows = (rho[:, 0] == value).nonzero()[:, 0]
            X[rows] = of(B[rows], None if A is None else A[rows], value)
        return X
