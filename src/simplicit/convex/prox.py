"""The penalty of one weight, its prox and its conjugate, the weighted l1 ball; batched over rows.

For a weight w with scale ρ, and v = ρ|w|, the penalty is

    pen(w) = l1 v + H(v),   H(v) = √(2 l0 l2) v            for v ≤ √(2 l0 / l2)
                                   l0 + (l2 / 2) v²         beyond.

H is the reverse Huber function: the perspective relaxation of l0·1[v≠0] + (l2/2) v² (Pilanci,
Wainwright & El Ghaoui 2015; Dong, Chen & Linderoth 2015). With l0 = 0 it is ridge, with l2 = 0
zero, so the lasso, the elastic net and the perspective penalty share one code path.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEWTON_STEPS = 60
"""Cap on the safeguarded Newton steps for a multiplier; 4-6 are usual."""

PerRow1 = Float[Tensor, "K 1"]


@dataclass(frozen=True, eq=False)
class Separable:
    """Penalties of all rows, and the ball they share: Σ_j pen(w_j), s.t. Σ_j ω_j |w_j| ≤ radius.

    Args:
        l0: Price of a non-zero, (K, 1).
        l1: Slope, (K, 1).
        l2: Curvature, (K, 1); positive where l0 is.
        rho: Scale ρ of each feature, (N,).
        omega: Weight ω of each feature in the ball, (N,); 0 outside it.
        radius: Radius of the ball, (K, 1); infinite where there is none.
    """

    l0: PerRow1
    l1: PerRow1
    l2: PerRow1
    rho: Float[Tensor, " N"]
    omega: Float[Tensor, " N"]
    radius: PerRow1

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "Separable":
        """Cast every array.

        Args:
            dtype: Precision.
            device: Place; as it is when omitted.

        Returns:
            The same penalty in another precision or place.
        """
        return Separable(*(getattr(self, f).to(device, dtype) for f in self.__dataclass_fields__))

    def rows(self, index: slice | Tensor) -> "Separable":
        """Keep some rows.

        Args:
            index: Which, in this order: numbers, (k,), a mask, (K,), or a slice.

        Returns:
            The penalties of those rows.
        """
        return replace(
            self,
            l0=self.l0[index],
            l1=self.l1[index],
            l2=self.l2[index],
            radius=self.radius[index],
        )

    def times(self, sigma: PerRow1) -> "Separable":
        """Multiply every row's penalty by its own σ > 0 (the ball stays).

        Args:
            sigma: Factors, (K, 1).

        Returns:
            The scaled penalties.
        """
        return replace(self, l0=self.l0 * sigma, l1=self.l1 * sigma, l2=self.l2 * sigma)

    @cached_property
    def has_ball(self) -> bool:
        """Whether any row has a finite radius on any feature."""
        return bool(torch.isfinite(self.radius).any() and (self.omega > 0).any())

    @cached_property
    def has_curve(self) -> bool:
        """Whether any row has curvature."""
        return bool((self.l2 > 0).any())

    @cached_property
    def huber(self) -> PerRow1:
        """Extra slope √(2 l0 l2) of the perspective's linear part, (K, 1)."""
        return torch.sqrt(2 * self.l0 * self.l2)

    @cached_property
    def knee(self) -> PerRow1:
        """Where the perspective's linear part ends, √(2 l0 / l2), in units of ρ|w|; (K, 1)."""
        return torch.sqrt(2 * self.l0 / torch.where(self.l2 > 0, self.l2, 1.0))

    def slope(self) -> Float[Tensor, "K N"]:
        """Slope of the penalty just beside zero; a smaller |gradient| leaves the weight at 0.

        Returns:
            (l1 + √(2 l0 l2)) ρ, (K, N).
        """
        return (self.l1 + self.huber) * self.rho

    def quadratic(self, w: Float[Tensor, "K N"]) -> Bool[Tensor, "K N"]:
        """Tell which weights lie in the penalty's curved part.

        Args:
            w: Weights, (K, N).

        Returns:
            Mask, (K, N).
        """
        return w.abs() * self.rho > self.knee

    def value(self, w: Float[Tensor, "K N"]) -> Float[Tensor, "K"]:
        """Evaluate the penalty, the ball apart.

        Args:
            w: Weights, (K, N).

        Returns:
            Σ_j pen(w_j), (K,).
        """
        v = w.abs() * self.rho
        if not self.has_curve:
            return (self.l1 * v).sum(1)
        beyond = self.l0 + 0.5 * self.l2 * v * v
        return (self.l1 * v + torch.where(v > self.knee, beyond, self.huber * v)).sum(1)

    def ball_norm(self, w: Float[Tensor, "K N"]) -> Float[Tensor, "K"]:
        """Measure the constrained part of each row.

        Args:
            w: Weights, (K, N).

        Returns:
            Σ_j ω_j |w_j|, (K,).
        """
        # not a product, whose bits depend on how many rows there are
        return (w.abs() * self.omega).sum(1)

    def into_ball(self, w: Float[Tensor, "K N"]) -> Float[Tensor, "K N"]:
        """Shrink the constrained part of each row into its ball, other weights untouched.

        Args:
            w: Weights, (K, N).

        Returns:
            Feasible weights, (K, N).
        """
        if not self.has_ball:
            return w
        norm = self.ball_norm(w)[:, None]
        if not bool((norm > self.radius).any()):
            return w
        # strictly inside, or rounding of the product could leave the row a last bit outside
        factor = torch.where(norm > self.radius, self.radius / norm * (1 - 1e-15), 1.0)
        return torch.where(self.omega > 0, w * factor, w)

    def prox(
        self, v: Float[Tensor, "K N"], t: Float[Tensor, "*K1 N"], mu: PerRow1 | None = None
    ) -> tuple[Float[Tensor, "K N"], PerRow1]:
        """Minimise ½(w − v)²/t + pen(w) over the ball, coordinatewise step t.

        Args:
            v: Point, (K, N).
            t: Step, (N,) or (K, N).
            mu: Guess of the ball's multiplier, (K, 1).

        Returns:
            The minimiser, (K, N), and the ball's multiplier μ, (K, 1).
        """
        size = v.abs()
        if not self.has_ball:
            return self._shrink(size, t).copysign_(v), torch.zeros_like(self.l0)
        mu = self._ball_multiplier(size, t, mu)
        return self._shrink(size.sub_(t * mu * self.omega), t).copysign_(v), mu

    def _shrink(self, size: Tensor, t: Tensor) -> Tensor:
        # in place: fresh memory costs as much as the arithmetic
        curved = None
        if self.has_curve:
            curved = (size - t * self.l1 * self.rho) / (1 + t * self.l2 * self.rho**2)
        size.addcmul_(t.expand(size.shape), self.slope(), value=-1)
        return (size if curved is None else torch.minimum(size, curved)).clamp_min_(0)

    # Root of Σ ω shrink(size − t μ ω) = radius by Newton kept inside a bracket. The left side falls
    # with μ and is piecewise linear, so Newton ends after a few steps; the bracket is needed
    # because the reverse Huber part makes it neither convex nor concave.
    def _ball_multiplier(self, size: Tensor, t: Tensor, mu: Tensor | None) -> Tensor:
        pull, left = t * self.omega, size - t * self.slope()
        fall = pull * self.omega
        curve = None
        if self.has_curve:
            curve = size - t * self.l1 * self.rho, 1 + t * self.l2 * self.rho**2
        low = torch.zeros_like(self.l0)
        inverse = torch.where(self.omega > 0, 1 / self.omega, 0.0)
        high = (size / t * inverse).amax(1, keepdim=True) if size.shape[1] else low
        active = moving = self._excess(low, left, pull, fall, curve)[0] > 0
        mu = torch.minimum(mu, high) if mu is not None else low
        for _ in range(NEWTON_STEPS):
            excess, speed = self._excess(mu, left, pull, fall, curve)
            moving = moving & (excess.abs() > 64 * torch.finfo(size.dtype).eps * self.radius)
            if not bool(moving.any()):
                break
            low = torch.where(excess > 0, mu, low)
            high = torch.where(excess > 0, high, mu)
            trial = mu + excess / speed
            inside = (trial > low) & (trial < high)
            trial = torch.where(inside, trial, 0.5 * (low + high))
            # a row that is done stands still, so its bits do not depend on its neighbours
            moving = moving & (trial != mu)
            mu = torch.where(moving, trial, mu)
        return torch.where(active, mu, 0.0)

    # By how much the norm exceeds the radius, and how fast it falls with μ.
    def _excess(
        self,
        mu: Tensor,
        left: Tensor,
        pull: Tensor,
        fall: Tensor,
        curve: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        w, speed = torch.addcmul(left, pull, mu, value=-1), fall
        if curve is not None:
            flat, slant = curve
            curved = torch.addcmul(flat, pull, mu, value=-1) / slant
            speed = torch.where(w <= curved, fall, fall / slant)
            w = torch.minimum(w, curved)
        # the sign instead of a mask: choosing between two numbers takes many times longer
        speed = (w.clamp_min_(0).sign() * speed).sum(1, keepdim=True)
        return self.ball_norm(w)[:, None] - self.radius, speed

    def conjugate(self, c: Float[Tensor, "K N"], mu: PerRow1) -> Float[Tensor, "K"]:
        """Bound the conjugate of penalty and ball from above: radius μ + Σ pen*((|c_j| − μ ω_j)₊).

        Any μ ≥ 0 is valid; `dual_multiplier` gives the best.

        Args:
            c: Dual moments, (K, N).
            mu: The ball's multiplier, (K, 1).

        Returns:
            The bound, (K,); infinite where c is not dual feasible.
        """
        a = (c.abs() - mu * self.omega - self.l1 * self.rho).clamp_min(0)
        if self.has_curve:
            curvature = self.l2 * self.rho**2
            curved = (a * a / (2 * curvature) - self.l0).clamp_min(0)
            flat = torch.where(a > 0, torch.inf, 0.0).to(c.dtype)
            value = torch.where(curvature > 0, curved, flat).sum(1)
        else:
            value = torch.where(a.sum(1) > 0, torch.inf, 0.0).to(c.dtype)
        return value + torch.where(mu > 0, self.radius * mu, 0.0)[:, 0]

    def dual_multiplier(self, c: Float[Tensor, "K N"]) -> PerRow1:
        """Minimise `conjugate` over μ ≥ 0 by bisection on its monotone derivative.

        Args:
            c: Dual moments, (K, N).

        Returns:
            The best multiplier, (K, 1); 0 without a ball.
        """
        if not self.has_ball:
            return torch.zeros_like(self.l0)
        mu = floor = self.smallest_multiplier(c)
        if self.has_curve:
            mu = torch.where(self.l2 > 0, self._curved_multiplier(c.abs(), floor), floor)
        return torch.where(torch.isfinite(self.radius), mu, 0.0)

    def _curved_multiplier(self, size: Tensor, floor: PerRow1) -> PerRow1:
        slope, curvature = self.slope(), self.l2 * self.rho**2
        beyond = (curvature > 0) & (self.omega > 0) & (size - floor * self.omega > slope)
        # only these pull at any multiplier, and they are few
        row, column = beyond.nonzero(as_tuple=True)
        omega, slope, curvature = self.omega[column], slope[row, column], curvature[row, column]
        size, huber = size[row, column], self.huber[row, 0] * self.rho[column]
        low, radius = floor[:, 0], self.radius[:, 0]
        high = low.scatter_reduce(0, row, (size - slope) / omega, "amax")

        def rises(mu: Tensor) -> Tensor:
            a = size - mu[row] * omega - slope + huber
            pull = torch.where(a > huber, omega * a / curvature, 0.0)
            return radius >= torch.zeros_like(radius).index_add_(0, row, pull)

        # where the least is at the floor, bisection would only come near it
        high = torch.where(rises(low), low, high)
        for _ in range(NEWTON_STEPS):
            mu = 0.5 * (low + high)
            rising = rises(mu)
            high = torch.where(rising, mu, high)
            low = torch.where(rising, low, mu)
        return high[:, None]

    def smallest_multiplier(self, c: Float[Tensor, "K N"]) -> PerRow1:
        """Find the least μ at which the ball keeps features without curvature dual feasible.

        Args:
            c: Dual moments, (K, N).

        Returns:
            μ, (K, 1); 0 where no ball or every constrained feature is curved.
        """
        need = self.omega > 0
        need = need & (self.l2 * self.rho**2 == 0) & torch.isfinite(self.radius)
        omega = torch.where(self.omega > 0, self.omega, 1.0)
        # a last bit above the exact value, or rounding would leave the conjugate infinite
        size = c.abs() * (1 + 8 * torch.finfo(c.dtype).eps)
        mu = torch.where(need, (size - self.l1 * self.rho) / omega, 0.0)
        return mu.clamp_min(0).amax(1, keepdim=True) if c.shape[1] else torch.zeros_like(self.l0)
