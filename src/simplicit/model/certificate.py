"""Well-posedness: when x = φ(Ax + Bu + b) has exactly one solution, for every u.

Let L_i be the Lipschitz constant of the φ of state i and ω > 0 weights. With
‖x‖_ω = max_i |x_i| / ω_i,

    |φ(Ax + c)_i − φ(Ay + c)_i| / ω_i ≤ (L_i Σ_j |A_ij| ω_j / ω_i) · ‖x − y‖_ω,

so x ↦ φ(Ax + c) is a contraction at rate ‖A‖∞,ω = max_i L_i Σ_j |A_ij| ω_j / ω_i wherever that is
below 1. Such ω exist exactly when the Perron–Frobenius eigenvalue of diag(L)|A| is below 1
(El Ghaoui et al., Implicit Deep Learning, SIAM J. Math. Data Sci. 3, 2021, section 2).

Everything here is computed in float64 and rounded outward: barring underflow, `norm` is never too
small. It speaks of the equation in exact arithmetic, with the weights as they are stored.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.equations.layer_phi import Kept
from simplicit.equations.network import Equation, StateEquations
from simplicit.equations.operators import BlockOperator

KAPPA = 0.99
"""Norm that the weights of a nilpotent A are chosen for; any number in (0, 1) can be had."""

PERRON_STEPS = 20
"""Inverse iterations for the Perron vector; each multiplies its error by (1 − λ) / |1 − λ₂|."""

Method = Literal["nilpotent", "weighted norm", "Perron-Frobenius", "none"]


@dataclass(frozen=True, eq=False)
class Certificate:
    """A bound that proves well-posedness, or the failure to find one.

    Args:
        well_posed: Whether `norm` < 1 was proved.
        norm: ‖A‖∞,ω with the Lipschitz constants of φ; NaN if A is not finite.
        method: `nilpotent`, `weighted norm` (the given ω), `Perron-Frobenius`, or `none`.
        weights: ω, float64.
    """

    well_posed: bool
    norm: float
    method: Method
    weights: Float[Tensor, "n"]

    @property
    def margin(self) -> float:
        """1 − norm; Picard gains log10(1 / norm) digits a step."""
        return 1.0 - self.norm

    def __str__(self) -> str:
        verdict = "well-posed" if self.well_posed else "not certified"
        return f"{verdict}: ‖A‖∞,ω = {self.norm:.6g}, margin {self.margin:.2g} ({self.method})"


def well_posedness(
    A: Float[Tensor, "n n"],
    lipschitz: Float[Tensor, "n"],
    weights: Float[Tensor, "n"] | None = None,
    kappa: float = KAPPA,
) -> Certificate:
    """Certify x = φ(Ax + c) by the first of these that succeeds.

    1. A strictly upper triangular, no ω given: `nilpotent_weights`, norm ≤ κ by construction.
    2. The given ω, or ω = 1 (the papers' condition).
    3. `perron_weights`: succeeds whenever any ω does.

    Args:
        A: State matrix.
        lipschitz: L, the Lipschitz constant of each state's φ.
        weights: ω of the ball that A was solved under, positive.
        kappa: Norm to aim at for a nilpotent A.

    Returns:
        The certificate. NaN or infinity in A or ω is never well-posed.
    """
    A, lipschitz = A.detach().cpu().double(), lipschitz.cpu().double()
    if weights is None and A.isfinite().all() and torch.equal(A, A.triu(1)):
        omega = nilpotent_weights(A, lipschitz, kappa)
        # The weights of a very deep net overflow. A nilpotent A needs none to be well-posed.
        norm = weighted_norm(A, lipschitz, omega) if omega.isfinite().all() else kappa
        return Certificate(True, norm, "nilpotent", omega)
    given = torch.ones_like(lipschitz) if weights is None else weights.cpu().double()
    norm = weighted_norm(A, lipschitz, given)
    if norm < 1:
        return Certificate(True, norm, "weighted norm", given)
    omega = perron_weights(A, lipschitz)
    if (best := weighted_norm(A, lipschitz, omega)) < 1:
        return Certificate(True, best, "Perron-Frobenius", omega)
    return Certificate(False, norm, "none", given)


def weighted_norm(
    A: Float[Tensor, "n n"], lipschitz: Float[Tensor, "n"], weights: Float[Tensor, "n"]
) -> float:
    """Upper bound of max_i L_i Σ_j |A_ij| ω_j / ω_i, tight to n + 4 units of rounding.

    Args:
        A: State matrix, float64.
        lipschitz: L, float64.
        weights: ω, float64.

    Returns:
        The bound; NaN if anything is NaN or some ω is not positive.
    """
    if not (weights > 0).all():
        return float("nan")
    rows = lipschitz * (A.abs() @ weights) / weights
    # n products and sums of non-negative numbers lose at most (n + 3) units of eps / 2.
    return rows.max().item() * (1 + (len(A) + 4) * torch.finfo(torch.float64).eps)


def nilpotent_weights(
    A: Float[Tensor, "n n"], lipschitz: Float[Tensor, "n"], kappa: float = KAPPA
) -> Float[Tensor, "n"]:
    """Weights ω = (I − diag(L)|A|/κ)⁻¹ 1 of a strictly upper triangular A.

    L_i Σ_j |A_ij| ω_j = κ (ω_i − 1) < κ ω_i, so ‖A‖∞,ω < κ whatever the size of A. The default ball
    of a `full` model uses those of its teacher, which makes the teacher itself feasible.

    Args:
        A: Strictly upper triangular, float64.
        lipschitz: L, float64.
        kappa: Norm to aim at, in (0, 1).

    Returns:
        ω ≥ 1, exact to rounding: back substitution of non-negative numbers cannot cancel.
    """
    M = lipschitz.unsqueeze(1) * A.abs() / kappa
    one = torch.ones(len(A), 1, dtype=A.dtype)
    return torch.linalg.solve_triangular(
        torch.eye(len(A), dtype=A.dtype) - M, one, upper=True
    ).squeeze(1)


def perron_weights(A: Float[Tensor, "n n"], lipschitz: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Weights that bring ‖A‖∞,ω close to λ(M), M = diag(L)|A|, when λ(M) < 1.

    R = (I − M)⁻¹ exists and is non-negative exactly when λ(M) < 1. Then ω = R1 has
    Mω = ω − 1 < ω. Multiplying ω by R again can only lower the norm, since Mω ≤ μω gives
    M(Rω) = R(Mω) ≤ μ Rω, and tends to the Perron vector.

    Args:
        A: State matrix, float64.
        lipschitz: L, float64.

    Returns:
        ω, scaled to minimum 1; all ones if λ(M) ≥ 1.
    """
    M = lipschitz.unsqueeze(1) * A.abs()
    omega = torch.ones(len(A), 1, dtype=A.dtype)
    lu, pivots, _ = torch.linalg.lu_factor_ex(torch.eye(len(A), dtype=A.dtype) - M)
    for _ in range(PERRON_STEPS):
        better = torch.linalg.lu_solve(lu, pivots, omega)
        if not (better > 0).all() or not better.isfinite().all():
            break
        omega = better / better.min()
    return omega.squeeze(1)


def round_toward_zero(A: Float[Tensor, "r c"], dtype: torch.dtype) -> Float[Tensor, "r c"]:
    """Cast A without raising any |A_ij|, so that every bound on its row norms survives.

    Rounding to nearest raises about half of the entries: ‖A‖∞,ω = κ in float64 would become
    κ (1 + 6e-8) in float32, above the κ that was promised.

    Args:
        A: State matrix, or some of its rows.
        dtype: Usually float32.

    Returns:
        A in the new dtype, each entry within one unit of rounding.
    """
    cast = A.to(dtype)
    above = cast.to(A.dtype).abs() > A.abs()
    return torch.where(above, cast.nextafter(torch.zeros_like(cast)), cast)


def certificate_of(
    equations: StateEquations, omega: Float[Tensor, "n"] | None = None
) -> Certificate:
    """Certify a network's equation, with feedback by `well_posedness`, without by `nilpotence`.

    Args:
        equations: The network.
        omega: ω of the ball that A was solved under, or None.

    Returns:
        The certificate.
    """
    if not equations.feedback:
        return nilpotence(equations)
    with torch.no_grad():
        A = BlockOperator(equations, "A").to_dense()
    lipschitz = [block.phi.lipschitz for block in equations.blocks for _ in range(block.size)]
    return well_posedness(A, torch.tensor(lipschitz, dtype=torch.float64), omega)


def nilpotence(equations: StateEquations, kappa: float = KAPPA) -> Certificate:
    """Certify a network's equation: every layer reads earlier ones, so A is nilpotent.

    ω = 1 + φ₊(|A| ω) / κ, layer by layer, with φ₊ the factor L of an elementwise φ and the largest
    entry of a window for max-pooling; so ‖A‖∞,ω < κ. An operation that is kept has no known L:
    the equation is well-posed all the same, but the norm is NaN. NaN or infinity in a weight is
    never well-posed.

    Args:
        equations: The network.
        kappa: Norm to aim at.

    Returns:
        The certificate.
    """
    bound = absolute(equations.changed(_in_double))
    whole = torch.ones(equations.n, dtype=torch.float64)
    if not all(term.weight.isfinite().all() for e in bound.hidden for term in e.terms):
        return Certificate(False, float("nan"), "none", whole)
    omega: list[Tensor] = []
    worst = torch.zeros((), dtype=torch.float64)
    u = torch.zeros(1, equations.p, dtype=torch.float64)  # inputs are no states
    for equation in bound.hidden:
        if isinstance(equation.phi, Kept):
            return Certificate(True, float("nan"), "nilpotent", whole)
        sums = equation.preactivation([*omega, u])
        steep = equation.phi.lipschitz * (
            equation.phi(sums) if equation.phi.name == "max_pool" else sums
        )
        omega.append(1 + steep / kappa)
        worst = torch.maximum(worst, (steep / omega[-1]).max())
    # products and sums of non-negative numbers, rounded outward; a very deep net's ω overflows
    norm = float(worst) * (1 + (equations.n + 8) * torch.finfo(torch.float64).eps)
    weights = torch.cat(omega[::-1], 1)[0]
    return Certificate(True, norm if weights.isfinite().all() else kappa, "nilpotent", weights)


def _in_double(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def absolute(equations: StateEquations) -> StateEquations:
    """Take absolute values of all weights and fixed maps, and leave out constants.

    Args:
        equations: The network.

    Returns:
        The same layers with |W|, |F|, |G| and no biases.
    """

    def positive(equation: Equation) -> Equation:
        terms = tuple(
            replace(t, map=t.map.absolute(), fixed=t.fixed and t.fixed.absolute(), offset=None)
            for t in equation.terms
        )
        fixed = tuple(replace(s, map=s.map.absolute()) for s in equation.fixed)
        return replace(equation, terms=terms, fixed=fixed, bias=None)

    hidden = tuple(positive(equation) for equation in equations.hidden)
    return replace(equations, hidden=hidden, output=positive(equations.output))
