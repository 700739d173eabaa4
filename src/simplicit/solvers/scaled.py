"""The problem every solver iterates on: unit features, unit targets, nothing degenerate.

Free features are projected out, zero features dropped, every feature scaled to unit mean square
(Jacobi) and every target too; penalty scales, ball weights and radius are carried along, so the
solution is that of the problem as given and no solver ever sees units.
"""

from dataclasses import dataclass, replace
from threading import Lock

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import memory
from ..blocks import sparse_product, weighted_rows
from ..duality import Loss, gap, mean_square
from ..gram import Gram, pseudo_inverse
from ..problem import RowProblem
from ..prox import Separable

UNDERFLOW = 1e-300
"""Mean squares below this cannot be inverted in float64; such features, targets count as zero."""

SMALLEST = 1e-6
"""Floor of the rooted loss' σ in scaled units: targets this close to their match are matched."""

ROUNDING = 1e-12
"""A projected mean square this much smaller than it was is rounding error, and counts as zero."""

BYTES, INVERSES = 12, 32
"""Bytes per entry of G at the most: scaled G in both precisions; and so inverses for two ρ, with
what it takes to make them."""


class Design:
    """What all rows share: which features are kept, their scales, the factorised Gram.

    Args:
        problem: Any row problem on that Gram; its free features are projected out.
        device: Where the solvers iterate.
        inverses: Whether there has to be room for what ADMM takes.

    Raises:
        InputError: If solving would not fit into memory.
    """

    def __init__(
        self,
        problem: RowProblem,
        device: torch.device | str | None = None,
        inverses: bool = True,
    ) -> None:
        G = problem.gram.G
        self.device = torch.device(device or G.device)
        K, N = problem.gram.R.shape
        bytes_ = BYTES + INVERSES * inverses
        memory.require(bytes_ * N * N + 32.0 * K * N, f"{K} rows of {N} features", self.device)
        self.is_free, self.is_shut = problem.free, problem.shut
        self.free: Int[Tensor, " f"] = problem.free.nonzero()[:, 0]
        penalised = (~problem.free & ~problem.shut).nonzero()[:, 0]
        self.inverse_free = pseudo_inverse(G[self.free][:, self.free])
        before = G.diagonal()[penalised]
        if len(penalised) < len(G):
            cross = G[self.free][:, penalised]
            G = G[penalised][:, penalised] - cross.T @ (self.inverse_free @ cross)
        alive = G.diagonal() > (before * ROUNDING).clamp_min(UNDERFLOW)
        if not bool(alive.all()):
            G = G[alive][:, alive]
        self.keep: Int[Tensor, " n"] = penalised[alive]
        self.scale = torch.sqrt(G.diagonal())
        n = len(G)
        # a row and some columns of 0 beyond the last are what `submatrices` pads with
        entries = G.new_empty(n + 1, n + 8 - n % 8, device=self.device)
        entries[n], entries[:, n:] = 0.0, 0.0
        self._entries, self.G, scale = entries, entries[:n, :n], self.scale.to(self.device)
        torch.div(G.to(self.device), scale, out=self.G).div_(scale[:, None])
        # numbers of half the size take a quarter less time
        self.small = torch.int32 if entries.numel() < 2**31 else torch.int64
        self._low: Tensor | None = None
        self._inverses: dict[tuple[float, torch.dtype], Tensor] = {}
        self._lock = Lock()

    @property
    def low(self) -> Float[Tensor, "n n"]:
        """G in float32, made once."""
        with self._lock:
            if self._low is None:
                self._low = self.G.float()
            return self._low

    def fits(self, problem: RowProblem) -> bool:
        """Tell whether the same features are free, and shut out, in another problem on this Gram.

        Returns:
            Whether the design may be used for it.
        """
        return torch.equal(self.is_free, problem.free) and torch.equal(self.is_shut, problem.shut)

    def submatrices(self, index: Int[Tensor, "K s"]) -> Float[Tensor, "K s s"]:
        """Gather G_AA of every row's support A.

        Args:
            index: Kept features of each row, (K, s), of type `small`; n in the padding.

        Returns:
            One matrix per row, a copy; 0 in the padding.
        """
        flat = (index * self._entries.stride(0))[:, :, None] + index[:, None, :]
        # one flat selection takes less than half the time of indexing by two arrays
        return self._entries.view(-1).index_select(0, flat.view(-1)).view(flat.shape)

    def inverse(self, rho: float, dtype: torch.dtype) -> Float[Tensor, "n n"]:
        """Invert G + ρ I once for all rows and iterations.

        Args:
            rho: ADMM's penalty, > 0.
            dtype: Precision of the iterations.

        Returns:
            (G + ρ I)⁻¹, symmetric.
        """
        with self._lock:
            if (rho, dtype) not in self._inverses:
                shifted = self.G.to(dtype, copy=True)
                shifted.diagonal().add_(rho)
                # in place: for many features each copy is gigabytes
                torch.linalg.cholesky(shifted.mT, out=shifted.mT)
                # symmetric; the transpose is the one that lies row by row, and multiplies faster
                self._inverses[rho, dtype] = torch.cholesky_inverse(shifted.mT).mT
            return self._inverses[rho, dtype]


