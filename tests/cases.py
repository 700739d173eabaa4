"""Row problems with a known optimum, conditioning spectra, and degenerate data.

`known` draws weights w and a subgradient g of the penalty at w first, then a residual r with
V'r/m = g (divided by ‖r‖/√m for the rooted loss) and the target t = V w + r: w is optimal by
construction, whatever the conditioning of V.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from simplicit.convex.duality import Loss
from simplicit.convex.gram import Gram
from simplicit.convex.penalty import Ball, Penalty
from simplicit.convex.problem import RowProblem

PENALTIES = {
    "l1": dict(l1=0.3),
    "elastic": dict(l1=0.2, l2=0.1),
    "l0+l2": dict(l0=0.1, l2=0.4),
    "l0+l1+l2": dict(l0=0.05, l1=0.1, l2=0.2),
    "ridge": dict(l2=0.3),
    "none": dict(),
}
"""Between them: flat, curved, with and without a knee, with and without zeros."""

LOSSES: tuple[Loss, Loss] = ("squared", "root")


@dataclass(frozen=True)
class Case:
    """A problem, the data it was made from, and its optimum.

    Attributes:
        problem: The rows.
        V: Features, (m, N).
        T: Targets, (m, K).
        W: Optimal weights, (K, N).
        mu: Optimal multiplier of the ball, (K,).
    """

    problem: RowProblem
    V: Tensor
    T: Tensor
    W: Tensor
    mu: Tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def uniform(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    drawn = torch.rand(*shape, dtype=torch.float64, generator=generator(seed))
    return low + (high - low) * drawn


def features(m: int, N: int, decay: float, seed: int) -> Tensor:
    """Features whose Gram has eigenvalues i^(−decay) and random eigenvectors."""
    left = torch.linalg.qr(normal(m, N, seed=seed))[0]
    right = torch.linalg.qr(normal(N, N, seed=seed + 1))[0]
    spectrum = torch.arange(1, N + 1, dtype=torch.float64) ** (-decay / 2)
    return m**0.5 * (left * spectrum) @ right.T


def known(
    penalty: dict[str, float],
    *,
    ball: bool = False,
    loss: Loss = "squared",
    decay: float = 1.0,
    scaled: bool = True,
    ties: bool = False,
    rows: int = 4,
    N: int = 24,
    m: int = 60,
    seed: int = 0,
) -> Case:
    """K rows around a known optimum, a third of the weights non-zero, the ball on two thirds.

    Args:
        penalty: l0, l1, l2.
        ball: Whether the weighted ball is there, active with a positive multiplier.
        loss: `squared` or `root`.
        decay: Conditioning of the Gram, N^decay.
        scaled: Whether features have penalty scales ρ ≠ 1.
        ties: Put every weight that is not 0 on the penalty's knee (where there is one) and the
            moment of every weight that is 0 on its threshold.
        rows: K.
        N: Features.
        m: Samples, more than N.
        seed: Of everything.

    Returns:
        The case.
    """
    V = features(m, N, decay, seed)
    rho = uniform(N, seed=seed + 2, low=0.5, high=2.0) if scaled else torch.ones(N).double()
    inside = torch.arange(N) < (2 * N // 3 if ball else 0)
    omega = uniform(N, seed=seed + 3, low=0.5, high=2.0) * inside
    mu = uniform(rows, 1, seed=seed + 4, low=0.05, high=0.2) * ball
    l0, l1, l2 = (penalty.get(name, 0.0) for name in ("l0", "l1", "l2"))
    huber, knee = (2 * l0 * l2) ** 0.5, (2 * l0 / l2) ** 0.5 if l2 else 0.0

    W = normal(rows, N, seed=seed + 5) * (uniform(rows, N, seed=seed + 6) < 1 / 3)
    if ties and knee:
        W = W.sign() * knee / rho
    v = rho * W.abs()
    slope = l1 * rho + torch.where(v > knee, l2 * rho * v, huber * rho) + mu * omega
    at_zero = (l1 + huber) * rho + mu * omega
    within = uniform(rows, N, seed=seed + 7, low=-0.95, high=0.95)
    within = within.sign() if ties else within
    g = torch.where(W != 0, slope * W.sign(), at_zero * within)

    noise = normal(m, rows, seed=seed + 8)
    basis = torch.linalg.qr(V)[0]
    noise -= basis @ (basis.T @ noise)
    noise /= noise.square().mean(0).sqrt()
    r = m * V @ torch.linalg.solve(V.T @ V, g.T)
    if loss == "squared":
        r, shrink = r + 0.3 * noise, 1.0
    else:
        # V'r/m = ‖r‖/√m · g needs ‖r₁‖ < √m for the least r₁ with V'r₁/m = g: shrink penalty and g
        least = r.square().mean(0)
        shrink = min(1.0, float(0.8 / least.max().sqrt())) if least.any() else 1.0
        r = 0.5 * (shrink * r + (1 - shrink**2 * least).sqrt() * noise)
    T = V @ W.T + r
    # l0 and l2 and l1 are slopes of one penalty: all shrink alike, and so does the multiplier
    chosen = Penalty(l0 * shrink, l1 * shrink, l2 * shrink, scales=rho if scaled else None)
    constraint = None
    if ball:
        radius = (W.abs() * omega).sum(1)
        constraint = Ball(inside.nonzero()[:, 0], radius, omega[inside])
    problem = RowProblem(Gram.from_data(V, T), chosen, constraint, loss)
    return Case(problem, V, T, W, mu[:, 0] * shrink)


def degenerate() -> dict[str, tuple[Tensor, Tensor]]:
    """Features and targets that break naive solvers, (m, N) and (m, 3)."""
    V, T = normal(20, 8, seed=0), normal(20, 3, seed=1)
    zero, twins, mirrored, constant = V.clone(), V.clone(), V.clone(), V.clone()
    zero[:, [0, 5]] = 0
    twins[:, 4] = twins[:, 1]
    mirrored[:, 4] = -mirrored[:, 1]
    constant[:, 3] = 2.0
    integers = torch.randint(-1, 2, (20, 8), generator=generator(2)).double()
    spread = 10 ** torch.linspace(-8, 8, 8, dtype=torch.float64)
    nearly = features(20, 8, 0, seed=3)
    nearly[:, 1] = nearly[:, 0] + 1e-6 * nearly[:, 1]
    return {
        "zero columns": (zero, T),
        "all columns zero": (0 * V, T),
        "zero target": (V, T * torch.tensor([1.0, 0.0, 1.0])),
        "equal columns": (twins, T),
        "mirrored columns": (mirrored, T),
        "all columns equal": (V[:, :1].expand(20, 8).clone(), T),
        "constant column": (constant, T),
        "nearly equal columns": (nearly, T),
        "fewer samples than features": (V[:5], T[:5]),
        "one sample": (V[:1], T[:1]),
        "one feature": (V[:, :1], T),
        "no feature": (V[:, :0], T),
        "no sample": (V[:0], T[:0]),
        "equal entries": (torch.ones(20, 8).double(), torch.ones(20, 3).double()),
        "small integers": (integers, integers[:, :3].roll(1, 0)),
        "column scales 1e-8 to 1e8": (V * spread, T),
        "target in the span": (V, V @ normal(8, 3, seed=4)),
        "target is a column": (V, V[:, :3].clone()),
    }
