"""Backward elimination of whole units: which one costs the outputs least, all its readers refitted.

All rows of a layer read the same features, so they share one inverse H of their Gram. Removing the
features J of a unit from all of them, the others made optimal again, adds

    ½ tr(S W_J (H_JJ)⁻¹ W_J')

to the loss ½ tr(S (W* − W) G (W* − W)'), where S says how the outputs couple the rows; it moves the
weights by −W_J (H_JJ)⁻¹ H_J, and takes H_J' (H_JJ)⁻¹ H_J from H. It is optimal brain surgeon for
groups (Hassibi & Stork, 1993; Kurtic, Frantar, Alistarh, "ZipLM", 2023) with several rows that are
coupled. The optimum of W does not depend on S: refits need none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.convex.cholesky import factor, solve_factored


class Reader:
    """The rows of a layer, and the features that units have among what they read.

    Args:
        G: Gram of the features, positive definite.
        R: Moments; W G = R is solved by the weights of all features.
        S: How the outputs couple the rows.
        rows: Unit of each row, negative if it cannot go.
        features: Unit of each feature, likewise; those of a group of rows with a kernel of its own
            go with it and are not listed here.

    Attributes:
        units: The units that have features here.
    """

    def __init__(
        self,
        G: Float[Tensor, "d d"],
        R: Float[Tensor, "K d"],
        S: Float[Tensor, "K K"],
        rows: Int[Tensor, " K"],
        features: Int[Tensor, " d"],
    ) -> None:
        self._H = torch.cholesky_inverse(factor(G))
        self._W = R @ self._H
        self._S = S.to(self._W).clone()
        self._rows = rows
        self.units = features[features >= 0].unique()
        self._columns = {int(u): (features == u).nonzero()[:, 0] for u in self.units}
        self._Q = self._W.mT @ (self._S @ self._W)

    def costs(self) -> Float[Tensor, " units"]:
        """Price the units that have features here.

        Returns:
            What the loss gains without each of them; 0 for those that are gone.
        """
        found = self._H.new_zeros(len(self.units))
        sizes: dict[int, list[int]] = {}
        for place, unit in enumerate(self.units.tolist()):
            if unit in self._columns:
                sizes.setdefault(len(self._columns[unit]), []).append(place)
        for places in sizes.values():
            J = torch.stack([self._columns[int(self.units[place])] for place in places])
            H, Q = (M[J[:, :, None], J[:, None, :]] for M in (self._H, self._Q))
            solved = torch.linalg.solve(H, Q)
            found[places] = solved.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0) / 2
        return found

    def hears(self, unit: int) -> bool:
        """Say whether a unit matters here.

        Args:
            unit: Its number.

        Returns:
            Whether it has features or rows here.
        """
        return unit in self._columns or bool((self._rows == unit).any())

    def remove(self, unit: int) -> None:
        """Take a unit's features from the rows, and its rows from what counts.

        Args:
            unit: Its number.
        """
        if (J := self._columns.pop(unit, None)) is not None:
            X = solve_factored(factor(self._H[J][:, J]), self._H[J])
            self._W -= self._W[:, J] @ X
            moved = self._Q[:, J] @ X
            self._Q -= moved + moved.mT - X.mT @ (self._Q[J][:, J] @ X)
            self._H -= self._H[:, J] @ X
            for M in (self._H, self._Q):
                M[J], M[:, J] = 0.0, 0.0
            self._W[:, J] = 0.0
        for k in (self._rows == unit).nonzero()[:, 0].tolist():
            u, w = self._S[k] @ self._W, self._W[k].clone()
            moved = torch.outer(u, w)
            self._Q -= moved + moved.mT - self._S[k, k] * torch.outer(w, w)
            self._S[k], self._S[:, k] = 0.0, 0.0


@dataclass(frozen=True, eq=False)
class Use:
    """What units take of a layer's products: a unit's rows times what they read, and its features.

    Attributes:
        rows: Unit of each row, negative if it cannot go.
        features: Unit of each feature; negative, too, where they go with the rows.
        each: Features that a row reads.
        worth: What a product of one weight is worth: 1, its positions, or their seconds.
    """

    rows: Int[Tensor, " K"]
    features: Int[Tensor, " d"]
    each: int
    worth: float

    @property
    def whole(self) -> float:
        """What all of its products are worth."""
        return self.worth * len(self.rows) * self.each


@dataclass(frozen=True, eq=False)
class Order:
    """Units in the order in which they go.

    Attributes:
        units: Their numbers.
        costs: What the loss gains with each.
        left: What the products that are left after each are worth.
    """

    units: list[int]
    costs: list[float]
    left: list[float]


def eliminate(
    count: int,
    readers: Sequence[Reader],
    uses: Sequence[Use],
    goal: float,
    step: Callable[[float], None] = lambda _: None,
) -> Order:
    """Remove one unit after another, where it costs least for what it saves.

    Args:
        count: Units.
        readers: What the outputs lose by them.
        uses: What is saved by them.
        goal: What the products that are left may be worth.
        step: Called with what a removal saves.

    Returns:
        The order. It ends above the goal where each layer that can lose units has one left.
    """
    R = torch.tensor([float(len(use.rows)) for use in uses], dtype=torch.float64)
    F = torch.tensor([float(use.each) for use in uses], dtype=torch.float64)
    worth = torch.tensor([use.worth for use in uses], dtype=torch.float64)
    rows = torch.stack([_counted(use.rows, count) for use in uses], 1)
    features = torch.stack([_counted(use.features, count) for use in uses], 1)
    costs = torch.zeros(len(readers), count, dtype=torch.float64)
    for own, reader in zip(costs, readers, strict=True):
        own[reader.units.cpu()] = reader.costs().cpu().double()
    order, left = Order([], [], []), float(worth @ (R * F))
    open_ = torch.ones(count, dtype=torch.bool)
    while left > goal:
        saved = (rows * F + features * R - rows * features) @ worth
        last = ((rows > 0) & (rows >= R)).any(1)  # the layer would have no rows left
        may = open_ & ~last & (saved > 0)
        price = (costs.sum(0) / saved).masked_fill(~may, torch.inf)
        unit = int(price.argmin())
        if not may[unit]:
            break
        order.units.append(unit)
        order.costs.append(float(costs[:, unit].sum()))
        for own, reader in zip(costs, readers, strict=True):
            if reader.hears(unit):
                reader.remove(unit)
                own[reader.units.cpu()] = reader.costs().cpu().double()
        R, F, open_[unit] = R - rows[unit], F - features[unit], False
        rows[unit], features[unit] = 0.0, 0.0
        before, left = left, float(worth @ (R * F))
        order.left.append(left)
        step(before - left)
    return order


def _counted(units: Tensor, count: int) -> Tensor:
    units = units.cpu()
    return torch.bincount(units[units >= 0], minlength=count).double()
