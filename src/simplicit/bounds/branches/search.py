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

SECONDS, NODES = 15.0, 50_000
"""Time and branches that a sample may take."""

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
class Verdict:
    """What is known of one sample.

    Args:
        status: `proved`: no input of the ball has another class. `counterexample`: one has.
            `open`: neither was shown in the time given.
        input: The counterexample, float64: of `verify` in the shape of a sample.
        nodes: Branches that were looked at.
        seconds: Time that it took.
    """

    status: Status
    input: Tensor | None
    nodes: int
    seconds: float

    def __str__(self) -> str:
        """Say it.

        Returns:
            A sentence.
        """
        after = f"after {self.seconds:.1f} s and {self.nodes} branches"
        return {
            "proved": f"proved: no input of the ball has another class ({after})",
            "counterexample": f"counterexample: an input of the ball has another class ({after})",
            "open": f"open: neither a proof nor a counterexample was found {after}",
        }[self.status]


def decide(
    layers: Sequence[Layer],
    predict: Callable[[Tensor], Tensor],
    box: Box,
    label: int,
    *,
    seconds: float = SECONDS,
    nodes: int = NODES,
) -> Verdict:
    """Decide whether all inputs of a box have a class.

    Args:
        layers: Of the network, without feedback.
        predict: The same network, differentiable.
        box: Of the inputs, (1, p).
        label: The class.
        seconds: When to stop; the work under way is finished.
        nodes: Most branches.

    Returns:
        The verdict.
    """
    search = _Search(layers, predict, box, label, seconds, nodes)
    status, point = search.run()
    return Verdict(status, point, search.seen, time.monotonic() - search.begun)


class _Search:
    def __init__(
        self,
        layers: Sequence[Layer],
        predict: Callable[[Tensor], Tensor],
        box: Box,
        label: int,
        seconds: float,
        nodes: int,
    ) -> None:
        self.layers, self.predict, self.box, self.label = layers, predict, box, label
        self.begun, self.nodes, self.seen = time.monotonic(), nodes, 0
        self.deadline = self.begun + seconds

    def run(self) -> tuple[Status, Tensor | None]:
        if (point := counterexample(self.predict, self.box, self.label)) is not None:
            return "counterexample", point
        mu = margins(self.layers, self.label)
        with torch.no_grad():
            network = refined(self.layers, self.box)
            left = ~(network.margins(mu[None])[0] > 0)
        return self._branched(mu[left], network) if bool(left.any()) else ("proved", None)

    # boxes, then branches for as long as the boxes took; what is open gets boxes of more parts
    def _branched(
        self, mu: Float[Tensor, "k q"], network: Substitution
    ) -> tuple[Status, Tensor | None]:
        parts = PARTS
        while True:
            begun = time.monotonic()
            network = smaller(network, parts, lambda: self._over)
            now = time.monotonic()
            until = min(self.deadline, now + max(SHARE * (now - begun), LEAST))
            leaves = Leaves(Ascent(network), mu)
            while True:
                if (point := self._falsified(leaves.inputs)) is not None:
                    return "counterexample", point
                leaves.drop_proved()
                if not len(leaves):
                    return "proved", None
                front = leaves.loosest(FRONT)
                if not len(front) or self._over or time.monotonic() > until:
                    break
                leaves.cut(front)
                self.seen += 2 * len(front)
            if self._over or parts > MOST:
                return "open", None
            parts *= MORE

    @property
    def _over(self) -> bool:
        return time.monotonic() > self.deadline or self.seen >= self.nodes

    # where a relaxation has its minimum the network may have a low margin, too
    def _falsified(self, inputs: Float[Tensor, "s p"]) -> Tensor | None:
        u = inputs.to(self.box.low)
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
        if at and len(rows) and not over():  # the first layer's boxes are exact already
            ascent = Ascent(now)
            for some in rows.split(ROWS // 2):
                one = torch.zeros(len(some), z.low.shape[1]).scatter(1, some[:, None], 1.0)
                down, up = _on_parts(ascent, torch.cat([one, -one]), parts, over).chunk(2)
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
