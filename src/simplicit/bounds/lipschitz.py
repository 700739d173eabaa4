"""How far the outputs can move when the inputs do, from the weights alone: for every input.

With L_i the Lipschitz constant of the φ of state i, any two inputs have equilibria with

    |x − x'| ≤ diag(L) (|A| |x − x'| + |B| |u − u'|),

so |x − x'| ≤ (I − diag(L)|A|)⁻¹ diag(L)|B| |u − u'| where the model is well-posed, entry by entry,
and |y − y'| ≤ S |u − u'| with the sensitivity matrix S = |C| (I − diag(L)|A|)⁻¹ diag(L)|B| + |D|
(El Ghaoui et al., Implicit Deep Learning, SIAM J. Math. Data Sci. 3, 2021, section 4).

All of it is float64, rounded up.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.bounds.exact import equations_of, require_well_posed
from simplicit.bounds.intervals import TINY, slack
from simplicit.bounds.layer_boxes import Layer, prepared, pull
from simplicit.bounds.relaxation import windows
from simplicit.equations.layer_phi import MaxPool, StatePhi
from simplicit.equations.stacked import Stacked
from simplicit.model.certificate import Certificate
from simplicit.model.implicit import ImplicitModel


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


def reach(layers: Sequence[Layer], p: int, found: Certificate) -> list[Float[Tensor, "1 _"]]:
    """Bound how far every state moves where no input moves by more than 1.

    Layer by layer, r = L (|W| r of what it reads); of max-pooling the largest r in a window.

    Args:
        layers: Of the network.
        p: Its inputs.
        found: Certificate of its states, which are well-posed.

    Returns:
        r of every hidden layer, then 1 for the input.
    """
    one = torch.ones(1, p, dtype=torch.float64)
    moved: list[Tensor] = []
    for layer in layers[:-1]:
        phi, k = layer.equation.phi, slack(layer.products)
        alone = layer if layer.own is None else layer.rest
        z = alone.absolute.preactivation([*moved, one])
        r = (phi(z) if isinstance(phi, MaxPool) else steepest(phi, z.shape[1]) * z) * (1 + k)
        if layer.own is not None:
            r = r @ _resolvent(layer, found).T * (1 + slack(len(r[0])))
        moved.append(r + TINY)
    return [*moved, one]


def sensitivity_matrix(model: ImplicitModel) -> Float[Tensor, "q p"]:
    """Bound |∂y/∂u| entry by entry, for all inputs.

    Args:
        model: Any model.

    Returns:
        S (q, p), float64: |y_k(u) − y_k(u')| ≤ Σ_j S_kj |u_j − u'_j|. The largest of a window
        counts as the sum of its entries.
    """
    found, layers = require_well_posed(model), prepared(equations_of(model))
    moved = dict(pull(layers[-1].absolute, torch.eye(model.q, dtype=torch.float64)[None]))
    for k in reversed(range(len(layers) - 1)):
        if (c := moved.pop(k, None)) is None:
            continue
        layer, phi = layers[k], layers[k].equation.phi
        if layer.own is not None:
            c = c @ _resolvent(layer, found)
        if isinstance(phi, MaxPool):
            table = windows(phi)
            z = c.new_zeros(1, c.shape[1], layer.equation.size + 1)
            spread = c[..., None].expand(*c.shape, table.shape[1]).flatten(2)
            c = z.index_add(2, table.flatten() + 1, spread)[..., 1:]
        else:
            c = c * steepest(phi, c.shape[2])
        alone = layer if layer.own is None else layer.rest
        for source, more in pull(alone.absolute, c).items():
            moved[source] = moved[source] + more if source in moved else more
    S = moved[-1][0] if -1 in moved else torch.zeros(model.q, model.p, dtype=torch.float64)
    roundings = sum(layer.products + layer.equation.size for layer in layers)
    return S * (1 + slack(roundings)) + TINY


def lipschitz_bound(model: ImplicitModel) -> float:
    """Bound ‖y(u) − y(u')‖∞ / ‖u − u'‖∞ over all pairs of inputs.

    Args:
        model: Any model.

    Returns:
        The largest row sum of the sensitivity matrix, or less where there are maxima.
    """
    found, layers = require_well_posed(model), prepared(equations_of(model))
    y = layers[-1].absolute.preactivation(reach(layers, model.p, found))
    return float(y.max()) * (1 + slack(layers[-1].products)) + TINY


def margin_lipschitz(layers: Sequence[Layer], p: int, found: Certificate) -> Float[Tensor, "q q"]:
    """Bound how fast each difference of two outputs moves, |(y_c − y_k)'|, in l∞.

    Args:
        layers: Of the network.
        p: Its inputs.
        found: Certificate of its states, which are well-posed.

    Returns:
        Entry (c, k): Σ_j of (|C_c − C_k| |∂x/∂u| + |D_c − D_k|)_j; 0 on the diagonal.
    """
    output, moved = layers[-1], reach(layers, p, found)
    one = torch.eye(output.equation.size, dtype=torch.float64)
    k, whole = slack(output.products), output.absolute.preactivation(moved)[0]
    rows = []
    for own in one:
        apart = (own - one)[None]
        read = pull(output.equation, apart).items()
        total = sum((c[0].abs() @ moved[source][0] for source, c in read), torch.zeros_like(own))
        rows.append((total + k * (apart[0].abs() @ whole)) * (1 + 2 * k) + TINY)
    return torch.stack(rows).fill_diagonal_(0.0)


def steepest(phi: StatePhi, rows: int) -> Float[Tensor, " rows"]:
    """List L, the Lipschitz constant of every state's φ.

    Args:
        phi: Elementwise activations of a layer.
        rows: Its states.

    Returns:
        L, float64.
    """
    blocks = [(b.phi, b.size) for b in phi.blocks] if isinstance(phi, Stacked) else [(phi, rows)]
    each = [torch.full((size,), part.lipschitz, dtype=torch.float64) for part, size in blocks]
    return torch.cat(each)


def _resolvent(layer: Layer, found: Certificate) -> Tensor:
    return resolvent(layer.feedback, steepest(layer.equation.phi, layer.equation.size), found)
