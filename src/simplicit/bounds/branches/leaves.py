"""Branch and bound: functions on parts of a box, the loosest part cut first.

A part is cut where a pre-activation is 0, the one that makes its bound loosest. The bound of a
function is the least over its parts; those of Wang et al., "Beta-CROWN" (NeurIPS 2021), serve
margins and, with a few parts each, the boxes of pre-activations.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simplicit.bounds.branches.slopes import Ascent, Branches, Found

STEPS = 20
"""Steps of the ascent for a whole box."""

SHORT = 5
"""Steps for a part, which begins where the whole ended."""


ROWS = 512
"""Functions side by side."""


class Leaves:
    """Functions of a layer, and the parts on which they are bounded.

    Args:
        ascent: The network up to the layer, on a box.
        mu: Coefficients of the layer's pre-activations, a function a row.

    Attributes:
        owner: Of each part its function, by index.
        inputs: Where the parts that were bounded last have their least value.
    """

    def __init__(self, ascent: Ascent, mu: Float[Tensor, "k rows"]) -> None:
        self._ascent, self._count = ascent, len(mu)
        self._found = self._climbed(ascent.begun(mu), STEPS)
        self.owner = torch.arange(len(mu))
        self.inputs = self._found.inputs

    def __len__(self) -> int:
        """Count the parts.

        Returns:
            How many there are.
        """
        return len(self.owner)

    @property
    def branches(self) -> Branches:
        """The parts, with their slopes and multipliers."""
        return self._found.branches

    def loosest(self, most: int) -> Int[Tensor, " f"]:
        """List the parts with the lowest bounds that can be cut.

        Args:
            most: How many at most.

        Returns:
            Their indices.
        """
        order = self._found.bound.argsort()
        return order[self._found.layer[order] >= 0][:most]

    def loosest_of_each(self) -> Int[Tensor, " f"]:
        """List the lowest quarter of each function's parts: those below 0 that can be cut.

        Returns:
            Their indices.
        """
        bound, parts = self._found.bound, torch.bincount(self.owner, minlength=self._count)
        order = bound.argsort()
        order = order[self.owner[order].argsort(stable=True)]
        first = parts.cumsum(0) - parts
        owner = self.owner[order]
        lower = torch.arange(len(order)) - first[owner] < (parts[owner] + 3) // 4
        index = order[lower]
        return index[(bound[index] < 0) & (self._found.layer[index] >= 0)]

    def cut(self, which: Int[Tensor, " f"]) -> None:
        """Cut parts in two.

        Args:
            which: Their indices.
        """
        old, rest = self._found, torch.ones(len(self), dtype=torch.bool)
        rest[which] = False
        halves = old.branches.taken(which).split(old.layer[which], old.state[which])
        new = self._climbed(halves, SHORT)
        # a part is at least as good as the whole
        parent = old.bound[which].repeat(2)
        self._found = Found(
            Branches.all_of([old.branches.taken(rest), new.branches]),
            torch.cat([old.bound[rest], torch.maximum(new.bound, parent)]),
            torch.cat([old.layer[rest], new.layer]),
            torch.cat([old.state[rest], new.state]),
            new.inputs,
        )
        self.owner = torch.cat([self.owner[rest], self.owner[which].repeat(2)])
        self.inputs = new.inputs

    def drop_proved(self) -> None:
        """Drop the parts whose bound is above 0, rounded outward."""
        found, left = self._found, torch.ones(len(self), dtype=torch.bool)
        likely = (found.bound > 0).nonzero()[:, 0]
        if len(likely):
            left[likely] = ~(self._bounded(found.branches.taken(likely)) > 0)
        columns = (found.bound[left], found.layer[left], found.state[left])
        self._found = Found(found.branches.taken(left), *columns, found.inputs)
        self.owner = self.owner[left]

    def bounds(self) -> Float[Tensor, " k"]:
        """Bound each function from below, rounded outward.

        Returns:
            The least of its parts' bounds.
        """
        every = self._bounded(self._found.branches)
        least = torch.full((self._count,), torch.inf, dtype=every.dtype)
        return least.scatter_reduce(0, self.owner, every, "amin")

    # some at a time: what a step reads stays in the cache
    def _climbed(self, some: Branches, steps: int) -> Found:
        every = torch.arange(len(some.mu)).split(ROWS)
        return Found.all_of([self._ascent.climbed(some.taken(part), steps) for part in every])

    def _bounded(self, some: Branches) -> Tensor:
        every = torch.arange(len(some.mu)).split(ROWS)
        return torch.cat([self._ascent.bound(some.taken(part)) for part in every])
