"""How far the outputs can move when the inputs do, from the weights alone: for every input.

With L_i the Lipschitz constant of the φ of state i, any two inputs have equilibria with

    |x − x'| ≤ diag(L) (|A| |x − x'| + |B| |u − u'|),

so |x − x'| ≤ (I − diag(L)|A|)⁻¹ diag(L)|B| |u − u'| where the model is well-posed, entry by entry,
and |y − y'| ≤ S |u − u'| with the sensitivity matrix S = |C| (I − diag(L)|A|)⁻¹ diag(L)|B| + |D|
(El Ghaoui et al., Implicit Deep Learning, SIAM J. Math. Data Sci. 3, 2021, section 4).

All of it is float64, rounded up.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.bounds.intervals import TINY, slack
from simplicit.errors import InputError
from simplicit.model.certificate import Certificate
from simplicit.model.implicit import ImplicitModel


def require_well_posed(model: ImplicitModel) -> None:
    """Do nothing if well-posedness is certified.

    Args:
        model: Any model.

    Raises:
        InputError: Otherwise: then no bound holds.
    """
    found = model.certificate
    if not found.well_posed:
        raise InputError(
            f"the model is not certified well-posed ({found}): no bound on its outputs holds; "
            "solve it again under a ball with kappa below 1"
        )


def resolvent(A: Float[Tensor, "n n"], lipschitz: Float[Tensor, "n"], found: Certificate) -> Tensor:
    """Bound (I − M)⁻¹ from above, M = diag(L)|A|.

    A strictly upper triangular A needs back substitution of non-negative numbers only, which cannot
    cancel. Otherwise any X with M X + I ≤ X is a bound, since the inverse is non-negative. The
    solution that a linear solver returns is raised until it is such an X: M ω ≤ norm · ω of the
    certificate says how far adding a multiple of ω raises X − M X.

    Args:
        A: State matrix, float64.
        lipschitz: L, float64.
        found: Certificate of A, which is well-posed.

    Returns:
        X (n, n).
    """
    n = len(A)
    k, one = slack(n), torch.eye(n, dtype=A.dtype)
    M = lipschitz[:, None] * A.abs() * (1 + k)
    if found.method == "nilpotent":
        return torch.linalg.solve_triangular(one - M, one, upper=True) * (1 + n * k) + TINY
    X = torch.linalg.solve(one - M, one).clamp_min(0)
    MX = M @ X
    missing = MX + one - X + k * (MX + one + X) + TINY
    omega = found.weights[:, None]
    lift = (missing / ((1 - found.norm) * omega)).amax(0, keepdim=True).clamp_min(0)
    # twice, for the rounding of these lines themselves
    return X + 2 * omega * lift


def input_gain(model: ImplicitModel) -> Float[Tensor, "n p"]:
    """Bound |∂x/∂u| entry by entry: (I − diag(L)|A|)⁻¹ diag(L)|B|.

    Args:
        model: Any model.

    Returns:
        The bound, float64.
    """
    require_well_posed(model)
    A, B, L, k = model.A.detach().double(), model.B.detach().double(), slopes(model), slack(model.n)
    return resolvent(A, L, model.certificate) @ (L[:, None] * B.abs()) * (1 + k) + TINY


def sensitivity_matrix(model: ImplicitModel) -> Float[Tensor, "q p"]:
    """Bound |∂y/∂u| entry by entry, for all inputs.

    Args:
        model: Any model.

    Returns:
        S (q, p), float64: |y_k(u) − y_k(u')| ≤ Σ_j S_kj |u_j − u'_j|.
    """
    C, D = model.C.detach().double().abs(), model.D.detach().double().abs()
    return (C @ input_gain(model) + D) * (1 + slack(model.n)) + TINY


def lipschitz_bound(model: ImplicitModel) -> float:
    """Bound ‖y(u) − y(u')‖∞ / ‖u − u'‖∞ over all pairs of inputs.

    Args:
        model: Any model.

    Returns:
        The largest row sum of the sensitivity matrix.
    """
    return float(sensitivity_matrix(model).sum(1).max()) * (1 + slack(model.p))


def margin_lipschitz(model: ImplicitModel) -> Float[Tensor, "q q"]:
    """Bound how fast each difference of two outputs moves, |(y_c − y_k)'|, in l∞.

    Args:
        model: Any model.

    Returns:
        Entry (c, k): Σ_j of (|C_c − C_k| |∂x/∂u| + |D_c − D_k|)_j; 0 on the diagonal.
    """
    C, D = model.C.detach().double(), model.D.detach().double()
    gain, k = input_gain(model), slack(model.n + model.p)
    rows = [
        ((row_c - C).abs() @ gain + (row_d - D).abs()).sum(1) * (1 + k) + TINY
        for row_c, row_d in zip(C, D, strict=True)
    ]
    table = torch.stack(rows)
    return table.fill_diagonal_(0.0)


def slopes(model: ImplicitModel) -> Float[Tensor, "n"]:
    """List L, the Lipschitz constant of every state's φ.

    Args:
        model: Any model.

    Returns:
        L, float64.
    """
    per_state = [block.phi.lipschitz for block in model.blocks for _ in range(block.size)]
    return torch.tensor(per_state, dtype=torch.float64)
