"""Rows in unit scale: the problem that every solver iterates on, without degenerate features.

Free features are projected out, zero features dropped, every feature scaled to unit mean square
(Jacobi) and every target too; penalty scales, ball weights and radius are carried along, so the
solution is that of the problem as given and no solver ever sees units.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.convex.duality import Loss, gap, mean_square
from simplicit.convex.gram import Gram
from simplicit.convex.problem import RowProblem
from simplicit.convex.products import sparse_product, weighted_rows
from simplicit.convex.prox import Separable
from simplicit.convex.shared import ROUNDING, UNDERFLOW, ScaledGram

SMALLEST = 1e-6
"""Floor of the rooted loss' σ in scaled units: targets this close to their match are matched."""


@dataclass(frozen=True, eq=False)
class ScaledRows:
    """Some rows in the scaled coordinates v = w · scale / √t2.

    Attributes:
        shared: What all rows share.
        R: Cross moments, (K, n), of targets with mean square 1.
        t2: 1, or 0 for a target that vanishes; (K,).
        terms: Penalty and ball in the scaled coordinates.
        loss: `squared` or `root`.
        unit: √t2 of the targets as given, (K,).
        weight: Largest ball weight before it was scaled to 1.
    """

    shared: ScaledGram
    R: Float[Tensor, "K n"]
    t2: Float[Tensor, " K"]
    terms: Separable
    loss: Loss
    unit: Float[Tensor, " K"]
    weight: float

    @classmethod
    def of(cls, problem: RowProblem, shared: ScaledGram) -> "ScaledRows":
        """Scale a problem; rows that are not valid become zero rows.

        Args:
            problem: K rows over N features.
            shared: The Gram of their features in unit scale, n of which are kept.

        Returns:
            The scaled problem.
        """
        gram, t, valid = problem.gram, problem.terms, problem.valid
        level = gram.R[:, shared.free] @ shared.inverse_free
        R = gram.R[:, shared.keep] - level @ gram.G[shared.free][:, shared.keep]
        t2 = gram.t2 - (level * gram.R[:, shared.free]).sum(1)
        alive = valid & (t2 > (gram.t2 * ROUNDING).clamp_min(UNDERFLOW))
        unit = torch.where(alive, torch.sqrt(t2), 1.0)
        # the squared objective is divided by t2, the rooted one by √t2
        power = 2 if problem.loss == "squared" else 1
        u, s = unit[:, None], shared.scale
        rho, omega = t.rho[shared.keep] / s, t.omega[shared.keep] / s
        # the largest of each is 1: units of features could leave float32's range
        r, o = (
            torch.where(x.any(), x.amax(), 1.0) if len(x) else s.new_ones(()) for x in (rho, omega)
        )
        clean = {n: torch.where(valid[:, None], getattr(t, n), 0.0) for n in ("l0", "l1", "l2")}
        terms = Separable(
            l0=clean["l0"] / u**power,
            l1=clean["l1"] * r * u ** (1 - power),
            l2=clean["l2"] * r * r * u ** (2 - power),
            rho=rho / r,
            omega=omega / o,
            radius=torch.where(valid[:, None], t.radius, torch.inf) / o / u,
        )
        d = shared.device
        R = R / s / u
        R = R if bool(alive.all()) else torch.where(alive[:, None], R, 0.0)
        return cls(
            shared,
            R.to(d),
            alive.to(R).to(d),
            terms.to(R.dtype, d),
            problem.loss,
            unit.to(d),
            float(o),
        )

    @property
    def gram(self) -> Gram:
        """Statistics in the scaled coordinates."""
        return Gram.of(self.shared.G, self.R, self.t2, 1)

    def rows(self, index: slice | Tensor) -> "ScaledRows":
        """Keep some rows.

        Args:
            index: Which, in this order: numbers, (k,), a mask, (K,), or a slice.

        Returns:
            Their scaled problem.
        """
        R, t2, terms = self.R[index], self.t2[index], self.terms.rows(index)
        return replace(self, R=R, t2=t2, terms=terms, unit=self.unit[index])

    def times(self, factor: Float[Tensor, " K"]) -> "ScaledRows":
        """Multiply every row's penalty.

        Args:
            factor: One factor a row, (K,).

        Returns:
            The same rows at another level.
        """
        return replace(self, terms=self.terms.times(factor[:, None]))

    def scale(self, W: Float[Tensor, "K N"]) -> Float[Tensor, "K n"]:
        """Bring weights as given into scaled coordinates, inside the ball.

        Args:
            W: Weights of all features as given, (K, N).

        Returns:
            ScaledRows weights.
        """
        shared = self.shared
        V = W.to(shared.device, self.R.dtype)[:, shared.keep.to(shared.device)]
        V = V * shared.scale.to(shared.device) / self.unit[:, None]
        return self.terms.into_ball(V)

    def moments(self, V: Float[Tensor, "K n"]) -> Float[Tensor, "K n"]:
        """Correlate features and residuals, in float64.

        Args:
            V: Scaled weights, (K, n).

        Returns:
            c = R − V G.
        """
        G = self.shared.G
        if not bool(V.any()):  # a cold start
            return self.R.to(G, copy=True)
        return sparse_product(V.to(G), G, self.R.to(G), -1.0)

    def rough_moments(self, V: Float[Tensor, "K n"]) -> Float[Tensor, "K n"]:
        """Correlate features and residuals with products in float32, a tenth of the time.

        Args:
            V: Scaled weights, (K, n).

        Returns:
            c = R − V G, with an error of about 1e-7 times its terms.
        """
        return self.R - weighted_rows(V, self.shared.low)

    def root_mean_square(self, V: Float[Tensor, "K n"]) -> Float[Tensor, "K 1"]:
        """Compute the root mean square residual for the rooted loss; 1 for the squared one.

        Args:
            V: Scaled weights, (K, n).

        Returns:
            σ, (K, 1).
        """
        if self.loss == "squared":
            return torch.ones_like(self.t2)[:, None]
        return torch.sqrt(mean_square(self.gram, V, self.moments(V)))[:, None].clamp_min(SMALLEST)

    def multiplier(
        self, V: Float[Tensor, "K n"], sigma: Float[Tensor, "K 1"]
    ) -> Float[Tensor, "K 1"]:
        """Find the ball's multiplier that belongs to V: 0 inside, the best for the gap on the edge.

        Args:
            V: Scaled weights inside the ball, (K, n).
            sigma: Root mean square residual for the rooted loss, else 1; (K, 1).

        Returns:
            μ, times σ as in the solvers' states, (K, 1).
        """
        t = self.terms
        if not t.has_ball:
            return torch.zeros_like(sigma)
        tight = t.ball_norm(V) >= t.radius[:, 0] * (1 - 1e-9)
        mu = t.dual_multiplier(self.moments(V) / sigma) * sigma
        return torch.where(tight[:, None], mu, 0.0)

    def gap(
        self,
        V: Float[Tensor, "K n"],
        moments: Float[Tensor, "K n"],
        mu: Float[Tensor, "K 1"],
        sigma: Float[Tensor, "K 1"],
    ) -> Float[Tensor, " K"]:
        """Certify V; relative to ½ t2 (squared) or √t2 (rooted).

        Args:
            V: Weights inside the ball, (K, n).
            moments: `moments(V)`.
            mu: A guess of the ball's multiplier; any value gives a valid gap.
            sigma: The solver's σ; it serves as a guess of the rooted loss' dual scale.

        Returns:
            The relative duality gap, (K,).
        """
        free = torch.zeros(V.shape[1], dtype=torch.bool, device=V.device)
        value = gap(self.gram, self.terms, self.loss, V, moments, free, mu, sigma)
        return value if self.loss == "root" else 2 * value

    def unscale(self, V: Float[Tensor, "K n"]) -> Float[Tensor, "K n"]:
        """Bring scaled weights into the units as given.

        Args:
            V: Scaled weights, (K, n).

        Returns:
            Weights of the kept features.
        """
        return V / self.shared.scale.to(V) * self.unit[:, None]

    def unscale_multiplier(
        self, mu: Float[Tensor, "K 1"], sigma: Float[Tensor, "K 1"]
    ) -> Float[Tensor, "K 1"]:
        """Bring the ball's multiplier into the units as given.

        Args:
            mu: Multiplier in scaled units, (K, 1).
            sigma: Root mean square residual for the rooted loss, else 1; (K, 1).

        Returns:
            The derivative of the optimum by minus the radius.
        """
        return (mu / sigma if self.loss == "root" else mu * self.unit[:, None]) / self.weight

    def to(self, dtype: torch.dtype) -> "ScaledRows":
        """Change precision; what the rows share keeps its own.

        Args:
            dtype: Precision.

        Returns:
            The same rows.
        """
        R, t2, terms = self.R.to(dtype), self.t2.to(dtype), self.terms.to(dtype)
        return replace(self, R=R, t2=t2, terms=terms)
