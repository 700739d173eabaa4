"""The search for a proof: boxes of more and more parts, and branches on the margins.

Backward substitution comes first. Where it does not decide, every pre-activation is bounded on a
few parts of the box, and then the margins are, the loosest part first; a margin that stays open
gets boxes of more parts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simplicit.bounds.branches.falsify import counterexample, margins
from simplicit.bounds.branches.leaves import Leaves
from simplicit.bounds.branches.slopes import Ascent
from simplicit.bounds.intervals import Box
from simplicit.bounds.layer_boxes import Layer
from simplicit.bounds.linear_bounds import Substitution, refined
from simplicit.bounds.relaxation import unsettled

NODES = 50_000
"""Branches a sample may take."""

PARTS, MORE, MOST = 4, 4, 100
"""Parts of the box for each bound of a pre-activation, at first; times how many more in the next
round; and from how many there is none."""

SHARE, LEAST = 0.5, 0.5
"""Time for branches on margins in a round: a part of that for its boxes, and seconds at least."""

FINE = 16, 64
"""Parts for the boxes and for the margins, where the radius is asked for."""

ROWS = 512
"""Functions side by side."""

FRONT = 128
"""Branches that are cut together."""

Status = Literal["proved", "counterexample", "open"]


@dataclass(frozen=True)
class Decided:
    """What is known of a box.

    Args:
        status: Whether all of its inputs have the class, one has not, or neither is known.
        point: An input with another class.
        nodes: Branches that were looked at.
    """

    status: Status
    point: Float[Tensor, " p"] | None
    nodes: int


def decide(
    layers: Sequence[Layer],
    predict: Callable[[Tensor], Tensor],
    box: Box,
    label: int,
    *,
    deadline: float,
    nodes: int = NODES,
) -> Decided:
    """Decide whether all inputs of a box have a class.

    Args:
        layers: Of the network, without feedback.
        predict: The same network, differentiable.
        box: Of the inputs, (1, p).
        label: The class.
        deadline: When to stop, by `time.monotonic`.
        nodes: Most branches.

    Returns:
        The verdict.
    """
    if (point := counterexample(predict, box, label)) is not None:
        return Decided("counterexample", point, 0)
    mu = margins(layers, label)
    with torch.no_grad():
        network = refined(layers, box)
        left = ~(network.margins(mu[None])[0] > 0)
    if not bool(left.any()):
        return Decided("proved", None, 0)
    search = _Search(layers, predict, box, label, deadline, nodes)
    return search.run(mu[left], network)


class _Search:
    def __init__(
        self,
        layers: Sequence[Layer],
        predict: Callable[[Tensor], Tensor],
        box: Box,
        label: int,
        deadline: float,
        nodes: int,
    ) -> None:
        self.layers, self.predict, self.box, self.label = layers, predict, box, label
        self.deadline, self.nodes, self.seen = deadline, nodes, 0

    # boxes, then branches for as long as the boxes took; what is open gets boxes of more parts
    def run(self, mu: Float[Tensor, "k q"], network: Substitution) -> Decided:
        parts = PARTS
        while True:
            begun = time.monotonic()
            network = smaller(network, parts, lambda: self._over)
            now = time.monotonic()
            until = min(self.deadline, now + max(SHARE * (now - begun), LEAST))
            leaves = Leaves(Ascent(network), mu)
            while True:
                if (point := self._falsified(leaves.inputs)) is not None:
                    return Decided("counterexample", point, self.seen)
                leaves.drop_proved()
                if not len(leaves):
                    return Decided("proved", None, self.seen)
                front = leaves.loosest(FRONT)
                if not len(front) or self._over or time.monotonic() > until:
                    break
                leaves.cut(front)
                self.seen += 2 * len(front)
            if self._over or parts > MOST:
                return Decided("open", None, self.seen)
            parts *= MORE

    @property
    def _over(self) -> bool:
        return time.monotonic() > self.deadline or self.seen >= self.nodes

    # where a relaxation has its minimum the network may have a low margin, too
    def _falsified(self, inputs: Float[Tensor, "s p"]) -> Tensor | None:
        u = inputs.double().clamp(self.box.low, self.box.high)
        with torch.no_grad():
            y = self.predict(u)
            margin = y[:, self.label, None] - y
            margin[:, self.label] = torch.inf
            best = margin.amin(1).argsort()[:2]
        return counterexample(self.predict, self.box, self.label, u[best], steps=8)


def lowest(layers: Sequence[Layer], box: Box, label: int) -> Float[Tensor, " k"]:
    """Bound the margins of a class from below: chosen slopes, every bound on a few parts.

    Args:
        layers: Of the network, without feedback.
        box: Of the inputs, (1, p).
        label: The class.

    Returns:
        Bounds of y_label − y_k for every other class k, rounded outward.
    """
    boxes, parts = FINE
    with torch.no_grad():
        network = smaller(refined(layers, box), boxes)
        mu = margins(layers, label)
        plain = network.margins(mu[None])[0]
    return torch.maximum(plain, _on_parts(Ascent(network), mu, parts))


@torch.no_grad()
def smaller(
    network: Substitution, parts: int, over: Callable[[], bool] = lambda: False
) -> Substitution:
    """Make boxes smaller, layer by layer: each pre-activation is bounded on some parts.

    Args:
        network: All hidden layers, one sample.
        parts: How many, for each bound.
        over: Whether to stop, and to keep the boxes that are left as they are.

    Returns:
        The network with smaller boxes.
    """
    now = Substitution(network.layers, network.u)
    for at, (layer, old) in enumerate(zip(network.layers, network.boxes, strict=False)):
        z = old.z.meet(layer.box(now.sources))
        rows = unsettled(layer.equation.phi, z)[0].nonzero()[:, 0]
        low, high = z.low.clone(), z.high.clone()
        # the first layer's boxes are exact already
        for some in rows.split(ROWS // 2) if at and len(rows) and not over() else ():
            one = torch.zeros(len(some), z.low.shape[1]).scatter(1, some[:, None], 1.0)
            least = _on_parts(Ascent(now), torch.cat([one, -one]), parts, over)
            down, up = least.chunk(2)
            low[0, some] = torch.maximum(low[0, some], down)
            high[0, some] = torch.minimum(high[0, some], -up)
        now = now.beyond(Box(low, high))
    return now


# the least over some parts of the box, of each function
@torch.enable_grad()
def _on_parts(
    ascent: Ascent, mu: Tensor, parts: int, over: Callable[[], bool] = lambda: False
) -> Tensor:
    leaves = Leaves(ascent, mu)
    while len(leaves) < len(mu) * parts and not over():
        front = leaves.loosest_of_each()
        if not len(front):
            break
        leaves.cut(front)
    return leaves.bounds()
