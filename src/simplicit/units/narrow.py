"""A network without some of its units: the same equations with fewer states."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from simplicit.equations.compose import Fixed, identity
from simplicit.equations.equation import BiasParameter, Equation, Summand, Term
from simplicit.equations.layer_phi import Kept, MaxPool
from simplicit.equations.network import StateEquations
from simplicit.equations.weighted_maps import Gather
from simplicit.units.apart import with_parts
from simplicit.units.found import Units

Left = Bool[Tensor, "_"]
"""True for what is left."""


@dataclass(frozen=True, eq=False)
class Narrow:
    """What is left of a network.

    Attributes:
        equations: Its equations, with the weights that it had.
        rows: For each equation, which entries of z are left.
        states: For each hidden equation, which states are left.
        channels: For each equation, which channels of each term are left.
        stay: Which units stay.
    """

    equations: StateEquations
    rows: list[Left]
    states: list[Left]
    channels: list[list[Left]]
    stay: Left


def narrow(equations: StateEquations, units: Units, stay: Left) -> Narrow:
    """Take units out of a network.

    Args:
        equations: The network.
        units: Its units.
        stay: For each of them, whether it stays; at least one of each layer.

    Returns:
        The network without the others. It computes what the network would if nothing read them, and
        no constant in their place.
    """
    known = torch.cat([stay.cpu(), torch.ones(1, dtype=torch.bool)])  # what cannot go is −1
    states = [known[own] for own in units.states] + [torch.ones(equations.p, dtype=torch.bool)]
    rows = [known[own] for own in units.rows]
    channels = [[known[own] for own in terms] for terms in units.channels]
    weights: dict[int, Tensor] = {}
    layers = []
    for k, e in enumerate(equations.layers):
        terms = []
        for term, channel, feature in zip(e.terms, channels[k], units.features[k], strict=True):
            source = states[term.source]
            terms.append(_term(term, channel, known[feature], source, weights))
        fixed = [Summand(s.source, _fixed(s.map, rows[k], states[s.source])) for s in e.fixed]
        layers.append(_equation(e, tuple(terms), tuple(fixed), rows[k], channels[k]))
    fewer = replace(equations, hidden=tuple(layers[:-1]), output=layers[-1])
    return Narrow(fewer, rows, states[:-1], channels, stay)


def _equation(
    e: Equation,
    terms: tuple[Term, ...],
    fixed: tuple[Summand, ...],
    rows: Left,
    channels: list[Left],
) -> Equation:
    def left(numbers: Tensor) -> Tensor:
        own = rows if len(numbers) == e.size else channels[0]
        return numbers[own.to(numbers.device)]

    adjust = e.adjust and BiasParameter(e.adjust.name, left(e.adjust.factor), left(e.adjust.rest))
    phi = e.phi
    if isinstance(phi, MaxPool):
        count = int(rows.view(phi.shape[0], -1)[:, 0].sum())
        phi = replace(phi, shape=(count, *phi.shape[1:]))
    elif isinstance(phi, Kept):
        phi = with_parts(phi, rows)
    bias = None if e.bias is None else left(e.bias)
    return replace(e, terms=terms, fixed=fixed, bias=bias, adjust=adjust, phi=phi)


def _term(
    term: Term, channels: Left, features: Bool[Tensor, "groups reads"], source: Left,
    weights: dict[int, Tensor],
) -> Term:  # fmt: skip
    device, whole = term.weight.device, term.map
    if whole.groups > 1:
        groups = features.all(1)
        inputs = groups.repeat_interleave(term.weight.shape[1])
        reads, count = slice(None), int(groups.sum())
    else:
        inputs = features[0].view(term.weight.shape[1], -1).all(1)
        reads, count = inputs.to(device), 1
    # what is shared stays shared
    if id(term.weight) not in weights:
        weights[id(term.weight)] = term.weight[channels.to(device)][:, reads]
    fewer, entries = whole.narrow(weights[id(term.weight)], inputs, count)
    fixed = term.fixed or identity(len(source), device)
    fixed = _fixed(fixed, entries, source)
    own = term.fixed is None and isinstance(fixed, Gather) and fixed.is_identity
    return replace(
        term,
        map=fewer,
        fixed=None if own else fixed,
        offset=None if term.offset is None else term.offset[entries.to(device)],
        gain=None if term.gain is None else term.gain[channels.to(device)],
    )


# some results of a fixed map, of some states
def _fixed(fixed: Fixed, rows: Left, columns: Left) -> Fixed:
    if bool(rows.all()) and bool(columns.all()):
        return fixed
    device = (fixed.index if isinstance(fixed, Gather) else fixed.row).device
    rows, columns = rows.to(device), columns.to(device)
    place = torch.where(columns, columns.long().cumsum(0) - 1, -1)
    if isinstance(fixed, Gather):
        index = fixed.index[rows]
        return Gather(place[index.clamp_min(0)].where(index >= 0, -1), int(columns.sum()))
    entries = rows[fixed.row] & columns[fixed.column]
    line = rows.long().cumsum(0) - 1
    return replace(
        fixed,
        row=line[fixed.row[entries]],
        column=place[fixed.column[entries]],
        value=fixed.value[entries],
        rows=int(rows.sum()),
        columns=int(columns.sum()),
    )
