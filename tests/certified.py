"""An independent judge: primal, dual and feasibility from the data and the answer alone.

It shares no code with the package: extended precision where numpy has it, no Gram, the dual value
evaluated as a value and not as a sum of Fenchel-Young gaps, the ball's multiplier by closing grids.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simplicit.convex.problem import RowProblem

Array = NDArray[np.longdouble]


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth; every attribute is (K,).

    Attributes:
        primal: Objective.
        norm: Σ ω|w|.
        excess: How far that exceeds the radius, relative; 0 inside the ball.
        unit: ½·mean t² (squared loss) or √mean t² (rooted), what `tol` is relative to.
    """

    answers: list["_Answer"] = field(repr=False)

    @cached_property
    def primal(self) -> NDArray[np.float64]:
        return np.array([answer.primal for answer in self.answers], np.float64)

    @cached_property
    def norm(self) -> NDArray[np.float64]:
        return np.array([answer.norm for answer in self.answers], np.float64)

    @cached_property
    def excess(self) -> NDArray[np.float64]:
        return np.array([answer.excess for answer in self.answers], np.float64)

    @cached_property
    def unit(self) -> NDArray[np.float64]:
        return np.array([answer.unit for answer in self.answers], np.float64)

    @property
    def gap(self) -> NDArray[np.float64]:
        """Objective minus a lower bound on the optimum, looked for when it is asked for."""
        return self.gaps(np.ones(len(self.answers), bool))

    def gaps(self, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The gaps of some rows, which takes much longer than the rest."""
        chosen = [answer for answer, one in zip(self.answers, rows, strict=True) if one]
        return np.array([answer.primal - answer.dual() for answer in chosen], np.float64)


def judge(problem: RowProblem, V: Tensor, T: Tensor, W: Tensor) -> Verdict:
    """Judge weights W (K, N) by features V (m, N) and targets T (m, K).

    Returns:
        One verdict on all rows.
    """
    assert W.shape == (T.shape[1], V.shape[1])
    data = _array(V)
    return Verdict(
        [_Answer(_Row.of(problem, k), data, _array(T[:, k]), _array(W[k])) for k in range(len(W))]
    )


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

    def conjugates(self, c: Array) -> Array:
        """Least over μ ≥ 0 of Σ pen*((|c| − μω)₊) + radius·μ, for every c of (S, N); (S,)."""
        c, curvature = np.where(self.free, 0.0, abs(c)), self.curvature

        def at(mu: Array) -> Array:
            a = np.maximum(c[:, None] - mu[:, :, None] * self.omega - self.l1 * self.rho, 0)
            curved = np.divide(a * a, 2 * curvature, out=np.zeros_like(a), where=curvature > 0)
            # an excess in the last place of c is rounding
            wall = np.where((curvature == 0) & (a > 1e-17 * c[:, None]), np.inf, 0.0)
            return (np.maximum(curved - self.l0, 0) + wall).sum(2) + self.radius * mu

        if not self.omega.any():
            return at(np.zeros((len(c), 1), np.longdouble))[:, 0]
        # convex and quadratic between kinks: the least is at a kink or at a vertex beside the best
        jump = np.sqrt(2 * self.l0 * curvature)
        need = [np.zeros_like(c), np.zeros_like(c)]
        for found, slope in zip(need, (np.zeros_like(jump), jump), strict=True):
            excess = c - self.l1 * self.rho - slope
            np.divide(excess, self.omega, out=found, where=self.omega > 0)
        low = (need[0] * (curvature == 0)).max(1, initial=0) * (1 + 1e-15)
        kinks = np.maximum(np.concatenate([low[:, None], *need], 1), low[:, None])
        values = at(kinks)
        best = np.take_along_axis(kinks, values.argmin(1)[:, None], 1)
        left = np.where(kinks < best, kinks, low[:, None]).max(1)
        right = np.where(kinks > best, kinks, kinks.max(1)[:, None]).min(1)
        vertices = [self._vertex(c, left, best[:, 0]), self._vertex(c, best[:, 0], right)]
        return np.minimum(values.min(1), at(np.stack(vertices, 1)).min(1))

    def _vertex(self, c: Array, left: Array, right: Array) -> Array:
        """Least μ between two kinks of the parabola that is there, for every c of (S, N); (S,)."""
        middle = (left + right)[:, None] / 2
        a = c - middle * self.omega - self.l1 * self.rho
        on = (a > 0) & (a * a > 2 * self.l0 * self.curvature) & (self.curvature > 0)
        share = np.divide(self.omega, self.curvature, out=np.zeros_like(c), where=on)
        slope = ((c - self.l1 * self.rho) * share).sum(1) - self.radius
        bend = (self.omega * share).sum(1)
        mu = np.divide(slope, bend, out=right.copy(), where=bend > 0)
        return np.clip(mu, left, right)


@dataclass(frozen=True)
class _Answer:
    """Weights w of one row, and its data."""

    row: _Row
    V: Array
    t: Array
    w: Array

    @cached_property
    def residual(self) -> Array:
        return self.t - self.V @ self.w

    @cached_property
    def primal(self) -> np.longdouble:
        q = np.longdouble(self.residual @ self.residual) / max(len(self.t), 1)
        return (np.sqrt(q) if self.row.root else q / 2) + self.row.penalty(self.w)

    @property
    def unit(self) -> float:
        t2 = float((self.t @ self.t) / max(len(self.t), 1))
        return t2**0.5 if self.row.root else t2 / 2

    @property
    def norm(self) -> float:
        return float((self.row.omega * abs(self.w)).sum())

    @property
    def excess(self) -> float:
        excess, radius = max(self.norm - self.row.radius, 0.0), self.row.radius
        return excess / radius if radius > 0 else excess

    def dual(self) -> float:
        best = 0.0  # θ = 0: the objective is never negative
        for theta in _directions(self.row, self.V, self.t, self.residual):
            if self.primal - best > 1e-12 * self.unit:
                found = _best_on_ray(self.row, self.V, self.t, theta, float(self.primal))
                best = max(best, found)
        return best


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
        return float(_bounds(row, V, t, r, np.array([1, (r @ t) / square])).max())
    point: Array = r * np.sqrt(m / square)
    best = float(_bounds(row, V, t, point, np.ones(1, np.longdouble))[0])
    if primal - best > 1e-9 * np.sqrt(unit / m):
        # beside the optimum the residual has a direction, but its length means little
        shares = np.linspace(0, 1, 9, dtype=np.longdouble)
        for _ in range(12):
            values = _bounds(row, V, t, point, shares)
            i = int(np.argmax(values))
            shares = np.linspace(shares[max(i - 1, 0)], shares[min(i + 1, 8)], 9)
            best = max(best, float(values[i]))
    return best


def _bounds(row: _Row, V: Array, t: Array, point: Array, shares: Array) -> Array:
    """The best dual value on the way from 0 to each share of a point, of two guesses; (S,).

    The way ends where it leaves what is feasible.
    """
    m, norms, square = len(t), (V * V).sum(0), point @ point
    noise = 1e-16 * np.sqrt(norms * square) / m
    c: Array = np.outer(abs(shares), np.maximum(abs(V.T @ point) / m - noise, 0))
    slopes = np.broadcast_to(row.l1 * row.rho, c.shape)
    best = np.zeros(len(shares), np.longdouble)
    for curved in (row.curvature > 0, np.zeros(len(row.rho), bool)):
        flat = ((row.omega == 0) & ~row.free & ~curved) & (c > 0)
        limits = np.divide(slopes, c, out=np.ones_like(c), where=flat)
        s = np.minimum(1, limits.min(1, initial=1)) * (1 - 1e-16)
        value = s * shares * (point @ t) / m
        value = value if row.root else value - (s * shares) ** 2 * square / (2 * m)
        best = np.maximum(best, value - row.conjugates(s[:, None] * c))
    return best