@dataclass(frozen=True, eq=False)
class Scaled:
    """Some rows in the scaled coordinates v = w · scale / √t2.

    Attributes:
        design: What all rows share.
        R: Cross moments, (K, n), of targets with mean square 1.
        t2: 1, or 0 for a target that vanishes; (K,).
        terms: Penalty and ball in the scaled coordinates.
        loss: `squared` or `root`.
        unit: √t2 of the targets as given, (K,).
        weight: Largest ball weight before it was scaled to 1.
    """

    design: Design
    R: Float[Tensor, "K n"]
    t2: Float[Tensor, " K"]
    terms: Separable
    loss: Loss
    unit: Float[Tensor, " K"]
    weight: float

    @classmethod
    def of(cls, problem: RowProblem, design: Design) -> "Scaled":
        """Scale a problem; rows that are not valid become zero rows.

        Returns:
            The scaled problem.
        """
        gram, t, valid = problem.gram, problem.terms, problem.valid
        level = gram.R[:, design.free] @ design.inverse_free
        R = gram.R[:, design.keep] - level @ gram.G[design.free][:, design.keep]
        t2 = gram.t2 - (level * gram.R[:, design.free]).sum(1)
        alive = valid & (t2 > (gram.t2 * ROUNDING).clamp_min(UNDERFLOW))
        unit = torch.where(alive, torch.sqrt(t2), 1.0)
        # the squared objective is divided by t2, the rooted one by √t2
        power = 2 if problem.loss == "squared" else 1
        u, s = unit[:, None], design.scale
        rho, omega = t.rho[design.keep] / s, t.omega[design.keep] / s
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
        d = design.device
        R = R / s / u
        R = R if bool(alive.all()) else torch.where(alive[:, None], R, 0.0)
        return cls(
            design,
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
        return Gram.of(self.design.G, self.R, self.t2, 1)

    def rows(self, index: slice | Tensor) -> "Scaled":
        """Keep some rows.

        Returns:
            Their scaled problem.
        """
        R, t2, terms = self.R[index], self.t2[index], self.terms.rows(index)
        return replace(self, R=R, t2=t2, terms=terms, unit=self.unit[index])

    def times(self, factor: Float[Tensor, " K"]) -> "Scaled":
        """Multiply every row's penalty.

        Returns:
            The same rows at another level.
        """
        return replace(self, terms=self.terms.times(factor[:, None]))

    def scale(self, W: Float[Tensor, "K N"]) -> Float[Tensor, "K n"]:
        """Bring weights as given into scaled coordinates, inside the ball.

        Returns:
            Scaled weights.
        """
        design = self.design
        V = W.to(design.device, self.R.dtype)[:, design.keep.to(design.device)]
        V = V * design.scale.to(design.device) / self.unit[:, None]
        return self.terms.into_ball(V)

    def moments(self, V: Float[Tensor, "K n"]) -> Float[Tensor, "K n"]:
        """Correlate features and residuals, in float64.

        Returns:
            c = R − V G.
        """
        G = self.design.G
        if not bool(V.any()):  # a cold start
            return self.R.to(G, copy=True)
        return sparse_product(V.to(G), G, self.R.to(G), -1.0)

    def rough_moments(self, V: Float[Tensor, "K n"]) -> Float[Tensor, "K n"]:
        """Correlate features and residuals with products in float32, a tenth of the time.

        Returns:
            c = R − V G, with an error of about 1e-7 times its terms.
        """
        return self.R - weighted_rows(V, self.design.low)

    def root_mean_square(self, V: Float[Tensor, "K n"]) -> Float[Tensor, "K 1"]:
        """Scale of the penalty: the root mean square residual at V (rooted loss), else 1.

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

        Returns:
            Weights of the kept features.
        """
        return V / self.design.scale.to(V) * self.unit[:, None]

    def unscale_multiplier(
        self, mu: Float[Tensor, "K 1"], sigma: Float[Tensor, "K 1"]
    ) -> Float[Tensor, "K 1"]:
        """Bring the ball's multiplier into the units as given.

        Returns:
            The derivative of the optimum by minus the radius.
        """
        return (mu / sigma if self.loss == "root" else mu * self.unit[:, None]) / self.weight

    def to(self, dtype: torch.dtype) -> "Scaled":
        """Change precision; the design keeps its own.

        Returns:
            The same rows.
        """
        R, t2, terms = self.R.to(dtype), self.t2.to(dtype), self.terms.to(dtype)
        return replace(self, R=R, t2=t2, terms=terms)
