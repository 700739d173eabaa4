"""verify(): whether any input of a ball has another class, decided by branch and bound.

In this order, each where the one before has not decided: a search for a counterexample; backward
substitution; slopes chosen for each pre-activation and margin, with each pre-activation cut at a
few kinks; and branches on signs of pre-activations, the loosest first. Proofs are rounded outward.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simplicit.bounds.asked import classes, radii, samples, with_two_classes, within
from simplicit.bounds.certify import as_model
from simplicit.bounds.exact import equations_of, require_well_posed
from simplicit.bounds.falsify import counterexample
from simplicit.bounds.intervals import Box, around
from simplicit.bounds.linear_bounds import WORK, Substitution, refined
from simplicit.bounds.radii import Margins
from simplicit.bounds.relaxation import unsettled
from simplicit.bounds.slopes import Ascent, Branches, Found
from simplicit.errors import InputError

SECONDS = 15.0
"""Time a sample may take."""

NODES = 50_000
"""Branches a sample may take."""

STEPS = 20
"""Steps of the ascent for a whole box."""

SHORT = 10
"""Steps for a branch, which begins where its parent ended."""

CUTS = 2
"""Kinks at which a box is cut for one bound of a pre-activation."""

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
    ascent = None if equations.feedback else Ascent(equations)
    verdicts = []
    for k in range(len(u)):
        one, label, start = u[k : k + 1], int(y[k]), time.monotonic()
        box = around(one, wanted[k : k + 1], limits)
        if ascent is None:
            with torch.no_grad():
                margins = Margins(equations, found, one, y[k : k + 1], limits)
                good = bool(margins.proved(wanted[k : k + 1], torch.arange(1)))
            point = None if good else counterexample(exact.outputs, box, label)
            decided = _Decided("proved" if good else "open", None, 0)
            if point is not None:
                decided = _Decided("counterexample", point, 0)
        else:
            decided = decide(
                ascent, exact.outputs, box, label, deadline=start + seconds, nodes=nodes
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
    ascent: Ascent,
    predict: Callable[[Tensor], Tensor],
    box: Box,
    label: int,
    *,
    deadline: float,
    nodes: int = NODES,
) -> _Decided:
    """Decide whether all inputs of a box have a class.

    Args:
        ascent: The network, without feedback.
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
    q = ascent.layers[-1].equation.size
    one = torch.eye(q, dtype=torch.float64)
    mu = torch.stack([one[label] - one[k] for k in range(q) if k != label])
    with torch.no_grad():
        network = refined(ascent.layers, box)
        left = ~(network.margins(mu[None])[0] > 0)
    if not bool(left.any()):
        return _Decided("proved", None, 0)
    search = _Search(ascent, predict, box, label, deadline, nodes)
    return search.run(mu[left])


class _Search:
    def __init__(
        self,
        ascent: Ascent,
        predict: Callable[[Tensor], Tensor],
        box: Box,
        label: int,
        deadline: float,
        nodes: int,
    ) -> None:
        self.ascent, self.predict, self.box, self.label = ascent, predict, box, label
        self.deadline, self.nodes, self.seen = deadline, nodes, 0

    def run(self, mu: Float[Tensor, "k q"]) -> _Decided:
        network = self._refined()
        found = self.ascent.climbed(network, self.ascent.begun(network, mu), STEPS)
        open_, layer, state, bound = self._open(network, found)
        if (point := self._falsified(found.inputs)) is not None:
            return _Decided("counterexample", point, self.seen)
        while len(open_.mu):
            if self._over or bool((layer < 0).all()):
                return _Decided("open", None, self.seen)
            order = torch.where(layer < 0, torch.inf, bound).argsort()
            front, rest = order[:FRONT], order[FRONT:]
            front, stuck = front[layer[front] >= 0], front[layer[front] < 0]
            rest = torch.cat([rest, stuck])
            children = open_.taken(front).split(layer[front], state[front])
            self.seen += len(children.mu)
            found = self.ascent.climbed(network, children, SHORT)
            if (point := self._falsified(found.inputs)) is not None:
                return _Decided("counterexample", point, self.seen)
            more, layers, states, bounds = self._open(network, found)
            open_ = open_.taken(rest).and_(more)
            layer, state = torch.cat([layer[rest], layers]), torch.cat([state[rest], states])
            bound = torch.cat([bound[rest], bounds])
        return _Decided("proved", None, self.seen)

    @property
    def _over(self) -> bool:
        return time.monotonic() > self.deadline or self.seen >= self.nodes

    # those that are not proved
    def _open(self, network: Substitution, found: Found) -> tuple[Branches, Tensor, Tensor, Tensor]:
        likely = (found.bound > 0).nonzero()[:, 0]
        left = torch.ones(len(found.bound), dtype=torch.bool)
        if len(likely):
            left[likely] = ~(self.ascent.bound(network, found.branches.taken(likely)) > 0)
        return found.branches.taken(left), found.layer[left], found.state[left], found.bound[left]

    # where a relaxation has its minimum the network may have a low margin, too
    def _falsified(self, inputs: Float[Tensor, "s p"]) -> Tensor | None:
        u = inputs.double().clamp(self.box.low, self.box.high)
        with torch.no_grad():
            y = self.predict(u)
            margin = y[:, self.label, None] - y
            margin[:, self.label] = torch.inf
            best = margin.amin(1).argsort()[:2]
        return counterexample(self.predict, self.box, self.label, u[best], steps=8)

    # boxes layer by layer, with slopes of their own
    def _refined(self) -> Substitution:
        ascent = self.ascent
        now = Substitution(ascent.layers, self.box)
        work = torch.full((1,), WORK, dtype=torch.float64)
        for at, layer in enumerate(ascent.layers[:-1]):
            with torch.no_grad():
                z = now.tighter(at, layer.box(now.sources), work)
            if at and not self._over:
                z = self._tighter(now, layer.equation.phi, z)
            with torch.no_grad():
                now = now.beyond(z)
        return now

    def _tighter(self, now: Substitution, phi: Any, z: Box) -> Box:
        rows = unsettled(phi, z)[0].nonzero()[:, 0]
        low, high = z.low.clone(), z.high.clone()
        for some in rows.split(ROWS // 2):
            if self._over:
                break
            one = torch.zeros(len(some), z.low.shape[1]).scatter(1, some[:, None], 1.0)
            found = self.ascent.climbed(now, self.ascent.begun(now, torch.cat([one, -one])), STEPS)
            least = self.ascent.bound(now, found.branches)
            least = torch.maximum(least, self._cut(now, found))
            down, up = least.chunk(2)
            low[0, some] = torch.maximum(low[0, some], down)
            high[0, some] = torch.minimum(high[0, some], -up)
        return Box(low, high)

    # the least over the parts of a box that is cut at a few kinks
    def _cut(self, now: Substitution, found: Found) -> Tensor:
        count = len(found.bound)
        owner, closed = torch.arange(count), torch.full((count,), torch.inf, dtype=torch.float64)
        for _ in range(CUTS):
            cut = found.layer >= 0
            if not bool(cut.all()):  # exact already: its bound stands
                ended = self.ascent.bound(now, found.branches.taken(~cut))
                closed = closed.scatter_reduce(0, owner[~cut], ended, "amin")
            if not bool(cut.any()):
                return closed
            halves = found.branches.taken(cut).split(found.layer[cut], found.state[cut])
            owner = owner[cut].repeat(2)
            found = self.ascent.climbed(now, halves, SHORT)
        ended = self.ascent.bound(now, found.branches)
        return closed.scatter_reduce(0, owner, ended, "amin")
