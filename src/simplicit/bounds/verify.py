"""verify(): whether any input of a ball has another class, decided by branch and bound.

In this order, each where the one before has not decided: a search for a counterexample; backward
substitution; slopes chosen for each pre-activation and margin, with each pre-activation cut at a
few kinks; and branches on signs of pre-activations, the loosest first. Proofs are rounded outward.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simplicit.bounds.asked import classes, radii, samples, with_two_classes, within
from simplicit.bounds.certify import as_model
from simplicit.bounds.exact import equations_of, require_well_posed
from simplicit.bounds.falsify import counterexample, margins
from simplicit.bounds.intervals import Box, around
from simplicit.bounds.layer_boxes import Layer, prepared
from simplicit.bounds.leaves import Leaves
from simplicit.bounds.linear_bounds import Substitution, refined
from simplicit.bounds.radii import Margins
from simplicit.bounds.relaxation import unsettled
from simplicit.bounds.slopes import Ascent
from simplicit.errors import InputError

SECONDS = 15.0
"""Time a sample may take."""

NODES = 50_000
"""Branches a sample may take."""

PARTS, MORE, MOST = 4, 4, 100
"""Parts of the box for each bound of a pre-activation, at first; times how many more in the next
round; and from how many there is none."""

SHARE, LEAST = 0.5, 0.5
"""Time for branches on margins in a round: a part of that for its boxes, and seconds at least."""

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
        input: The counterexample, in the shape of a sample.
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


def verify(
    model: nn.Module,
    x: Any,
    y: Any,
    eps: float | Any,
    bounds: Any = None,
    *,
    seconds: float = SECONDS,
    nodes: int = NODES,
) -> list[Verdict]:
    """Decide of each sample whether an input in the l∞ ball around it has another class.

    Everything that is proved is rounded outward, as in `certify`, and speaks of the model in exact
    arithmetic on the weights as they are stored. Counterexamples are inputs to which the model in
    float64 gives another class. With feedback, and for layers without a kink, there are no
    branches: the bounds of `certify`, and the search.

    Args:
        model: An implicit model, or any network that `implicitize` takes.
        x: Samples (m, …), in the model's own input shape: a tensor or an array.
        y: Their classes, as for `certify`.
        eps: Radius of the ball, in the units of x: one for all, or one for each sample.
        bounds: Least and largest value of an input: the ball is cut there.
        seconds: Time for each sample; the work under way is finished.
        nodes: Branches for each sample.

    Returns:
        A verdict a sample.

    Raises:
        InputError: As `certify`, and for a budget that is not positive.

    Example:
        >>> import simplicit, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)).double()
        >>> u = torch.rand(2, 4, dtype=torch.float64)
        >>> [v.status for v in simplicit.verify(net, u, net(u).argmax(1), 1e-6)]
        ['proved', 'proved']
    """
    for name, value in (("seconds", seconds), ("nodes", nodes)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and value > 0):
            raise InputError(f"{name}={value!r}: accepted are numbers above 0")
    x = samples(x)
    wanted = radii(eps, len(x))
    exact = with_two_classes(as_model(model, x))
    u, y = exact.packed(x.double()), classes(y, len(x), exact.q)
    limits = within(bounds, u, exact.input_shape)
    with torch.no_grad():
        found = require_well_posed(exact)
    equations = equations_of(exact)
    layers = None if equations.feedback else prepared(equations)
    verdicts = []
    for k in range(len(u)):
        one, label, start = u[k : k + 1], int(y[k]), time.monotonic()
        box = around(one, wanted[k : k + 1], limits)
        if layers is None:
            with torch.no_grad():
                bounded = Margins(equations, found, one, y[k : k + 1], limits)
                good = bool(bounded.proved(wanted[k : k + 1], torch.arange(1)))
            point = None if good else counterexample(exact.outputs, box, label)
            decided = _Decided("proved" if good else "open", None, 0)
            if point is not None:
                decided = _Decided("counterexample", point, 0)
        else:
            decided = decide(
                layers, exact.outputs, box, label, deadline=start + seconds, nodes=nodes
            )
        taken = time.monotonic() - start
        at = decided.point
        shaped = None if at is None else at.reshape(exact.input_shape).to(x.dtype)
        verdicts.append(Verdict(decided.status, shaped, decided.nodes, taken))
    return verdicts


@dataclass(frozen=True)
class _Decided:
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
) -> _Decided:
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
        return _Decided("counterexample", point, 0)
    mu = margins(layers, label)
    with torch.no_grad():
        network = refined(layers, box)
        left = ~(network.margins(mu[None])[0] > 0)
    if not bool(left.any()):
        return _Decided("proved", None, 0)
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
    def run(self, mu: Float[Tensor, "k q"], network: Substitution) -> _Decided:
        parts = PARTS
        while True:
            begun = time.monotonic()
            network = self._refined(network, parts)
            now = time.monotonic()
            until = min(self.deadline, now + max(SHARE * (now - begun), LEAST))
            leaves = Leaves(Ascent(network), mu)
            while True:
                if (point := self._falsified(leaves.inputs)) is not None:
                    return _Decided("counterexample", point, self.seen)
                leaves.drop_proved()
                if not len(leaves):
                    return _Decided("proved", None, self.seen)
                front = leaves.loosest(FRONT)
                if not len(front) or self._over or time.monotonic() > until:
                    break
                leaves.cut(front)
                self.seen += 2 * len(front)
            if self._over or parts > MOST:
                return _Decided("open", None, self.seen)
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

    # boxes layer by layer, each pre-activation on so many parts
    def _refined(self, network: Substitution, parts: int) -> Substitution:
        now = Substitution(self.layers, self.box)
        with torch.no_grad():
            for at, (layer, old) in enumerate(zip(self.layers, network.boxes, strict=False)):
                z = old.z.meet(layer.box(now.sources))
                if at and not self._over:
                    with torch.enable_grad():
                        z = self._tighter(now, layer.equation.phi, z, parts)
                now = now.beyond(z)
        return now

    def _tighter(self, now: Substitution, phi: Any, z: Box, parts: int) -> Box:
        rows = unsettled(phi, z)[0].nonzero()[:, 0]
        low, high, ascent = z.low.clone(), z.high.clone(), Ascent(now)
        for some in rows.split(ROWS // 2):
            one = torch.zeros(len(some), z.low.shape[1]).scatter(1, some[:, None], 1.0)
            leaves = Leaves(ascent, torch.cat([one, -one]))
            while len(leaves) < 2 * len(some) * parts and not self._over:
                front = leaves.loosest_of_each()
                if not len(front):
                    break
                leaves.cut(front)
            down, up = leaves.bounds().chunk(2)
            low[0, some] = torch.maximum(low[0, some], down)
            high[0, some] = torch.minimum(high[0, some], -up)
        return Box(low, high)
