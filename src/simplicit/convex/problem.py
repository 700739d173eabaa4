"""The convex problem of the rows, its objective and its duality gap.

Row k over N features, with the Gram statistics of its target:

    squared   min_w  ½ w'G w − R_k'w + ½ t2_k  +  Σ_j pen(w_j)     s.t.  Σ_j ω_j |w_j| ≤ radius_k
    root      min_w  √(w'G w − 2 R_k'w + t2_k) +  Σ_j pen(w_j)     (square-root lasso)

`duality` proves how far weights are from the optimum.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simplicit.convex import products as blocks
from simplicit.convex.duality import Loss, gap, mean_square, objective
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Coefficient, Penalty
from simplicit.convex.prox import Separable
from simplicit.errors import InputError


@dataclass(frozen=True, eq=False)
class RowProblem:
    """K convex problems that share one Gram matrix.

    Args:
        gram: Sufficient statistics of features and targets.
        penalty: The penalty of every row.
        ball: The constraint, if any.
        loss: `squared` or `root`.

    Raises:
        InputError: If shapes do not fit, or data shared by all rows are not finite.
    """

    gram: Gram
    penalty: Penalty
    ball: Ball | None = None
    loss: Loss = "squared"

    def __post_init__(self) -> None:
        K, N = self.gram.R.shape
        if self.gram.G.shape != (N, N) or self.gram.t2.shape != (K,):
            raise InputError(
                f"gram: G {tuple(self.gram.G.shape)}, R {(K, N)}, t2 {tuple(self.gram.t2.shape)}; "
                "accepted are (N, N), (K, N), (K,)"
            )
        if self.loss not in ("squared", "root"):
            raise InputError(f"loss {self.loss!r}: accepted are squared, root")
        if not self.gram.finite:
            raise InputError("gram.G is not finite: the features hold NaN, Inf or overflow")
        if self.penalty.scales is not None and self.penalty.scales.shape != (N,):
            raise InputError(
                f"penalty scales {tuple(self.penalty.scales.shape)}: accepted is ({N},)"
            )
        for name in ("l0", "l1", "l2"):
            _check_rows(name, getattr(self.penalty, name), K)
        if self.ball is not None:
            _check_rows("radius", self.ball.radius, K)
            _check_ball(self.ball, N)

    @cached_property
    def terms(self) -> Separable:
        """Penalty and ball as float64 arrays of every row and feature."""
        G, N, p = self.gram.G, self.gram.R.shape[1], self.penalty
        rho = G.new_ones(N) if p.scales is None else p.scales.to(G)
        omega, radius = G.new_zeros(N), torch.inf
        if self.ball is not None:
            weights = self.ball.weights
            omega[self.ball.features] = 1.0 if weights is None else weights.to(omega)
            radius = self.ball.radius
        l0, l1, l2, radius = (self._column(value) for value in (p.l0, p.l1, p.l2, radius))
        return Separable(l0, l1, l2, rho, omega, radius)

    def _column(self, value: Coefficient) -> Tensor:
        entries = torch.as_tensor(value, dtype=torch.float64).to(self.gram.G)
        return entries.expand(len(self.gram.R))[:, None].clone()

    @cached_property
    def valid(self) -> Bool[Tensor, " K"]:
        """Rows whose own data are finite, (K,)."""
        t, finite = self.terms, torch.isfinite
        rows = finite(self.gram.R).all(1) & finite(self.gram.t2) & ~t.radius[:, 0].isnan()
        return rows & finite(t.l0 + t.l1 + t.l2)[:, 0]

    @property
    def unit(self) -> Float[Tensor, " K"]:
        """Objective at w = 0, the unit of relative gaps: ½ t2, rooted √t2; (K,)."""
        t2 = self.gram.t2
        return t2.sqrt() if self.loss == "root" else 0.5 * t2

    @property
    def free(self) -> Bool[Tensor, " N"]:
        """Unpenalised features outside the ball; they are projected out, (N,)."""
        return (self.terms.rho == 0) & (self.terms.omega == 0)

    @cached_property
    def parts(self) -> list[tuple[Bool[Tensor, " K"], "RowProblem"]]:
        """Rows apart by which of their features are free, or shut out by a radius of 0.

        Rows without a penalty, or whose radius is infinite, have more free features than others;
        each group comes as a problem of all rows whose `free` and `shut` hold for the group.
        """
        terms, radius = self.terms, self.terms.radius[:, 0]
        null = (terms.l0 + terms.l1 + terms.l2)[:, 0] == 0
        zero = (radius == 0) & bool((terms.omega > 0).any())
        held_by_ball = bool(((terms.rho == 0) & (terms.omega > 0)).any())
        unbounded = ~torch.isfinite(radius) & (null | held_by_ball)
        balls = [(~zero & ~unbounded, self.ball), (unbounded, None)]
        if self.ball is not None:
            balls.append((zero, replace(self.ball, radius=0.0)))
        found = []
        for some, ball in balls:
            omega = terms.omega if ball is not None else torch.zeros_like(terms.omega)
            unpenalised = replace(self.penalty, scales=(omega > 0).to(omega))
            halves = ((some & ~null, self.penalty), (some & null, unpenalised))
            found += [
                (rows, replace(self, ball=ball, penalty=penalty))
                for rows, penalty in halves
                if bool(rows.any())
            ]
        return found

    @property
    def shut(self) -> Bool[Tensor, " N"]:
        """Features whose weights are 0 in every row, by a ball whose one radius is 0; (N,)."""
        radius = None if self.ball is None else self.ball.radius
        return (self.terms.omega > 0) & (not isinstance(radius, Tensor) and radius == 0)

    def select(self, rows: slice | Tensor) -> "RowProblem":
        """Keep some rows.

        Args:
            rows: Which, in this order: numbers, (k,), a mask, (K,), or a slice.

        Returns:
            Their problem, on the same Gram.
        """
        p, b = self.penalty, self.ball
        penalty = replace(p, l0=_of(rows, p.l0), l1=_of(rows, p.l1), l2=_of(rows, p.l2))
        gram = self.gram.with_targets(self.gram.R[rows], self.gram.t2[rows])
        ball = None if b is None else replace(b, radius=_of(rows, b.radius))
        return replace(self, gram=gram, penalty=penalty, ball=ball)

    def restrict(self, columns: Int[Tensor, " n"]) -> "RowProblem":
        """Keep some features.

        Args:
            columns: Which, in this order; the weights of the others are 0.

        Returns:
            The problem on the Gram of these features.
        """
        p, b = self.penalty, self.ball
        if b is not None:
            omega = self.terms.omega[columns]
            b = replace(b, features=omega.nonzero()[:, 0], weights=omega[omega > 0])
        scales = None if p.scales is None else p.scales[columns]
        gram = self.gram.select(columns)
        return replace(self, gram=gram, penalty=replace(p, scales=scales), ball=b)

    def gradient_moments(self, W: Float[Tensor, "K N"]) -> Float[Tensor, "K N"]:
        """Correlate features and residuals: c = R − W G = V'(t − V w)/m, minus the loss' gradient.

        Args:
            W: Weights, (K, N).

        Returns:
            c, (K, N), float64.
        """
        G = self.gram.G
        return self.gram.R - blocks.sparse_product(W.to(G), G)

    def objective(
        self, W: Float[Tensor, "K N"], moments: Float[Tensor, "K N"] | None = None
    ) -> Float[Tensor, "K"]:
        """Evaluate loss and penalty; the ball is not checked.

        Args:
            W: Weights, (K, N).
            moments: `gradient_moments(W)` where it is known already.

        Returns:
            One number per row, (K,), float64.
        """
        W = W.to(self.gram.G)
        moments = self.gradient_moments(W) if moments is None else moments
        return objective(self.gram, self.terms, self.loss, W, moments)

    def gap(
        self, W: Float[Tensor, "K N"], moments: Float[Tensor, "K N"] | None = None
    ) -> Float[Tensor, "K"]:
        """Certify weights: an upper bound on objective(W) minus the optimum.

        Args:
            W: Weights, (K, N).
            moments: `gradient_moments(W)` where it is known already.

        Returns:
            The duality gap, (K,), float64; infinite outside the ball, NaN where W is.
        """
        W = W.to(self.gram.G)
        moments = self.gradient_moments(W) if moments is None else moments
        gaps = torch.empty_like(self.gram.t2)
        for rows, part in self.parts:
            some, free = part.select(rows), part.free
            gaps[rows] = gap(some.gram, some.terms, self.loss, W[rows], moments[rows], free)
        terms = self.terms
        outside = terms.ball_norm(W) > terms.radius[:, 0] * (1 + 1e-12)
        return torch.where(outside, torch.inf, gaps)

    def kkt_residual(self, W: Float[Tensor, "K N"]) -> Float[Tensor, "K"]:
        """Measure ‖w − prox(w + c)‖∞ with unit step: zero exactly at the optimum.

        Args:
            W: Weights, (K, N).

        Returns:
            One number per row, (K,).
        """
        W = W.to(self.gram.G)
        moments, terms = self.gradient_moments(W), self.terms
        if self.loss == "root":
            q = mean_square(self.gram, W, moments)
            terms = terms.times(torch.sqrt(q.clamp_min(torch.finfo(q.dtype).tiny))[:, None])
        step = self.gram.G.new_ones(W.shape[1])
        moved, _ = terms.prox(W + moments, step)
        return (W - moved).abs().amax(1) if W.shape[1] else W.new_zeros(len(W))


def _of(rows: slice | Tensor, value: Coefficient) -> float | Tensor:
    return value[rows] if isinstance(value, Tensor) and value.ndim else value


def _check_rows(name: str, value: Coefficient, K: int) -> None:
    if isinstance(value, Tensor) and value.ndim and value.shape != (K,):
        raise InputError(f"{name} has shape {tuple(value.shape)}: accepted are a number or ({K},)")


def _check_ball(ball: Ball, N: int) -> None:
    columns = torch.arange(N)
    if isinstance(ball.features, Tensor):
        features = ball.features.cpu()
        if len(features) and not bool(((features >= 0) & (features < N)).all()):
            raise InputError(f"ball features: accepted are columns from 0 to {N - 1}")
        if len(features.unique()) < len(features):
            raise InputError("ball features: each column may be named once")
        columns = features
    else:
        columns = columns[ball.features]
    if ball.weights is not None and ball.weights.shape != columns.shape:
        raise InputError(
            f"ball weights {tuple(ball.weights.shape)}: accepted is one per feature in the ball, "
            f"({len(columns)},)"
        )
