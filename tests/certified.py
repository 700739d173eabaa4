"""An independent judge: primal, dual and feasibility from the data and the answer alone.

It shares no code with the package: extended precision where numpy has it, no Gram, the dual value
evaluated as a value and not as a sum of Fenchel-Young gaps, the ball's multiplier by closing grids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simplicit.convex.problem import RowProblem

Array = NDArray[np.longdouble]


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth; every field is (K,).

    Attributes:
        primal: Objective.
        dual: A lower bound on the optimum.
        norm: Σ ω|w|.
        excess: How far that exceeds the radius, relative; 0 inside the ball.
        unit: ½·mean t² (squared loss) or √mean t² (rooted), what `tol` is relative to.
    """

    primal: NDArray[np.float64]
    dual: NDArray[np.float64]
    norm: NDArray[np.float64]
    excess: NDArray[np.float64]
    unit: NDArray[np.float64]

    @property
    def gap(self) -> NDArray[np.float64]:
        return self.primal - self.dual


def judge(problem: RowProblem, V: Tensor, T: Tensor, W: Tensor) -> Verdict:
    """Judge weights W (K, N) by features V (m, N) and targets T (m, K).

    Returns:
        One verdict on all rows.
    """
    assert W.shape == (T.shape[1], V.shape[1])
    rows = [
        _judge(_Row.of(problem, k), _array(V), _array(T[:, k]), _array(W[k])) for k in range(len(W))
    ]
    return Verdict(*np.array(rows, dtype=np.float64).reshape(len(W), 5).T)


def _array(x: Tensor) -> Array:
    return x.detach().double().numpy().astype(np.longdouble)


@dataclass(frozen=True)
class _Row:
    """One row's own problem; ω is 0 where nothing constrains."""

    root: bool
    l0: float
    l1: float
    l2: float
    rho: Array
    omega: Array
    radius: float

    @classmethod
    def of(cls, problem: RowProblem, k: int) -> "_Row":
        def number(value: float | Tensor) -> float:
            return float(value[k]) if isinstance(value, Tensor) and value.ndim else float(value)

        penalty, ball, N = problem.penalty, problem.ball, len(problem.gram.G)
        rho = np.ones(N, np.longdouble) if penalty.scales is None else _array(penalty.scales)
        omega, radius = np.zeros(N, np.longdouble), 0.0
        if ball is not None and number(ball.radius) < np.inf:
            where = ball.features if isinstance(ball.features, slice) else ball.features.numpy()
            omega[where] = 1.0 if ball.weights is None else _array(ball.weights)
            radius = number(ball.radius)
        l0, l1, l2 = (number(getattr(penalty, name)) for name in ("l0", "l1", "l2"))
        return cls(problem.loss == "root", l0, l1, l2, rho, omega, radius)

    @property
    def curvature(self) -> Array:
        return self.l2 * self.rho**2

    @property
    def free(self) -> NDArray[np.bool_]:
        """Unpenalised and outside the ball."""
        return (self.omega == 0) & (self.rho * (self.l0 + self.l1 + self.l2) == 0)

    def penalty(self, w: Array) -> np.longdouble:
        """Σ l1|v| + min over z in (0, 1] of l0 z + l2 v²/(2 z), v = ρ w."""
        v = abs(self.rho * w)
        best = v * np.sqrt(self.l2 / (2 * self.l0)) if self.l0 > 0 else np.ones_like(v)
        z = np.where(v > 0, np.minimum(1.0, best), 1.0)
        return (self.l1 * v + (v > 0) * (self.l0 * z + self.l2 * v * v / (2 * z))).sum()

    def conjugate(self, c: Array) -> float:
        """Least over μ ≥ 0 of Σ pen*((|c| − μω)₊) + radius·μ."""
        c, curvature = np.where(self.free, 0.0, abs(c)), self.curvature

        def at(mu: Array) -> Array:
            a = np.maximum(c - mu[:, None] * self.omega - self.l1 * self.rho, 0)
            curved = np.divide(a * a, 2 * curvature, out=np.zeros_like(a), where=curvature > 0)
            # an excess in the last place of c is rounding
            wall = np.where((curvature == 0) & (a > 1e-17 * c), np.inf, 0.0)
            return (np.maximum(curved - self.l0, 0) + wall).sum(1) + self.radius * mu

        need = np.zeros_like(c)
        np.divide(c - self.l1 * self.rho, self.omega, out=need, where=self.omega > 0)
        if not need.any():
            return float(at(np.zeros(1, np.longdouble))[0])
        low = (need * (curvature == 0)).max(initial=0) * (1 + 1e-15)
        grid = np.linspace(low, need.max(initial=low), 17, dtype=np.longdouble)
        values = at(grid)
        for _ in range(13):  # convex: the least lies beside the best point of the grid
            i = int(values.argmin())
            grid = np.linspace(grid[max(i - 1, 0)], grid[min(i + 1, 16)], 17, dtype=np.longdouble)
            values = at(grid)
        return float(values.min())


