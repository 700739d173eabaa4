"""Which units of a network go, and what each layer of the smaller one is to be matched with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from simplicit.calibration.rows import Rows
from simplicit.calibration.skipped import Layer, Place
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.matching.expected.estimate import PRICES
from simplicit.matching.plan import Plan, Posed, Share, anchor
from simplicit.matching.records import Row
from simplicit.recipe import Recipe
from simplicit.sparsity.near import normal_equations
from simplicit.system import memory, progress
from simplicit.units.clock import faster, seconds
from simplicit.units.elimination import Order, Reader, Use, eliminate
from simplicit.units.found import STAYS, Units
from simplicit.units.narrow import Narrow, narrow


def readers_of(
    equations: StateEquations,
    layers: Sequence[Rows],
    units: Units,
    posed: Posed,
) -> list[Reader]:
    """Write what the outputs lose by units, layer by layer.

    Args:
        equations: The network.
        layers: Its rows.
        units: Its units.
        posed: The row problems on the network's own states, and what weighs them.

    Returns:
        Those whose rows all read the same features; kernels of groups go with their rows.
    """
    found = []
    for rows, own, felt in zip(layers, posed.problems, posed.coupling, strict=True):
        if rows.groups > 1:
            continue
        e = equations.layers[rows.index]
        G, R = normal_equations(own[0], anchor(rows.weights(e)[0], rows.biased))
        read = F.pad(_features(rows, units), (0, int(rows.biased)), value=STAYS)
        channels = units.channels[rows.index][rows.terms[0]]
        found.append(Reader(G, R, felt[0], channels.to(G.device), read.to(G.device)))
    return found


def uses_of(
    equations: StateEquations,
    layers: Sequence[Rows],
    units: Units,
    left: Mapping[Place, Layer],
    worth: Sequence[float] | None,
) -> list[Use]:
    """Write what units take of the products, or of the weights, of each layer.

    Args:
        equations: The network.
        layers: Its rows.
        units: Its units.
        left: Terms that stay as they are.
        worth: For each equation, what a product of one weight is worth, wherever it is used; None
            to count weights, those that are shared once.

    Returns:
        One entry a layer, those that stay as they are included.
    """
    found = []
    for rows in layers:
        e, every = equations.layers[rows.index], (rows, *rows.uses)
        total = 1.0 if worth is None else sum(worth[use.index] for use in every)
        read = _features(rows, units) if rows.groups == 1 else torch.full((1,), STAYS)
        each = rows.weights(e).shape[2]
        found.append(Use(units.channels[rows.index][rows.terms[0]], read, each, total))
    known: set[int] = set()
    for (index, _), layer in left.items():
        if worth is None and id(layer.weight) in known:
            continue
        known.add(id(layer.weight))
        count, each = layer.weight.flatten(1).shape
        stays = torch.full((1,), STAYS)
        total = 1.0 if worth is None else worth[index]
        found.append(Use(stays.expand(count), stays.expand(each), each, total))
    return found


@dataclass(frozen=True, eq=False)
class Budget:
    """What whole units are to save, of what.

    Args:
        network: The network as captured.
        equations: The same in the structure that is solved.
        layers: Its rows.
        units: Its units.
        left: Terms that stay as they are.
        recipe: With one of sparsity, flops and speedup.
        example: Some samples, to time.
    """

    network: StateEquations
    equations: StateEquations
    layers: Sequence[Rows]
    units: Units
    left: Mapping[Place, Layer]
    recipe: Recipe
    example: Tensor

    def _uses(self) -> list[Use]:
        e, worth = self.equations, None
        if self.recipe.flops is not None:
            worth = [float(e.terms[0].map.positions) if e.terms else 0.0 for e in e.layers]
        elif self.recipe.speedup is not None:
            worth = seconds(e)
        return uses_of(e, self.layers, self.units, self.left, worth)

    def _goal(self, uses: Sequence[Use]) -> float:
        recipe, kept = self.recipe, sum(self.network.kept_weights.values())
        if recipe.sparsity is not None:
            return (1 - recipe.sparsity) * self.network.nonzeros - kept
        return 0.0 if recipe.flops is None else (1 - recipe.flops) * sum(u.whole for u in uses)

    def require(self) -> None:
        """Refuse what cannot be met, before anything is computed.

        Raises:
            InputError: If there are no units, or taking out all but one of each layer saves less.
        """
        if not self.units.count:
            raise InputError(
                "pattern='channels': the network has no units that can go: all of its states are "
                "read or written by skipped layers or by operations that are kept as they are"
            )
        uses = self._uses()
        goal = self._goal(uses)
        self._require_met(uses, goal, eliminate(self.units.count, [], uses, goal))

    def _require_met(self, uses: Sequence[Use], goal: float, order: Order) -> None:
        recipe, whole = self.recipe, sum(use.whole for use in uses)
        least = order.left[-1] if order.left else whole
        if recipe.speedup is not None:
            most, name = self._faster(order.units), "speedup"
            met = most >= recipe.speedup
        else:
            name = "sparsity" if recipe.flops is None else "flops"
            total = self.network.nonzeros if recipe.flops is None else whole
            most, met = max(1 - least / total, 0.0), least <= goal
        if not met:
            raise InputError(
                f"{name}={getattr(recipe, name):g}: with one unit of each layer left it would be "
                f"{most:.3g}; accepted is less than that"
            )

    def _faster(self, gone: Sequence[int]) -> float:
        fewer = narrow(self.equations, self.units, _staying(self.units.count, gone))
        return faster(self.equations, fewer.equations, self.example)

    def spend(self, posed: Posed) -> Bool[Tensor, " units"]:
        """Choose the units that go.

        Args:
            posed: The row problems on the network's own states.

        Returns:
            True for the units that stay.
        """
        numbers = sum(4.0 * len(own[0].gram.G) ** 2 for own in posed.problems)
        memory.require(8 * numbers, "the prices of all units", self.equations.like.device)
        readers, uses = readers_of(self.equations, self.layers, self.units, posed), self._uses()
        goal, count = self._goal(uses), self.units.count
        with progress.task(PRICES, total=1) as step:
            order = eliminate(count, readers, uses, goal)
            step(1, f"{len(order.units)} of {count} units")
        self._require_met(uses, goal, order)
        gone = len(order.units)
        if self.recipe.speedup is not None:  # the fewest without which the modules are fast enough
            low = 0
            while gone - low > 1:
                middle = (low + gone) // 2
                enough = self._faster(order.units[:middle]) >= self.recipe.speedup
                low, gone = (low, middle) if enough else (middle, gone)
        return _staying(count, order.units[:gone])


def _staying(count: int, gone: Sequence[int]) -> Bool[Tensor, " units"]:
    stay = torch.ones(count, dtype=torch.bool)
    stay[list(gone)] = False
    return stay


def whole_shares(
    before: Sequence[Rows], layers: Sequence[Rows], fewer: Narrow, posed: Posed
) -> Plan:
    """Give the rows that are left all of their weights.

    Args:
        before: The rows of the network.
        layers: Those of the smaller one, in the same order.
        fewer: What is left of it.
        posed: The row problems of the network.

    Returns:
        The plan.
    """
    shares = []
    for old, rows, coupling in zip(before, layers, posed.coupling, strict=True):
        left = fewer.channels[rows.index][rows.terms[0]].unflatten(0, (old.groups, -1))
        d = rows.weights(fewer.equations.layers[rows.index]).shape[2]
        own = [S[kept][:, kept] for S, kept in zip(coupling, left, strict=True) if kept.any()]
        shares.append([Share(S, [d] * len(S), 0) for S in own])
    return Plan(0.0, 0.0, shares, posed.coherence)


def unit_records(before: StateEquations, after: StateEquations) -> list[Row]:
    """Write down how many channels and multiply-adds each layer has, and had.

    Args:
        before: The network.
        after: The same without some of its units.

    Returns:
        One record a layer with weights.
    """
    pairs = zip(before.layers, after.layers, strict=True)
    return [
        {
            "layer": old.name,
            "channels_before": len(old.terms[0].weight),
            "channels": len(new.terms[0].weight),
            "products_before": old.products,
            "products": new.products,
        }
        for old, new in pairs
        if old.terms
    ]


def _features(rows: Rows, units: Units) -> Tensor:
    return torch.cat([units.features[rows.index][slot[0]][0] for slot in rows.slots])
