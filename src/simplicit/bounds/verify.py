"""verify(): whether any input of a ball has another class, decided by branch and bound.

In this order, each where the one before has not decided: a search for a counterexample; backward
substitution; slopes chosen for each pre-activation and margin, with each pre-activation cut at a
few kinks; and branches on signs of pre-activations, the loosest first. Proofs are rounded outward.
"""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from simplicit.bounds.asked import classes, radii, samples, with_two_classes, within
from simplicit.bounds.branches.falsify import counterexample
from simplicit.bounds.branches.search import NODES, SECONDS, Verdict, decide
from simplicit.bounds.certify import as_model
from simplicit.bounds.exact import equations_of, require_well_posed
from simplicit.bounds.intervals import Box, around
from simplicit.bounds.layer_boxes import prepared
from simplicit.bounds.radii import Margins
from simplicit.errors import InputError
from simplicit.model.implicit import ImplicitModel


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
        one, label = u[k : k + 1], int(y[k])
        box = around(one, wanted[k : k + 1], limits)
        if layers is None:
            bounded = Margins(equations, found, one, y[k : k + 1], limits)
            verdict = _without_branches(bounded, exact, box, wanted[k : k + 1], label)
        else:
            verdict = decide(layers, exact.outputs, box, label, seconds=seconds, nodes=nodes)
        at = None if verdict.input is None else verdict.input.reshape(exact.input_shape)
        verdicts.append(replace(verdict, input=at))
    return verdicts


def _without_branches(
    bounded: Margins, exact: ImplicitModel, box: Box, eps: Tensor, label: int
) -> Verdict:
    begun = time.monotonic()
    with torch.no_grad():
        good = bool(bounded.proved(eps, torch.arange(1)))
    point = None if good else counterexample(exact.outputs, box, label)
    status = "proved" if good else "open" if point is None else "counterexample"
    return Verdict(status, point, 0, time.monotonic() - begun)
