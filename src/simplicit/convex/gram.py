"""Sufficient statistics of the row problems: all that is kept of the data."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.convex.products import product
from simplicit.errors import InputError
from simplicit.system import memory

ROUNDING = torch.finfo(torch.float32).eps
"""Of a Gram of products in float32, relative to the mean squares of its features."""

Columns = slice | Int[Tensor, " n"] | list[int]


class Gram:
    """Means over samples of V'V, T'V and t², in float64, accumulated batch by batch.

    With features V (m, N) and targets T (m, K), the loss of row k is
    1/(2m) ‖T_k − V w‖² = ½ w'G w − R_k'w + ½ t2_k: m never matters again.

    Args:
        n: Number of features N.
        k: Number of targets K.
        device: Where to accumulate.

    Raises:
        InputError: If they do not fit into memory.

    Attributes:
        G: V'V/m, (N, N), float64.
        R: T'V/m, (K, N), float64.
        t2: Mean square of each target, (K,), float64.
        m: Samples seen.
    """

    def __init__(self, n: int, k: int, device: torch.device | str | None = None) -> None:
        memory.require(8.0 * n * (n + k), f"moments of {n} features and {k} targets", device)
        self.G = torch.zeros(n, n, dtype=torch.float64, device=device)
        self.R = torch.zeros(k, n, dtype=torch.float64, device=device)
        self.t2 = torch.zeros(k, dtype=torch.float64, device=device)
        self.m = 0
        self._finite: bool | None = None

    @property
    def finite(self) -> bool:
        """Whether G is finite; looked at once for all problems that share it."""
        if self._finite is None:  # a sum that is not finite may have overflowed
            whole = bool(torch.isfinite(self.G.sum()))
            self._finite = whole or bool(torch.isfinite(self.G).all())
        return self._finite

    @classmethod
    def from_data(cls, V: Float[Tensor, "m N"], T: Float[Tensor, "m K"]) -> "Gram":
        """Accumulate one batch.

        Args:
            V: Features, (m, N).
            T: Targets, (m, K).

        Returns:
            The statistics of that batch.
        """
        return cls(V.shape[1], T.shape[1], V.device).update(V, T)

    def update(self, V: Float[Tensor, "m N"], T: Float[Tensor, "m K"]) -> "Gram":
        """Add a batch of samples.

        Args:
            V: Features, (m, N), any floating dtype.
            T: Targets, (m, K).

        Returns:
            Itself.

        Raises:
            InputError: If the shapes do not fit.
        """
        if V.shape[0] != T.shape[0] or V.shape[1] != len(self.G) or T.shape[1] != len(self.R):
            raise InputError(
                f"features {tuple(V.shape)} and targets {tuple(T.shape)}: accepted are "
                f"(m, {len(self.G)}) and (m, {len(self.R)}) with the same m"
            )
        if len(V) == 0:
            return self
        V, T = V.to(self.G), T.to(self.G)
        total = self.m + len(V)
        old, new = self.m / total, 1 / total
        self.G.addmm_(V.T, V, beta=old, alpha=new)
        self.R.addmm_(T.T, V, beta=old, alpha=new)
        self.t2.mul_(old).add_((T * T).sum(0), alpha=new)
        self.m, self._finite = total, None
        return self

    def merge(self, other: "Gram") -> "Gram":
        """Join the statistics of two sets of samples.

        Args:
            other: Statistics of the same features and targets.

        Returns:
            The statistics of all samples.
        """
        total = max(self.m + other.m, 1)
        mine, theirs = self.m / total, other.m / total
        return Gram.of(
            self.G * mine + other.G * theirs,
            self.R * mine + other.R * theirs,
            self.t2 * mine + other.t2 * theirs,
            self.m + other.m,
        )

    @classmethod
    def of(
        cls,
        G: Float[Tensor, "N N"],
        R: Float[Tensor, "K N"],
        t2: Float[Tensor, "K"],
        m: int,
    ) -> "Gram":
        """Wrap moments that are already there, without a copy.

        Args:
            G: V'V/m, (N, N), float64.
            R: T'V/m, (K, N), float64.
            t2: Mean square of each target, (K,), float64.
            m: Samples they are means over.

        Returns:
            The statistics.
        """
        gram = cls.__new__(cls)
        gram.G, gram.R, gram.t2, gram.m = G, R, t2, m
        gram._finite = None
        return gram

    def select(self, columns: Columns = slice(None), rows: Columns = slice(None)) -> "Gram":
        """Keep some features and targets.

        Args:
            columns: Features to keep, in this order.
            rows: Targets to keep, in this order.

        Returns:
            Their statistics.
        """
        if isinstance(columns, Tensor):
            G = self.G[columns[:, None], columns]  # copies nothing that is not kept
        else:
            G = self.G[columns][:, columns]
        return Gram.of(G, self.R[rows][:, columns], self.t2[rows], self.m)

    def with_targets(self, R: Float[Tensor, "K N"], t2: Float[Tensor, "K"]) -> "Gram":
        """Exchange the targets; the features' moments are shared, not copied.

        Args:
            R: New cross moments, (K, N).
            t2: New mean squares, (K,).

        Returns:
            Statistics of the same features with other targets.
        """
        gram = Gram.of(self.G, R, t2, self.m)
        gram._finite = self._finite
        return gram


def among(G: Float[Tensor, "N N"], features: Int[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Select the rows and columns of some features.

    Args:
        G: Symmetric.
        features: Their numbers, ascending.

    Returns:
        Their part of G: a view if these features are the first ones, a copy otherwise.
    """
    n = len(features)
    if not n or int(features[-1]) == n - 1:
        return G[:n, :n]
    return G[features][:, features]


def fit_free(
    gram: Gram, free: Int[Tensor, " f"], inverse: Float[Tensor, "f f"], W: Float[Tensor, "K N"]
) -> None:
    """Set free features of W, in place, to their optimum given the others.

    Args:
        gram: Statistics of the rows.
        free: Features that are not penalised.
        inverse: Pseudo-inverse of their Gram.
        W: Weights whose free features are 0, (K, N).
    """
    if len(free):
        W[:, free] = product(gram.R[:, free] - product(W, gram.G[:, free]), inverse)


def pseudo_inverse(G: Float[Tensor, "f f"]) -> Float[Tensor, "f f"]:
    """Invert a Gram on its range, whatever the units of its features.

    Args:
        G: Symmetric positive semidefinite.

    Returns:
        A generalised inverse; features of zero mean square stay zero.
    """
    alive = G.diagonal() > 0
    unit = torch.where(alive, G.diagonal().sqrt(), 1.0)
    inverse = torch.linalg.pinv(G / unit / unit[:, None], hermitian=True) / unit / unit[:, None]
    return torch.where(alive & alive[:, None], inverse, 0.0)
