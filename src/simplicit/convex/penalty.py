"""Penalty and ball of a row problem, as the user gives them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.errors import InputError

Coefficient = int | float | Float[Tensor, " K"]


@dataclass(frozen=True, eq=False)
class Penalty:
    """l0·1[v≠0] + l1·|v| + (l2/2)·v² of each scaled weight v = ρ_j w_j.

    The l0 part is relaxed by its perspective with the ridge (see `prox`), so it needs l2 > 0.

    Args:
        l0: Price of a non-zero; a number or one per row, (K,).
        l1: Slope; a number or one per row.
        l2: Curvature; a number or one per row.
        scales: ρ ≥ 0, one per feature, (N,); 1 when omitted. A feature of scale 0 outside the
            ball is unpenalised (such as a column of ones: the bias).

    Raises:
        InputError: On negative or not finite coefficients, or l0 > 0 where l2 = 0.
    """

    l0: Coefficient = 0.0
    l1: Coefficient = 0.0
    l2: Coefficient = 0.0
    scales: Float[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        for name in ("l0", "l1", "l2"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and not 0 <= value < float("inf"):
                raise InputError(f"penalty {name}={value}: must be finite and at least 0")
            if isinstance(value, Tensor) and bool((value < 0).any()):
                raise InputError(f"penalty {name} has a negative entry: must be at least 0")
        l0, l2 = (torch.as_tensor(value, dtype=torch.float64) for value in (self.l0, self.l2))
        if bool(((l0 > 0) & (l2 == 0)).any()):
            raise InputError(
                "penalty l0 > 0 with l2 = 0: the perspective of a pure l0 is zero; give l2 > 0"
            )
        if self.scales is not None and not bool(
            (torch.isfinite(self.scales) & (self.scales >= 0)).all()
        ):
            raise InputError("penalty scales: every entry must be finite and at least 0")

    def __mul__(self, factor: float) -> "Penalty":
        """Scale the whole penalty.

        Returns:
            The penalty with l0, l1 and l2 times the factor.
        """
        return replace(self, l0=self.l0 * factor, l1=self.l1 * factor, l2=self.l2 * factor)


@dataclass(frozen=True, eq=False)
class Ball:
    """Weighted l1 ball on a part of each row: Σ_{j in features} ω_j |w_j| ≤ radius.

    Args:
        features: The constrained columns, indices or a slice.
        radius: A number or one per row, (K,); infinite means no constraint.
        weights: ω > 0, one per constrained feature; 1 when omitted.

    Raises:
        InputError: On a negative radius or weights that are not positive and finite.
    """

    features: slice | Tensor
    radius: Coefficient
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        radius = torch.as_tensor(self.radius)
        if bool((radius < 0).any()) or not isinstance(self.radius, Tensor) and radius != radius:
            raise InputError(f"ball radius {self.radius}: no weight fits; must be at least 0")
        if self.weights is not None and not bool(
            (torch.isfinite(self.weights) & (self.weights > 0)).all()
        ):
            raise InputError("ball weights: every entry must be positive and finite")