def _judge(row: _Row, V: Array, t: Array, w: Array) -> tuple[float, ...]:
    m = max(len(t), 1)
    r = t - V @ w
    q, t2 = (r @ r) / m, (t @ t) / m
    norm = (row.omega * abs(w)).sum()
    primal = (np.sqrt(q) if row.root else q / 2) + row.penalty(w)
    unit = np.sqrt(t2) if row.root else t2 / 2
    excess = max(norm - row.radius, 0.0)
    excess = excess / row.radius if excess > 0 and row.radius > 0 else excess
    dual = 0.0  # θ = 0: the objective is never negative
    for theta in _directions(row, V, t, r):
        if primal - dual > 1e-12 * unit:
            dual = max(dual, _best_on_ray(row, V, t, theta, float(primal)))
    return tuple(map(float, (primal, dual, norm, excess, unit)))


def _directions(row: _Row, V: Array, t: Array, r: Array) -> list[Array]:
    """The residual, and its parts orthogonal to features that are free or cost next to nothing."""
    if not len(t):
        return []
    length = np.sqrt((V * V).sum(0))
    tiny = row.l1 * row.rho <= 1e-10 * length * np.sqrt(t @ t) / len(t)
    cheap = row.free | (tiny & (row.curvature == 0))
    found = []
    for dropped in (row.free, cheap & (row.omega == 0), cheap):
        F = V[:, dropped & (length > 0)] / length[dropped & (length > 0)]
        rest = r
        for _ in range(3 if F.shape[1] else 0):  # repeated for the digits least squares leaves
            step = np.linalg.lstsq(F.astype(float), rest.astype(float))[0]
            rest = rest - F @ step.astype(np.longdouble)
        square = rest @ rest
        # what is left may be rounding, which is orthogonal to nothing
        if square > 0 and not (F.size and abs(F.T @ rest).max() > 1e-9 * np.sqrt(square)):
            found.append(rest)
    return found


def _best_on_ray(row: _Row, V: Array, t: Array, r: Array, primal: float) -> float:
    """The best dual value at a multiple of r that is feasible for the loss."""
    square, unit, m = r @ r, t @ t, len(t)
    if not row.root:
        return max(_bound(row, V, t, r), _bound(row, V, t, (r @ t) / square * r))
    point: Array = r * np.sqrt(m / square)
    best = _bound(row, V, t, point)
    if primal - best > 1e-9 * np.sqrt(unit / m):
        # beside the optimum the residual has a direction, but its length means little
        shares = np.linspace(0, 1, 9, dtype=np.longdouble)
        moments, norms = V.T @ point, (V * V).sum(0)
        for _ in range(12):
            values = [_bound(row, V, t, point * s, (moments * s, norms)) for s in shares]
            i = int(np.argmax(values))
            shares = np.linspace(shares[max(i - 1, 0)], shares[min(i + 1, 8)], 9)
            best = max(best, *values)
    return best


def _bound(
    row: _Row, V: Array, t: Array, theta: Array, known: tuple[Array, Array] | None = None
) -> float:
    """The best dual value on the way from 0 to θ that stays feasible, of two guesses."""
    m, best = len(t), 0.0
    moments, norms = known or (V.T @ theta, (V * V).sum(0))
    noise = 1e-16 * np.sqrt(norms * (theta @ theta)) / m
    c: Array = np.maximum(abs(moments) / m - noise, 0)
    for curved in (row.curvature > 0, np.zeros(len(c), bool)):
        flat = (row.omega == 0) & ~row.free & ~curved & (c > 0)
        s = min([1.0, *((row.l1 * row.rho)[flat] / c[flat])]) * (1 - 1e-16)
        value = s * (theta @ t) / m - (0.0 if row.root else s * s * (theta @ theta) / (2 * m))
        best = max(best, float(value) - row.conjugate(s * c))
    return best
